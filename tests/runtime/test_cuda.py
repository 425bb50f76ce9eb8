import gc
import re
import sys

import numpy as np
import pytest
from support import fake_gpu
from support.fake_gpu import Error, FakeCuda

from drexperts.runtime.cuda import (
    DeviceBuffer,
    Event,
    Graph,
    PinnedBuffer,
    Stream,
    call,
    copy_to_device,
    copy_to_host,
    on_device,
)
from drexperts.runtime.errors import (
    CudaError,
    DeviceError,
    MissingDependencyError,
    OutOfMemoryError,
)
from drexperts.runtime.installing import install_command


@pytest.fixture
def fake(monkeypatch):
    module = FakeCuda(names=("first", "second"))
    fake_gpu.install(monkeypatch, module)
    yield module
    gc.collect()
    assert module.faults == []
    assert +module.live == {}


def test_results(fake):
    assert call("cudaGetDeviceCount") == 2
    assert call("cudaSetDevice", 0) is None


@pytest.mark.parametrize(
    ("error", "kind", "lost", "advice"),
    [
        (Error.cudaErrorInvalidValue, CudaError, False, "check the GPU and its driver"),
        (Error.cudaErrorMemoryAllocation, OutOfMemoryError, False, "a smaller batch"),
        (Error.cudaErrorIllegalAddress, CudaError, True, "restart it"),
    ],
)
def test_errors(fake, error, kind, lost, advice):
    fake.fail("cudaMalloc", error)
    message = f"cudaMalloc failed with {error.name} .what {error.name} says.; .*{advice}"
    with pytest.raises(CudaError, match=message) as caught:
        call("cudaMalloc", 1)
    assert type(caught.value) is kind
    assert isinstance(caught.value, DeviceError)
    assert caught.value.lost == lost
    assert fake.cudaGetLastError() == (0,)  # so that no other library takes it for its own


def test_missing_cuda_python(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("tensorrt"))):
        Stream()


def test_on_device(fake):
    call("cudaSetDevice", 1)
    with on_device(0):
        assert call("cudaGetDevice") == 0
    assert call("cudaGetDevice") == 1
    with pytest.raises(ValueError, match="mine"), on_device(0):
        raise ValueError("mine")
    assert call("cudaGetDevice") == 1


def test_copies_to_the_gpu_and_back(fake):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    with Stream() as stream, PinnedBuffer(48) as host, DeviceBuffer(48) as device:
        host.array(np.float32, (3, 4))[:] = values
        copy_to_device(device.address, host, 48, stream)
        stream.synchronize()
        host.array(np.float32, (3, 4))[:] = 0
        copy_to_host(host, device.address, 48, stream)
        stream.synchronize()
        np.testing.assert_array_equal(host.array(np.float32, (3, 4)), values)
        np.testing.assert_array_equal(host.array(np.float32, (2, 2)), [[0, 1], [2, 3]])


def test_an_empty_buffer_allocates_nothing(fake):
    buffer = DeviceBuffer(0)
    assert buffer.address == 0
    assert fake.calls["cudaMalloc"] == 0
    buffer.close()


def test_release_once_by_close_or_by_the_collector(fake):
    buffer = DeviceBuffer(16)
    assert fake.allocated() == 16
    buffer.close()
    buffer.close()
    assert fake.allocated() == 0
    DeviceBuffer(16)
    gc.collect()
    assert fake.allocated() == 0


def test_release_raises_nothing(fake):
    buffer = DeviceBuffer(16)
    address = buffer.address
    fake.fail("cudaFree", Error.cudaErrorIllegalAddress)
    buffer.close()
    fake.cudaFree(address)


def test_event_orders_two_streams(fake):
    with Stream() as first, Stream() as second, PinnedBuffer(4) as host, DeviceBuffer(4) as device:
        host.array(np.uint8, (4,))[:] = 7
        copy_to_device(device.address, host, 4, first)
        with Event() as mark:
            mark.record(int(first))
            mark.hold_back(int(second))
            second.synchronize()
            assert list(fake.touch(device.address, 4)) == [7] * 4
            mark.synchronize()


def test_timed_events(fake):
    with Stream() as stream, Event(timed=True) as begin, Event(timed=True) as end:
        begin.record(int(stream))
        end.record(int(stream))
        with pytest.raises(CudaError, match="cudaErrorNotReady"):
            end.seconds_since(begin)
        stream.synchronize()
        assert end.seconds_since(begin) == 0.0025
        with Event() as untimed, pytest.raises(CudaError, match="InvalidResourceHandle"):
            untimed.seconds_since(begin)


def test_graph_replays_with_new_contents(fake):
    with Stream() as stream, PinnedBuffer(4) as host, DeviceBuffer(4) as device:
        work = lambda: copy_to_device(device.address, host, 4, stream)  # noqa: E731
        with Graph(stream, work) as graph:
            for value in (1, 2):
                host.array(np.uint8, (4,))[:] = value
                graph.launch(stream)
                stream.synchronize()
                assert list(fake.touch(device.address, 4)) == [value] * 4


def test_capture_that_fails_is_ended(fake):
    def fails():
        raise ValueError("mine")

    with Stream() as stream:
        with pytest.raises(ValueError, match="mine"):
            Graph(stream, fails)
        with pytest.raises(CudaError, match=r"cudaStreamSynchronize.*Unsupported"):
            Graph(stream, stream.synchronize)
        stream.synchronize()
        assert fake.cudaGetLastError() == (0,)


def test_graph_that_cannot_be_made(fake):
    fake.fail("cudaGraphInstantiate", Error.cudaErrorMemoryAllocation)
    with Stream() as stream, pytest.raises(OutOfMemoryError):
        Graph(stream, lambda: None)


def test_release_while_this_thread_records(fake):
    """The garbage collector may release resources meanwhile: nothing leaks, and the graph works."""
    made = [DeviceBuffer(4), PinnedBuffer(4), Event(), Stream()]

    def record():
        while made:
            made.pop().close()

    with Stream() as stream, Graph(stream, record) as graph:
        graph.launch(stream)
        stream.synchronize()
        assert fake.allocated() == fake.allocated("pinned") == 0


def test_recorded_work_may_not_release(fake):
    with Stream() as stream, DeviceBuffer(4) as device:
        DeviceBuffer(4).close()
        with pytest.raises(CudaError, match=r"cudaFree.*Unsupported"):
            Graph(stream, lambda: call("cudaFree", device.handle))


def test_an_error_newer_than_cuda_python(fake):
    fake.fail("cudaMalloc", 9999)
    with pytest.raises(CudaError, match=r"cudaMalloc failed .*9999.*update it"):
        DeviceBuffer(4)
    fake.last = Error.cudaSuccess
    buffer = DeviceBuffer(4)
    address = buffer.address
    fake.fail("cudaFree", 9999)
    buffer.close()
    fake.last = Error.cudaSuccess
    fake.cudaFree(address)
