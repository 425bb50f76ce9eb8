import gc

import numpy as np
import pytest
from support import fake_gpu
from support.fake_gpu import FakeCuda

from drexperts.runtime import gpu_array
from drexperts.runtime.cuda import DeviceBuffer, Event, Stream, on_device
from drexperts.runtime.gpu_array import GpuArray


@pytest.fixture
def fake(monkeypatch):
    module = FakeCuda()
    fake_gpu.install(monkeypatch, module)
    yield module
    gc.collect()
    assert module.faults == []
    assert +module.live == {}
    assert gpu_array._exported == {}


@pytest.fixture
def stream(fake):
    with Stream() as made:
        yield made
        made.synchronize()


def array_on(stream):
    ready = Event()
    ready.record(int(stream))
    return GpuArray(DeviceBuffer(24), (2, 3), stream.handle.device, int(stream), ready)


def test_cuda_array_interface(stream):
    array = array_on(stream)
    assert array.__cuda_array_interface__ == {
        "version": 3,
        "shape": (2, 3),
        "typestr": "<f4",
        "data": (array._memory.address, False),
        "strides": None,
        "stream": int(stream),
    }


def test_dlpack_as_cuda_python_reads_it(stream):
    array = array_on(stream)
    utils = pytest.importorskip("cuda.core.utils", reason="cuda-core is not installed")
    view = utils.StridedMemoryView.from_dlpack(array, stream_ptr=int(stream))
    assert (view.ptr, view.shape, view.strides) == (array._memory.address, (2, 3), (3, 1))
    assert (view.device_id, view.is_device_accessible) == (0, True)
    assert view.dtype == np.float32


@pytest.mark.slow
def test_memory_lives_as_long_as_its_reader(fake, stream):
    utils = pytest.importorskip("cuda.core.utils", reason="cuda-core is not installed")
    array = array_on(stream)
    capsule = array.__dlpack__(stream=-1)
    del array
    gc.collect()
    assert fake.allocated() == 24
    del capsule
    gc.collect()
    assert fake.allocated() == 0
    view = utils.StridedMemoryView.from_dlpack(array_on(stream), stream_ptr=-1)
    gc.collect()
    assert fake.allocated() == 24
    del view
    gc.collect()
    assert fake.allocated() == 0


def test_unread_capsule_is_let_go(stream):
    array = array_on(stream)
    capsule = array.__dlpack__(stream=-1)
    assert len(gpu_array._exported) == 1
    del capsule
    assert gpu_array._exported == {}


@pytest.mark.parametrize(("given", "waiting"), [(-1, 0), (None, 1), (1, 1)])
def test_reader_waits_for_the_writer(fake, stream, given, waiting):
    array = array_on(stream)
    array.__dlpack__(stream=given)
    assert fake.calls["cudaStreamWaitEvent"] == waiting
    assert len(fake.stream(1).todo) == waiting  # the legacy default stream


def test_reader_waits_on_the_default_stream_of_the_arrays_gpu(fake):
    fake.names = ("first", "second")
    with on_device(1), Stream() as stream:
        array = array_on(stream)
        with on_device(0):
            array.__dlpack__()
            assert fake.device == 0
            assert len(fake.stream(1).todo) == 0
        assert len(fake.stream(1).todo) == 1
        stream.synchronize()


def test_readers_stream(fake, stream):
    array = array_on(stream)
    with Stream() as theirs:
        array.__dlpack__(stream=int(theirs))
        assert len(fake.stream(int(theirs)).todo) == 1
        theirs.synchronize()


@pytest.mark.parametrize("options", [{"copy": True}, {"dl_device": (1, 0)}, {"dl_device": (2, 1)}])
def test_what_it_does_not_export(stream, options):
    array = array_on(stream)
    with pytest.raises(BufferError, match="without a copy"):
        array.__dlpack__(stream=-1, **options)


@pytest.mark.parametrize(("shape", "strides"), [((2, 3, 4), [12, 4, 1]), ((6,), [1]), ((), [])])
def test_strides_are_given(stream, shape, strides):
    array = array_on(stream)
    array.shape = shape
    capsule = array.__dlpack__(stream=-1)
    (tensor, *_) = gpu_array._exported[gpu_array._pointer(id(capsule), b"dltensor")]
    assert tensor.strides[: len(shape)] == strides


def test_options_it_grants(stream):
    array = array_on(stream)
    assert array.__dlpack_device__() == (2, 0)
    assert array.__dlpack__(stream=-1, max_version=(1, 0), dl_device=(2, 0), copy=False)
