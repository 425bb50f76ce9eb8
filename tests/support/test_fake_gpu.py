"""The stand-ins have no function, argument or name that the real libraries lack."""

import enum
import inspect
import re
import types
from pathlib import Path

import pytest

from drexperts.runtime import cuda as cuda_module
from support import fake_gpu
from support.fake_gpu import FakeCuda, FakeTensorrt

NAMES = [name for name in vars(FakeCuda) if name.startswith("cuda")]
FUNCTIONS = [name for name in NAMES if inspect.isfunction(vars(FakeCuda)[name])]
CLASSES = {
    "ICudaEngine": (fake_gpu.ICudaEngine, fake_gpu._RtxEngine),
    "IExecutionContext": (fake_gpu.IExecutionContext, fake_gpu._RtxExecutionContext),
    "EngineInspector": (fake_gpu.EngineInspector,),
    "IProfiler": (fake_gpu.IProfiler,),
    "IRuntimeConfig": (fake_gpu.IRuntimeConfig,),
    "IRuntimeCache": (fake_gpu.IRuntimeCache,),
    "ILogger": (fake_gpu.ILogger,),
    "Runtime": (fake_gpu.Runtime,),
    "Refitter": (fake_gpu.Refitter,),
    "OnnxParserRefitter": (fake_gpu.OnnxParserRefitter,),
}
ATTRIBUTES = {
    "ICudaEngine": ("num_io_tensors", "num_optimization_profiles"),
    "IExecutionContext": ("engine", "profiler"),
    "Runtime": ("engine_host_code_allowed",),
    "IRuntimeConfig": (
        "dynamic_shapes_kernel_specialization_strategy",
        "cuda_graph_strategy",
    ),
}
METHODS = [
    (name, method)
    for name, fakes in CLASSES.items()
    for fake in fakes
    for method, value in vars(fake).items()
    if inspect.isfunction(value) and (not method.startswith("_") or method == "__init__")
    # Engines and contexts are not created by their constructors.
    if method != "__init__" or name in ("Runtime", "Refitter", "OnnxParserRefitter")
]


@pytest.fixture(scope="module")
def runtime():
    return pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


def parameters(function):
    """The names of a fake's parameters, without self."""
    return list(inspect.signature(function).parameters)[1:]


def overloads(text, name):
    """The parameters of each overload in a docstring of pybind11."""
    for match in re.finditer(rf"\b{name}\((self: .*?)\) -> ", text or ""):
        yield re.findall(r"(?:^|, )(\w+): ", match[1])[1:]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_of_cuda(runtime, name):
    (declared,) = re.findall(rf"^{name}\((.*?)\)", getattr(runtime, name).__doc__, re.MULTILINE)[:1]
    names = [part.split(":")[0].split()[-1] for part in declared.split(", ") if part]
    assert parameters(vars(FakeCuda)[name]) == names


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FUNCTIONS)))
def test_constant_of_cuda(runtime, name):
    fake, real = getattr(FakeCuda, name), getattr(runtime, name)
    if isinstance(fake, int):
        assert int(real) == fake
    else:
        assert {member.name: int(getattr(real, member.name)) for member in fake} == {
            member.name: int(member) for member in fake
        }


def test_results_of_cuda(runtime):
    """A failed function returns its error and None for each value, like the stand-ins."""
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU")
    assert len(runtime.cudaGetDeviceCount()) == 2
    assert runtime.cudaMalloc(16)[1] is None
    assert len(runtime.cudaSetDevice(0)) == 1
    assert runtime.cudaGetErrorString(runtime.cudaError_t(2))[1] == b"out of memory"
    assert len(runtime.cudaGetLastError()) == 1


def test_lost_errors_exist(runtime):
    assert {error.name for error in runtime.cudaError_t} >= cuda_module.LOST


def test_every_function_called_is_faked():
    """So that the tests above compare the package's own calls with the real library."""
    called = set()
    for path in Path(cuda_module.__file__).parent.glob("*.py"):
        called |= set(re.findall(r"\bcuda[A-Z]\w+", path.read_text(encoding="utf-8")))
    called -= {"cudaErrorMemoryAllocation", *cuda_module.LOST}
    known = set(NAMES) | {kind.name for kind in (*fake_gpu.CopyKind, *fake_gpu.CaptureMode)}
    assert called == called & known


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_method_of_tensorrt(rtx, name, method):
    fakes = [fake for fake in CLASSES[name] if method in vars(fake)]
    declared = list(overloads(getattr(getattr(rtx, name), method).__doc__, method))
    for fake in fakes:
        assert parameters(vars(fake)[method]) in declared


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_of_tensorrt(rtx, name):
    for attribute in ATTRIBUTES[name]:
        assert isinstance(vars(getattr(rtx, name))[attribute], property)


def test_names_of_tensorrt(rtx):
    fake = FakeTensorrt(FakeCuda(), "tensorrt_rtx")
    for holder in (vars(FakeTensorrt), vars(fake)):
        for name, value in holder.items():
            if isinstance(value, enum.EnumType):
                assert set(value.__members__) <= set(getattr(rtx, name).__members__)
    for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        assert hasattr(rtx.ILogger, severity)


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_lean"])
def test_full_and_lean_tensorrt(module):
    """The same for full TensorRT and its lean runtime, where they are installed."""
    real = pytest.importorskip(module, reason=f"{module} is not installed")
    assert isinstance(real, types.ModuleType)
    fake = FakeTensorrt(FakeCuda(), module)
    for name in ("Refitter", "OnnxParserRefitter"):
        assert hasattr(real, name) >= hasattr(fake, name)
    for name in ("ICudaEngine", "IExecutionContext", "Runtime"):
        for method in (m for n, m in METHODS if n == name and m in vars(CLASSES[name][0])):
            declared = list(overloads(getattr(getattr(real, name), method).__doc__, method))
            assert parameters(vars(CLASSES[name][0])[method]) in declared


def test_lazy_streams_and_faults():
    """The stand-ins notice early reads and use of freed memory."""
    cuda = FakeCuda()
    stream, memory = cuda.cudaStreamCreateWithFlags(1)[1], cuda.cudaMalloc(16)[1]
    pinned = cuda.cudaHostAlloc(16, 0)[1]
    cuda.touch(memory, 16)[:] = 5
    cuda.cudaMemcpyAsync(pinned, memory, 16, 2, stream)
    assert cuda.touch(pinned, 16, "pinned")[0] == 0xAB
    cuda.cudaStreamSynchronize(stream)
    assert cuda.touch(pinned, 16, "pinned")[0] == 5
    assert cuda.faults == []
    cuda.cudaFree(memory)
    cuda.cudaMemcpyAsync(pinned, memory, 16, 2, stream)
    cuda.cudaStreamSynchronize(stream)
    assert len(cuda.faults) == 1
    cuda.cudaFree(memory)
    assert len(cuda.faults) == 2


def test_memory_freed_under_pending_work_is_a_fault():
    cuda = FakeCuda()
    stream, memory = cuda.cudaStreamCreateWithFlags(1)[1], cuda.cudaMalloc(16)[1]
    pinned = cuda.cudaHostAlloc(16, 0)[1]
    cuda.cudaMemcpyAsync(memory, pinned, 16, 1, stream)
    cuda.cudaFree(memory)
    assert len(cuda.faults) == 1
    cuda.cudaFreeHost(pinned)
    assert len(cuda.faults) == 2


def test_streams_events_and_memory_belong_to_a_gpu():
    cuda = FakeCuda(names=("first", "second"))
    stream, pinned = cuda.cudaStreamCreateWithFlags(1)[1], cuda.cudaHostAlloc(16, 0)[1]
    default = cuda.stream(1)
    cuda.cudaSetDevice(1)
    assert cuda.stream(1) is not default
    event, memory = cuda.cudaEventCreateWithFlags(2)[1], cuda.cudaMalloc(16)[1]
    assert cuda.cudaEventRecord(event, stream) == (fake_gpu.Error.cudaErrorInvalidResourceHandle,)
    cuda.cudaMemcpyAsync(memory, pinned, 16, 1, stream)
    cuda.cudaStreamSynchronize(stream)
    assert cuda.faults == ["memory of another GPU is used"]


RELEASES = ["cudaFree", "cudaFreeHost", "cudaEventSynchronize", "cudaStreamDestroy"]


@pytest.mark.parametrize("name", RELEASES)
def test_releases_spoil_a_capture_of_the_same_thread(name):
    cuda = FakeCuda()
    stream = cuda.cudaStreamCreateWithFlags(1)[1]
    cuda.cudaStreamBeginCapture(stream, 1)
    assert getattr(cuda, name)(None) == (fake_gpu.Error.cudaErrorStreamCaptureUnsupported,)
    assert cuda.cudaStreamEndCapture(stream)[0] == 901


def test_a_run_time_without_cuda_and_a_logger_that_is_gone():
    cuda = FakeCuda()
    trt = FakeTensorrt(cuda)
    trt.start_failure = "no CUDA"

    class Logger(fake_gpu.ILogger):
        def log(self, severity, msg):
            pass

    run_time = trt.Runtime(Logger())
    run_time.engine_host_code_allowed = True
    assert len(cuda.faults) == 1
    del run_time
    assert len(cuda.faults) == 2
    trt.Runtime(Logger())
    assert "the first logger is used and gone" in cuda.faults
