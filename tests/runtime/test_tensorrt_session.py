import dataclasses
import gc
import logging
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support import fake_gpu
from support.fake_gpu import SIDE, Error, FakeCuda, FakeTensorrt, engine_of, expected, plan_bytes
from support.waiting import PATIENCE

from drexperts.runtime import gpu_array, tensorrt_plan
from drexperts.runtime.errors import (
    BundleError,
    CudaError,
    DeviceError,
    InternalError,
    MissingDependencyError,
    OutOfMemoryError,
    UserError,
)
from drexperts.runtime.installing import install_command
from drexperts.runtime.interface import Tensor
from drexperts.runtime.proof import BatchInvariance
from drexperts.runtime.tensorrt_session import TensorrtSession

ILLEGAL = Error.cudaErrorIllegalAddress
MEMORY = Error.cudaErrorMemoryAllocation


class Machine:
    """A machine with stand-ins for its GPU and TensorRT, and a plan file."""

    def __init__(self, folder, monkeypatch, backend="tensorrt", **cuda):
        self.folder, self.backend = folder, backend
        self.cuda = FakeCuda(**cuda)
        name = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}[backend]
        version = "1.7.1.116" if backend == "tensorrt-rtx" else "11.4.0.106"
        self.trt = FakeTensorrt(self.cuda, name, version)
        fake_gpu.install(monkeypatch, self.cuda, self.trt)

    def open(self, profiles=((1, 2, 4),), *, contexts=2, invariance=None, gpu=0, **plan):
        path = self.folder / "model.engine"
        path.write_bytes(plan_bytes(profiles))
        engine = engine_of(path, self.backend, profiles, **plan)
        engine = dataclasses.replace(engine, invariance=invariance)
        return TensorrtSession(path, engine, gpu=gpu, contexts=contexts)


@pytest.fixture
def make_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt_plan, "cache_folder", lambda: tmp_path / "cache")
    made = []

    def make(**kinds):
        made.append(Machine(tmp_path, monkeypatch, **kinds))
        return made[-1]

    yield make
    gc.collect()
    for machine in made:
        assert machine.cuda.faults == []


@pytest.fixture
def machine(make_machine):
    return make_machine()


def images(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3, SIDE, SIDE), np.uint8)


def check(outputs, pixels):
    wanted = expected(pixels)
    assert outputs.keys() == wanted.keys()
    for name, values in wanted.items():
        assert outputs[name].dtype == np.float32
        np.testing.assert_array_equal(outputs[name], values)


def nothing_left(machine):
    gc.collect()
    return +machine.cuda.live == {}


# Batches, profiles, graphs.


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
def test_batches(machine, count):
    with machine.open() as session:
        check(session.run(images(count)), images(count))
    assert nothing_left(machine)


def test_compute_is_timed_by_the_gpu_and_leaves_the_session_as_it_was(machine):
    with machine.open(((1, 2, 4),)) as session:
        for count in (1, 4):
            before = machine.cuda.calls["cudaMemcpyAsync"]
            assert session.compute_seconds(images(count)) == 0.0025
            assert machine.cuda.calls["cudaMemcpyAsync"] == before + 1  # the pixels, beforehand
            check(session.run(images(count)), images(count))
        with pytest.raises(UserError, match="takes 4 images at once, got 5"):
            session.compute_seconds(images(5))
        with pytest.raises(InternalError, match="the session takes"):
            session.compute_seconds(images(2).astype(np.float32))
    assert nothing_left(machine)


def test_attributes_of_a_session(machine):
    with machine.open(((1, 1, 1), (2, 4, 8)), contexts=3) as session:
        assert session.max_batch == 8
        assert session.concurrency == 3
        assert session.inputs == [Tensor("pixels", "uint8", (None, 3, SIDE, SIDE))]
        score, weights = session.outputs
        assert score == Tensor("score", "float32", (None,))
        assert weights == Tensor("weights", "float32", (None, 10))
        assert session.description == "tensorrt 11.4.0.106 on Fake GPU (8.9)"


def test_batches_are_capped_to_what_was_certified(machine):
    invariance = BatchInvariance(
        batches=(1, 3), cases=("repeated",), score_max=0.0, tolerance=1.0, passed=True
    )
    with machine.open(((1, 4, 8),), invariance=invariance) as session:
        assert session.max_batch == 3
        check(session.run(images(7)), images(7))


@pytest.mark.parametrize(
    ("count", "choice"),
    [(1, (0, 1)), (2, (0, 2)), (4, (1, 4)), (8, (1, 8)), (12, (2, 12)), (99, (2, 16))],
)
def test_the_profile_with_the_nearest_optimum_is_used(machine, count, choice):
    with machine.open(((1, 1, 4), (1, 4, 8), (4, 16, 16))) as session:
        assert session._choice(count) == choice
        check(session.run(images(count)), images(count))


def test_a_gap_between_profiles_is_filled_with_smaller_batches(machine):
    with machine.open(((1, 1, 1), (4, 4, 4))) as session:
        check(session.run(images(7)), images(7))


def test_each_profile_and_batch_is_captured_once_and_replayed(machine):
    with machine.open(((1, 1, 2), (2, 4, 4)), contexts=1) as session:
        for seed in range(5):
            for count in (4, 1, 2):
                check(session.run(images(count, seed)), images(count, seed))
    calls = machine.cuda.calls
    assert calls["cudaGraphInstantiate"] == 3
    assert calls["cudaGraphLaunch"] == 3 * 4  # the first run of each is an ordinary one
    assert machine.trt.contexts_made == 3


def test_a_bounded_number_of_lanes_is_kept(machine):
    with machine.open(((1, 8, 32),), contexts=1) as session:
        session.run(images(32))
        for count in range(1, 21):
            check(session.run(images(count)), images(count))
        assert machine.trt.most_contexts == 8
        assert machine.cuda.live["context"] == 8
    assert nothing_left(machine)


@pytest.mark.parametrize(
    ("profiles", "counts"),
    [
        (((1, 1, 1), (2, 4, 16)), (1, 1, 2, 2, 9, 9, 1, 1, 16, 2)),
        (((1, 4, 4), (1, 1, 16)), (4, 4, 4, 1, 1, 4, 4, 4, 1)),  # the second needs more scratch
    ],
)
def test_growing_batches_leave_nothing_behind(machine, profiles, counts):
    with machine.open(profiles, contexts=1) as session:
        for seed, count in enumerate(counts):
            check(session.run(images(count, seed)), images(count, seed))
    assert nothing_left(machine)


@pytest.mark.parametrize("refusal", ["by TensorRT", "begin", "end", "instantiate"])
def test_without_graphs_it_scores_and_warns_once(machine, refusal, caplog):
    machine.trt.refuses_capture = refusal == "by TensorRT"
    machine.trt.spoils_capture = refusal == "end"
    failing = {"begin": "cudaStreamBeginCapture", "instantiate": "cudaGraphInstantiate"}
    if refusal in failing:
        machine.cuda.fail(failing[refusal], Error.cudaErrorInvalidValue)
    with caplog.at_level(logging.WARNING), machine.open() as session:
        for seed in range(4):
            for count in (1, 2):
                check(session.run(images(count, seed)), images(count, seed))
    assert [("CUDA graphs" in record.getMessage()) for record in caplog.records] == [True]
    assert machine.cuda.calls["cudaStreamBeginCapture"] == 1
    assert nothing_left(machine)


def test_without_a_home_kernels_are_not_kept(make_machine, tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError("no home")

    monkeypatch.setattr(tensorrt_plan, "cache_folder", none)
    with make_machine(backend="tensorrt-rtx").open() as session:
        check(session.run(images(3)), images(3))
    assert not (tmp_path / "cache").exists()


def test_kernels_of_rtx_are_kept_when_the_session_is_closed(make_machine, tmp_path):
    machine = make_machine(backend="tensorrt-rtx")
    with machine.open() as session:
        check(session.run(images(3)), images(3))
        assert not (tmp_path / "cache").exists()
    (file,) = (tmp_path / "cache" / "rtx-kernels").iterdir()
    assert file.read_bytes() == b"kernels: kernel"


def test_an_engine_that_reports_it_cannot_be_captured(make_machine, caplog):
    machine = make_machine(backend="tensorrt-rtx")
    machine.trt.capturable = False
    with caplog.at_level(logging.WARNING), machine.open() as session:
        for seed in range(3):
            check(session.run(images(2, seed)), images(2, seed))
    assert "cannot be recorded" in caplog.text
    assert machine.cuda.calls["cudaStreamBeginCapture"] == 0


def test_results_do_not_change_with_later_runs(machine):
    with machine.open(contexts=1) as session:
        first = session.run(images(2, 1))
        session.run(images(2, 2))
    check(first, images(2, 1))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 3, SIDE, SIDE), np.float32),
        np.zeros((3, SIDE, SIDE), np.uint8),
        np.zeros((0, 3, SIDE, SIDE), np.uint8),
        np.zeros((1, 3, SIDE, SIDE + 1), np.uint8),
    ],
)
def test_other_pixels_are_our_bug(machine, pixels):
    with machine.open() as session, pytest.raises(InternalError, match="the session takes uint8"):
        session.run(pixels)


def test_pixels_need_not_be_contiguous(machine):
    pixels = images(4)[::2, :, ::-1]
    with machine.open() as session:
        check(session.run(pixels), pixels)


# Threads.


@pytest.fixture
def often_switched():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_many_threads(machine, often_switched):
    with machine.open(((1, 2, 4),), contexts=3) as session:

        def work(seed):
            pixels = images(seed % 6 + 1, seed)
            check(session.run(pixels), pixels)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(160)))
        assert machine.cuda.live["stream"] <= 3
    assert machine.trt.most_contexts <= 3 * 4
    assert nothing_left(machine)


def test_calls_in_turn_use_one_worker(machine):
    with machine.open(contexts=3) as session:
        for _ in range(4):
            session.run(images(2))
    assert machine.trt.contexts_made == 1


def test_the_thread_keeps_its_own_device(make_machine):
    machine = make_machine(names=("first", "second"))
    machine.cuda.cudaSetDevice(1)
    with machine.open(gpu=0) as session:
        session.run(images(1))
        assert machine.cuda.cudaGetDevice() == (0, 1)


def test_closing_waits_and_refuses_further_calls(machine):
    session = machine.open(contexts=1)
    worker = session._idle.get()
    refused = []

    def call():
        try:
            session.run(images(1))
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=target) for target in (session.close, call)]
    threads[0].start()
    while not session._closed:
        pass
    threads[1].start()
    session._idle.put(worker)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert ["closed" in text for text in refused] == [True]
    session.close()
    with pytest.raises(UserError, match="the session is closed"):
        session.run(images(1))
    assert nothing_left(machine)


def test_a_failed_close_leaves_no_caller_waiting(machine, monkeypatch):
    session = machine.open(contexts=2)
    with monkeypatch.context() as patch:
        patch.setattr(session._plan, "close", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.close()
    assert len(session._idle._workers) == 2
    with pytest.raises(UserError, match="the session is closed"):
        session.run(images(1))


# Errors.


CHECKED = [
    "cudaGetDevice",
    "cudaSetDevice",
    "cudaStreamCreateWithFlags",
    "cudaHostAlloc",
    "cudaMalloc",
    "cudaMemcpyAsync",
    "cudaStreamSynchronize",
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaEventCreateWithFlags",
    "cudaEventRecord",
    "cudaEventSynchronize",
    "cudaEventElapsedTime",
]


# Without graphs a session still works; restoring the thread's device ignores errors.
TOLERATED = ("cudaSetDevice",)
BEFORE_THE_WORKER = ("cudaGetDevice", "cudaSetDevice")


def all_ways(session, array):
    """Calls of every kind, each twice, so that a worker takes all of its code paths."""
    for count in (2, 2, 4, 4, 2, 2, 5):
        check(session.run(images(count)), images(count))
        session.run_on_gpu(array)
        session.compute_seconds(images(min(count, 4)))


def error_of(work):
    """The message of what `work` raises; its traceback would keep objects alive."""
    try:
        work()
    except CudaError as error:
        return str(error)
    return None


FAST = ("cudaMalloc", "cudaGraphInstantiate")


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[pytest.mark.slow] * (step not in FAST)) for step in CHECKED]
)
def test_wherever_an_error_occurs_it_is_raised_once(machine, view, step):
    """For each call of each function that may fail: nothing leaks, and later calls work."""
    array = Foreign(machine, images(2))
    with machine.open(((1, 1, 2), (2, 4, 4)), contexts=1) as session:
        session._limits._halved = True
        worker = session._idle._workers[0]
        at, happened = 0, True
        while happened:
            worker.close()
            worker._graphs.granted = True
            before, at = machine.cuda.calls[step], at + 1
            machine.cuda.fail(step, Error.cudaErrorInvalidValue, at)
            said = error_of(lambda: all_ways(session, array))
            happened = machine.cuda.calls[step] >= before + at
            machine.cuda.fail(step, Error.cudaSuccess, times=0)
            if said is None:
                assert not happened or step in TOLERATED or not worker._graphs.granted
            else:
                assert step in said
                assert step in BEFORE_THE_WORKER or +machine.cuda.live == {"device": 1}
            assert machine.cuda.cudaGetLastError() == (0,)
            all_ways(session, array)
        assert at > 1
    array.free()
    assert nothing_left(machine)


def test_errors_quote_what_tensorrt_logged(machine):
    with machine.open() as session:
        machine.trt.enqueue_failure = "tactic 7 is broken"
        with pytest.raises(DeviceError, match=r"batch of 2: tactic 7 is broken; .*build_engine"):
            session.run(images(2))
        machine.trt.enqueue_failure = "tactic 8 is broken"
        with pytest.raises(DeviceError, match="batch of 2: tactic 8 is broken; "):
            session.run(images(2))
        machine.trt.enqueue_failure = None
        check(session.run(images(2)), images(2))
    assert nothing_left(machine)


def test_a_lost_gpu(machine):
    session = machine.open(contexts=1)
    session.run(images(1))
    machine.cuda.broken = ILLEGAL
    for _ in range(2):
        with pytest.raises(CudaError, match="lost to this process") as caught:
            session.run(images(1))
        assert caught.value.lost
    session.close()


def test_a_gpu_lost_while_recording_is_an_error(machine, caplog):
    with caplog.at_level(logging.WARNING), machine.open(contexts=1) as session:
        session.run(images(1))
        machine.cuda.fail("cudaGraphInstantiate", ILLEGAL)
        with pytest.raises(CudaError, match="lost to this process"):
            session.run(images(1))
    assert caplog.text == ""


def test_a_gpu_lost_inside_tensorrt_is_named(machine):
    with machine.open(contexts=1) as session:
        machine.trt.enqueue_failure = "something went wrong"
        machine.cuda.fail("cudaStreamSynchronize", ILLEGAL, at=2)
        with pytest.raises(CudaError, match="lost to this process"):
            session.run(images(1))


def test_out_of_memory_halves_the_batch_once(machine, caplog):
    with caplog.at_level(logging.WARNING), machine.open(((1, 1, 2), (1, 8, 8))) as session:
        machine.cuda.memory_limit = 5 * 3 * SIDE * SIDE + 8 * 1000
        check(session.run(images(8)), images(8))
        (record,) = caplog.records
        assert record.name == "drexperts.runtime"
        assert "halved to 4" in record.getMessage()
        assert session._choice(8) == (1, 4)
        check(session.run(images(8)), images(8))
        machine.cuda.memory_limit = 0
        session._idle._workers[-1].close()
        with pytest.raises(OutOfMemoryError, match="free memory of the GPU"):
            session.run(images(8))
        assert len(caplog.records) == 1
    assert nothing_left(machine)


def test_small_batches_run_where_the_largest_does_not_fit(machine):
    """The largest batch of the profile would need more scratch memory than the GPU has."""
    machine.cuda.memory_limit = 60_000
    with machine.open(((1, 8, 64),), contexts=1) as session:
        check(session.run(images(1)), images(1))
        check(session.run(images(20)), images(20))  # 20 do not fit, 10 do
        assert session._limits.batch == 10
        for _ in range(3):
            check(session.run(images(10)), images(10))
            check(session.run(images(1)), images(1))
    assert nothing_left(machine)


def test_tensorrt_out_of_memory_counts_too(machine):
    with machine.open() as session:
        machine.trt.context_failure = "[executionContext.cpp] Cuda Runtime (out of memory)"
        with pytest.raises(OutOfMemoryError, match=r"out of memory: .*executionContext"):
            session.run(images(4))
        assert session._limits.batch == 2
        machine.trt.context_failure = None
        check(session.run(images(4)), images(4))


def test_out_of_memory_in_several_threads_halves_once(machine):
    with machine.open(((1, 8, 8),)) as session:
        cause = OutOfMemoryError("full")
        assert [session._limits.lower(8, cause) for _ in range(3)] == [True, True, True]
        assert session._limits.batch == 4
        assert not session._limits.lower(4, cause)


# Arrays on the GPU.


class Foreign:
    """An array of another library on the fake GPU, through DLPack by our own capsules."""

    def __init__(self, machine, pixels, *, device=0, offset=0):
        self.cuda, self.shape, self.device = machine.cuda, pixels.shape, device
        _, self.base = machine.cuda.cudaMalloc(pixels.nbytes + offset)
        self.address = self.base + offset
        machine.cuda.touch(self.address, pixels.nbytes)[:] = pixels.reshape(-1)
        self.waited_for = []

    def free(self):
        self.cuda.cudaFree(self.base)

    @property
    def __cuda_array_interface__(self):
        return {"data": (self.address, False), "shape": self.shape}

    def __dlpack_device__(self):
        return 2, self.device

    def __dlpack__(self, *, stream=None, max_version=None):
        self.waited_for.append(stream)
        capsule = gpu_array._capsule(self)  # type: ignore[arg-type]  # all that it reads is here
        tensor = list(gpu_array._exported.values())[-1][0]
        tensor.type_code, tensor.type_bits = 1, 8  # unsigned bytes
        return capsule


class View:
    """Stands in for StridedMemoryView, which asks the driver for the device of a pointer."""

    def __init__(self, array, dtype=np.uint8, strides=None, accessible=True):
        self.exporting_obj = array
        self.ptr, self.shape, self.device_id = array.address, array.shape, array.device
        self.dtype, self.strides = np.dtype(dtype), strides
        self.is_device_accessible = accessible


@pytest.fixture
def view(monkeypatch):
    """Reads Foreign arrays; `options` changes what is found."""
    utils = pytest.importorskip("cuda.core.utils", reason="cuda-core is not installed")
    options: dict[str, Any] = {}

    class Reader:
        @staticmethod
        def from_any_interface(array, stream_ptr):
            array.waited_for.append(stream_ptr)
            return View(array, **options)

    monkeypatch.setattr(utils, "StridedMemoryView", Reader)
    return options


def on_host(machine, array):
    size = int(np.prod(array.shape)) * 4
    address = array.__cuda_array_interface__["data"][0]
    return machine.cuda.touch(address, size).view(np.float32).reshape(array.shape).copy()


def test_arrays_stay_on_the_gpu(machine, view):
    stream = machine.cuda.cudaStreamCreateWithFlags(1)[1]
    with machine.open() as session:
        for seed in range(6):
            pixels = images(seed % 4 + 1, seed)
            array = Foreign(machine, pixels)
            outputs = session.run_on_gpu(array, int(stream))
            assert array.waited_for == [int(stream)]
            assert outputs["score"].stream == int(stream)
            machine.cuda.cudaStreamSynchronize(stream)
            check({name: on_host(machine, value) for name, value in outputs.items()}, pixels)
            array.free()
        assert machine.cuda.calls["cudaMemcpyAsync"] == 0
        assert machine.cuda.calls["cudaStreamBeginCapture"] == 0
    del outputs
    machine.cuda.cudaStreamDestroy(stream)
    assert nothing_left(machine)


def test_arrays_on_our_own_stream_are_done(machine, view):
    with machine.open(contexts=1) as session:
        array = Foreign(machine, images(2))
        outputs = session.run_on_gpu(array)
        array.free()
        assert outputs["score"].stream is None
        check({name: on_host(machine, value) for name, value in outputs.items()}, images(2))
    check({name: on_host(machine, value) for name, value in outputs.items()}, images(2))


def test_both_ways_in_turn_share_a_worker(machine, view):
    stream = machine.cuda.cudaStreamCreateWithFlags(1)[1]
    with machine.open(contexts=1) as session:
        kept = []
        for seed in range(4):
            array = Foreign(machine, images(2, seed))
            kept.append((session.run_on_gpu(array, int(stream)), seed, array))
            check(session.run(images(3, seed)), images(3, seed))
        machine.cuda.cudaStreamSynchronize(stream)
        for outputs, seed, array in kept:
            found = {name: on_host(machine, value) for name, value in outputs.items()}
            check(found, images(2, seed))
            array.free()


def test_calls_left_running_do_not_wait_for_each_other(machine, view):
    stream = machine.cuda.cudaStreamCreateWithFlags(1)[1]
    with machine.open(contexts=3) as session:
        arrays = [Foreign(machine, images(2, seed)) for seed in range(4)]
        kept = [session.run_on_gpu(array, int(stream)) for array in arrays[:2]]
        check(session.run(images(3)), images(3))
        kept.append(session.run_on_gpu(arrays[2], int(stream)))
        assert machine.cuda.calls["cudaEventSynchronize"] == 0
        assert stream.todo
        kept.append(session.run_on_gpu(arrays[3], int(stream)))  # waits for the first
        assert machine.cuda.calls["cudaEventSynchronize"] == 1
        assert len(stream.todo) == 3 * 2  # work and mark of the others
        machine.cuda.cudaStreamSynchronize(stream)
        for seed, outputs in enumerate(kept):
            found = {name: on_host(machine, value) for name, value in outputs.items()}
            check(found, images(2, seed))


def test_another_gpu_than_the_threads(make_machine, view):
    machine = make_machine(names=("first", "second"))
    with machine.open(gpu=1) as session:
        for _ in range(3):
            check(session.run(images(2)), images(2))
        machine.cuda.cudaSetDevice(1)
        array = Foreign(machine, images(2), device=1)
        machine.cuda.cudaSetDevice(0)
        outputs = session.run_on_gpu(array)
        check({name: on_host(machine, value) for name, value in outputs.items()}, images(2))
        assert outputs["score"].__dlpack_device__() == (2, 1)


def test_stream_by_protocol(machine, view):
    stream = machine.cuda.cudaStreamCreateWithFlags(1)[1]

    class Theirs:
        def __cuda_stream__(self):
            return 0, int(stream)

    with machine.open() as session:
        array = Foreign(machine, images(1))
        assert session.run_on_gpu(array, Theirs())["score"].stream == int(stream)
        machine.cuda.cudaStreamSynchronize(stream)


def test_dlpack_as_cuda_python_reads_it(machine):
    """With the real reader, which needs no driver for DLPack, unlike for the other protocol."""
    pytest.importorskip("cuda.core.utils", reason="cuda-core is not installed")
    stream = machine.cuda.cudaStreamCreateWithFlags(1)[1]
    with machine.open() as session:
        array = Foreign(machine, images(3))
        outputs = session.run_on_gpu(array, int(stream))
        assert array.waited_for == [int(stream)]
        machine.cuda.cudaStreamSynchronize(stream)
        check({name: on_host(machine, value) for name, value in outputs.items()}, images(3))
        with pytest.raises(UserError, match=r"pass uint8 .*, got float32 \[3\]"):
            session.run_on_gpu(outputs["score"], int(stream))
        machine.cuda.cudaStreamSynchronize(stream)
        with pytest.raises(UserError, match="got an array on device 1"):
            session.run_on_gpu(Foreign(machine, images(1), device=1))


@pytest.mark.parametrize("stream", [0, 1, 2, "stream", True])
def test_other_streams_are_refused(machine, view, stream):
    with machine.open() as session, pytest.raises(UserError, match="a stream of your own"):
        session.run_on_gpu(Foreign(machine, images(1)), stream)


@pytest.mark.parametrize(
    ("options", "array", "message"),
    [
        ({"dtype": np.float32}, {}, r"pass uint8 \[B, 3, 32, 32\] on GPU 0, got float32"),
        ({"strides": (1, 1, 1, 1)}, {}, "C-contiguous"),
        ({"accessible": False}, {}, "on device"),
        ({}, {"device": 1}, "got an array on device 1"),
        ({}, {"offset": 128}, "aligned to 256"),
    ],
)
def test_other_arrays_are_refused_and_nothing_is_rebuilt(machine, view, options, array, message):
    with machine.open(contexts=1) as session:
        session.run(images(1))
        view.update(options)
        with pytest.raises(UserError, match=message) as caught:
            session.run_on_gpu(Foreign(machine, images(1), **array))
        assert not isinstance(caught.value, DeviceError)
        assert machine.cuda.live["context"] == 1


@pytest.mark.parametrize("shape", [(5, 3, SIDE, SIDE), (0, 3, SIDE, SIDE), (1, 3, SIDE, 8), (3,)])
def test_other_shapes_are_refused(machine, view, shape):
    with machine.open() as session, pytest.raises(UserError, match="pass "):
        session.run_on_gpu(Foreign(machine, np.zeros(shape, np.uint8)))


def test_strides_of_a_contiguous_array(machine, view):
    view["strides"] = (7, SIDE * SIDE, SIDE, 1)  # that of a dimension of one says nothing
    with machine.open() as session:
        session.run_on_gpu(Foreign(machine, images(1)))


@pytest.mark.parametrize("array", [images(1), [1], object()])
def test_arrays_of_the_host_are_refused(machine, array):
    pytest.importorskip("cuda.core.utils", reason="cuda-core is not installed")
    with machine.open() as session, pytest.raises(UserError, match="pass an array on the GPU"):
        session.run_on_gpu(array)


@pytest.mark.parametrize("step", ["enqueue", "cudaEventRecord"])
def test_errors_behind_work_on_the_callers_stream(machine, view, step, monkeypatch):
    """Work that is already on the stream is waited for before its memory is freed."""
    stream = machine.cuda.cudaStreamCreateWithFlags(1)[1]
    array = Foreign(machine, images(2))
    enqueue = fake_gpu.IExecutionContext._enqueue
    with machine.open(contexts=1) as session:
        if step == "enqueue":
            fails_late = lambda *arguments: enqueue(*arguments) and False  # noqa: E731
            monkeypatch.setattr(fake_gpu.IExecutionContext, "_enqueue", fails_late)
        else:
            machine.cuda.fail(step, Error.cudaErrorInvalidValue)
        with pytest.raises(DeviceError):
            session.run_on_gpu(array, int(stream))
        assert stream.todo == []
    array.free()
    machine.cuda.cudaStreamDestroy(stream)
    assert nothing_left(machine)


def test_a_gpu_lost_while_an_array_is_read_is_not_the_arrays_fault(machine, view):
    class Lost(Foreign):
        waited_for = property(lambda self: self.lose(), lambda self, value: None)

        def lose(self):
            self.cuda.broken = ILLEGAL
            raise RuntimeError("an illegal memory access was encountered")

    array = Lost(machine, images(2))
    with machine.open() as session, pytest.raises(CudaError, match="lost to this process"):
        session.run_on_gpu(array)


# Opening.


def test_an_engine_for_another_gpu_is_refused_unread(make_machine, monkeypatch):
    machine = make_machine(capability=(9, 0))
    monkeypatch.setattr(machine.trt, "Runtime", None)
    with pytest.raises(BundleError, match=r"8\.9, Fake GPU has 9\.0; rebuild .*build_engine"):
        machine.open()


def test_a_gpu_that_does_not_exist(machine):
    with pytest.raises(UserError, match="gpu must be 0 to 0 on this machine, got 1"):
        machine.open(gpu=1)


@pytest.mark.parametrize("contexts", [0, -1, 1000, 1.5, True])
def test_other_numbers_of_contexts(machine, contexts):
    with pytest.raises(UserError, match="contexts must be"):
        machine.open(contexts=contexts)


def test_no_tensorrt(tmp_path, monkeypatch):
    fake_gpu.install(monkeypatch, FakeCuda())
    engine = engine_of(tmp_path / "model.engine", "tensorrt-rtx")
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("tensorrt-rtx"))):
        TensorrtSession(tmp_path / "model.engine", engine)


def test_no_gpu_for_real(tmp_path):
    """With the real libraries, where they are installed and there is no driver."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU")
    engine = engine_of(tmp_path / "model.engine", "tensorrt-rtx")
    with pytest.raises(DeviceError, match=r"needs a GPU: .*cudaErrorInsufficientDriver.*CPU"):
        TensorrtSession(tmp_path / "model.engine", engine)


# Observed by a profiler.


def test_observed_runs_have_a_context_of_their_own_and_no_graph(machine):
    heard = []

    class Profiler(fake_gpu.IProfiler):
        def report_layer_time(self, layer_name, ms):
            heard.append(layer_name)

    def attach(context):
        context.profiler = Profiler()

    with machine.open(contexts=1) as session:
        for _ in range(3):  # the last as a graph
            check(session.run(images(2)), images(2))
        assert heard == []
        times = session.observe(images(2), attach, 3)
        assert heard == ["all of it"] * 3
        assert len(times) == 3
        assert min(times) > 0
        for _ in range(3):
            check(session.run(images(2)), images(2))
        assert len(heard) == 3  # other calls are not observed
        with pytest.raises(UserError, match="takes 4 images at once, got 5"):
            session.observe(images(5), attach, 1)
    assert nothing_left(machine)


def test_observed_runs_that_fail_leave_nothing(machine):
    with machine.open() as session:
        machine.trt.enqueue_failure = "no luck"
        with pytest.raises(DeviceError, match="no luck"):
            session.observe(images(2), lambda context: None, 1)
        machine.trt.enqueue_failure = None
        check(session.run(images(2)), images(2))
    assert nothing_left(machine)
