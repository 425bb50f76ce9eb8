"""Stand-ins for cuda-python and TensorRT, which test_fake_gpu compares with the real ones.

Streams are lazy: enqueued work runs when something waits for it, so that results read too early are
wrong. Memory is the host's. Faults fail the test: use of freed memory or of another GPU's memory,
release under pending work, a context used by two threads, a graph whose context changed and so on.
Resources that are not freed are counted. The n-th call of a function can be made to fail.
"""

import ctypes
import enum
import functools
import json
import math
import sys
import threading
import types
import weakref
from collections import Counter
from contextlib import contextmanager
from typing import Any

import numpy as np

from drexperts.runtime.compatibility import this_platform
from drexperts.runtime.manifest import BatchProfile, Engine, EnginePlan, sha256_of

SIDE = 32
SHARES = (np.arange(10) + 1) / 55 / 255


class Error(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorInvalidResourceHandle = 400  # noqa: N815
    cudaErrorNotReady = 600  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class CopyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815


class CaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0  # noqa: N815
    cudaStreamCaptureModeThreadLocal = 1  # noqa: N815
    cudaStreamCaptureModeRelaxed = 2  # noqa: N815


class _Work:
    """Work on a stream, and the addresses of the memory that it uses."""

    def __init__(self, run, uses):
        self.run, self.uses = run, uses


class _Stream:
    def __init__(self, handle, device):
        self.handle, self.device = handle, device
        self.todo = []
        self.captured = None
        self.invalid = False

    def __int__(self):
        return self.handle

    def drain(self, until=lambda: False):
        while self.todo and not until():
            self.todo.pop(0).run()


class _Event:
    def __init__(self, device, timed):
        self.device, self.stream, self.timed = device, None, timed
        self.reached = False


class _Graph:
    def __init__(self, work):
        self.work = work


def _api(values, unsafe=False):
    """A function of the CUDA runtime that returns `values` values after the error.

    unsafe: forbidden to a thread that captures, unless in relaxed mode
    """

    def decorate(function):
        @functools.wraps(function)
        def wrapped(self, *arguments):
            with self.lock:
                name = function.__name__
                self.calls[name] += 1
                error = self.broken or self._injected(name)
                if unsafe and error is None:
                    error = self._forbidden_while_capturing()
                if error is None:
                    result = function(self, *arguments)
                    if not isinstance(result, Error):
                        return (Error.cudaSuccess, *(() if values == 0 else (result,)))
                    error = result
                self.last = error
                return (Error(error), *([None] * values))

        return wrapped

    return decorate


class FakeCuda(types.ModuleType):
    """`cuda.bindings.runtime` with one GPU, or as many as `names`."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaEventDefault = 0  # noqa: N815
    cudaEventDisableTiming = 2  # noqa: N815
    cudaHostAllocDefault = 0  # noqa: N815
    cudaMemcpyKind = CopyKind  # noqa: N815
    cudaStreamCaptureMode = CaptureMode  # noqa: N815
    cudaError_t = Error  # noqa: N815

    def __init__(self, names=("Fake GPU",), capability=(8, 9)):
        super().__init__("cuda.bindings.runtime")
        self.lock = threading.RLock()
        self.names, self.capability = names, capability
        self.calls: Counter[str] = Counter()
        self.live: Counter[str] = Counter()
        self.faults: list[str] = []
        self.broken = None
        self.last = Error.cudaSuccess
        self.memory_limit = 2**40
        self.thread = threading.local()
        self._to_fail = {}
        self._streams = {}
        self._memory = {}  # address -> (size, keeper, kind, device)

    # For tests.

    def fail(self, name, error, at=1, times=1):
        """Let `times` calls of a function fail, from the `at`-th one from now on."""
        first = self.calls[name] + at
        self._to_fail[name] = (range(first, first + times), error)

    def fault(self, text):
        self.faults.append(text)

    def touch(self, address, nbytes, kind="device", device=None):
        """The bytes at an address as an array; a fault unless they are allocated on `device`."""
        for start, (size, _, found, where) in self._memory.items():
            if start <= address and address + nbytes <= start + size and found == kind:
                if kind == "device" and device not in (None, where):
                    self.fault("memory of another GPU is used")
                return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)
        self.fault(f"{kind} memory at {address} of {nbytes} bytes is used and not allocated")
        return np.zeros(nbytes, np.uint8)

    def allocated(self, kind="device"):
        return sum(size for size, _, found, _ in self._memory.values() if found == kind)

    @property
    def device(self):
        """The current device of the calling thread."""
        return getattr(self.thread, "device", 0)

    def stream(self, handle):
        handle = int(handle)
        if handle not in (0, 1, 2):
            return self._streams[handle]
        # Each GPU has its own default streams under the same handles.
        key = (self.device, handle)
        return self._streams.setdefault(key, _Stream(handle, self.device))

    def put(self, handle, work, uses=()):
        stream = self.stream(handle)
        queue = stream.todo if stream.captured is None else stream.captured
        queue.append(_Work(work, uses))

    def _injected(self, name):
        calls, error = self._to_fail.get(name, ((), None))
        if self.calls[name] not in calls:
            return None
        if name == "cudaStreamEndCapture":  # it ends the capture, even if it fails
            self.thread.capturing.invalid = True
            return None
        return error

    def _forbidden_while_capturing(self):
        relaxed = getattr(self.thread, "mode", None) == CaptureMode.cudaStreamCaptureModeRelaxed
        if getattr(self.thread, "capturing", None) is not None and not relaxed:
            self.thread.capturing.invalid = True
            return Error.cudaErrorStreamCaptureUnsupported
        return None

    # The functions of the CUDA runtime.

    @_api(1)
    def cudaDriverGetVersion(self):  # noqa: N802
        return 13040

    @_api(1)
    def cudaGetDeviceCount(self):  # noqa: N802
        return len(self.names) or Error.cudaErrorNoDevice

    @_api(1)
    def cudaGetDeviceProperties(self, device):  # noqa: N802
        major, minor = self.capability
        name = self.names[device].encode()
        return types.SimpleNamespace(name=name, major=major, minor=minor, totalGlobalMem=2**33)

    @_api(1)
    def cudaGetDevice(self):  # noqa: N802
        return self.device

    @_api(0)
    def cudaSetDevice(self, device):  # noqa: N802
        self.thread.device = device

    def cudaGetLastError(self):  # noqa: N802
        last, self.last = self.last, Error.cudaSuccess
        return (Error(last),)

    def cudaGetErrorString(self, error):  # noqa: N802
        return Error.cudaSuccess, f"what {error.name} says".encode()

    @_api(1)
    def cudaStreamCreateWithFlags(self, flags):  # noqa: N802
        stream = _Stream(1000 + 16 * self.calls["cudaStreamCreateWithFlags"], self.device)
        self._streams[stream.handle] = stream
        self.live["stream"] += 1
        return stream

    @_api(0)
    def cudaStreamSynchronize(self, stream):  # noqa: N802
        if self.stream(stream).captured is not None:
            self.stream(stream).invalid = True
            return Error.cudaErrorStreamCaptureUnsupported
        return self.stream(stream).drain()

    @_api(0, unsafe=True)
    def cudaStreamDestroy(self, stream):  # noqa: N802
        if self.stream(stream).todo:
            self.fault("a stream is destroyed with work on it")
        del self._streams[int(stream)]
        self.live["stream"] -= 1

    @_api(1)
    def cudaEventCreateWithFlags(self, flags):  # noqa: N802
        self.live["event"] += 1
        return _Event(self.device, flags == self.cudaEventDefault)

    @_api(0)
    def cudaEventRecord(self, event, stream):  # noqa: N802
        if event.device != self.stream(stream).device:
            return Error.cudaErrorInvalidResourceHandle
        event.stream, event.reached = self.stream(stream), False
        return self.put(stream, lambda: setattr(event, "reached", True))

    @_api(0, unsafe=True)
    def cudaEventSynchronize(self, event):  # noqa: N802
        event.stream.drain(lambda: event.reached)

    @_api(1)
    def cudaEventElapsedTime(self, start, end):  # noqa: N802
        if not (start.timed and end.timed):
            return Error.cudaErrorInvalidResourceHandle
        if not (start.reached and end.reached):
            return Error.cudaErrorNotReady
        return 2.5  # milliseconds

    @_api(0)
    def cudaEventDestroy(self, event):  # noqa: N802
        self.live["event"] -= 1

    @_api(0)
    def cudaStreamWaitEvent(self, stream, event, flags):  # noqa: N802
        self.put(stream, lambda: event.stream.drain(lambda: event.reached))

    @_api(1, unsafe=True)
    def cudaMalloc(self, size):  # noqa: N802
        if self.allocated() + size > self.memory_limit:
            return Error.cudaErrorMemoryAllocation
        return self._allocate(size, "device")

    @_api(1, unsafe=True)
    def cudaHostAlloc(self, size, flags):  # noqa: N802
        return self._allocate(size, "pinned")

    def _allocate(self, size, kind):
        keeper = (ctypes.c_uint8 * (size + 256))()
        address = -(-ctypes.addressof(keeper) // 256) * 256
        ctypes.memset(address, 0xAB, size)
        self._memory[address] = (size, keeper, kind, self.device)
        self.live[kind] += 1
        return address

    @_api(0, unsafe=True)
    def cudaFree(self, devPtr):  # noqa: N802, N803
        return self._free(devPtr, "device")

    @_api(0, unsafe=True)
    def cudaFreeHost(self, ptr):  # noqa: N802
        return self._free(ptr, "pinned")

    def _free(self, address, kind):
        size, keeper, found, _ = self._memory.pop(address, (0, None, None, None))
        if found != kind:
            self.fault(f"{kind} memory is freed that is not allocated")
            return Error.cudaErrorInvalidValue
        pending = (work for stream in self._streams.values() for work in stream.todo)
        if any(address <= used < address + size for work in pending for used in work.uses):
            self.fault(f"{kind} memory is freed while work that uses it is pending")
        ctypes.memset(address, 0xCD, size)
        self.live[kind] -= 1
        del keeper
        return None

    @_api(0)
    def cudaMemcpyAsync(self, dst, src, count, kind, stream):  # noqa: N802
        ends = ("device", "pinned") if kind == 1 else ("pinned", "device")

        device = self.stream(stream).device

        def copy():
            source = self.touch(src, count, ends[1], device)
            self.touch(dst, count, ends[0], device)[:] = source

        self.put(stream, copy, (int(dst), int(src)))

    @_api(1)
    def cudaThreadExchangeStreamCaptureMode(self, mode):  # noqa: N802
        before = getattr(self.thread, "mode", CaptureMode.cudaStreamCaptureModeGlobal)
        self.thread.mode = mode
        return before

    @_api(0)
    def cudaStreamBeginCapture(self, stream, mode):  # noqa: N802
        stream = self.stream(stream)
        stream.captured, stream.invalid, self.thread.capturing = [], False, stream

    @_api(1)
    def cudaStreamEndCapture(self, stream):  # noqa: N802
        stream = self.stream(stream)
        work, stream.captured, self.thread.capturing = stream.captured, None, None
        if stream.invalid:
            return Error.cudaErrorStreamCaptureInvalidated
        self.live["graph"] += 1
        return _Graph(work)

    @_api(1)
    def cudaGraphInstantiate(self, graph, flags):  # noqa: N802
        self.live["executable graph"] += 1
        return _Graph(graph.work)

    @_api(0)
    def cudaGraphLaunch(self, graphExec, stream):  # noqa: N802, N803
        self.stream(stream).todo.extend(graphExec.work)

    @_api(0)
    def cudaGraphDestroy(self, graph):  # noqa: N802
        self.live["graph"] -= 1

    @_api(0)
    def cudaGraphExecDestroy(self, graphExec):  # noqa: N802, N803
        self.live["executable graph"] -= 1


class _State:
    """The state of a context that pending work refers to."""

    def __init__(self, engine):
        self.engine = engine
        self.profile: Any = None
        self.shape: Any = None
        self.needed: Any = None
        self.addresses = {}
        self.scratch = (0, 0)
        self.version = 0  # changes with everything that a graph would have frozen
        self.pending: Counter[int] = Counter()  # by stream
        self.warm = False
        self.alive = True


class IExecutionContext:
    def __init__(self, engine):
        self._state = _State(engine)
        self._busy = threading.Lock()
        self.engine, self.profiler = engine, None
        self._cuda, self._trt = engine._cuda, engine._trt
        self._cuda.live["context"] += 1
        self._trt.contexts_made += 1
        self._trt.most_contexts = max(self._trt.most_contexts, self._cuda.live["context"])

    def __del__(self):
        self._cuda.live["context"] -= 1
        self._state.alive = False
        if sum(self._state.pending.values()):
            self._cuda.fault("a context is destroyed with work on its way")

    @contextmanager
    def _alone(self):
        if not self._busy.acquire(blocking=False):
            self._cuda.fault("a context is used by two threads at once")
            yield
            return
        try:
            with self._cuda.lock:
                self._state.version += 1
                yield
        finally:
            self._busy.release()

    def set_optimization_profile_async(self, profile_index, stream_handle):
        with self._alone():
            state, handle = self._state, int(stream_handle)
            state.profile, state.shape, state.needed = profile_index, None, None
            state.pending[handle] += 1
            self._cuda.put(handle, lambda: state.pending.subtract([handle]))
            return 0 <= profile_index < len(self._state.engine._plan["profiles"])

    def set_input_shape(self, name, shape):
        with self._alone():
            low, _, high = self._state.engine._plan["profiles"][self._state.profile]
            if not low <= shape[0] <= high or tuple(shape[1:]) != (3, SIDE, SIDE):
                self._trt.say(f"shape {shape} is outside the profile")
                return False
            self._state.shape, self._state.needed = tuple(shape), 1000 * high
            return True

    def get_tensor_shape(self, name):
        return (self._state.shape[0], *self._state.engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name, memory):
        with self._alone():
            self._state.addresses[name] = memory
            return memory % 256 == 0

    def update_device_memory_size_for_shapes(self):
        with self._alone():
            if self._trt.size_failure:
                self._trt.say(self._trt.size_failure)
                return 0
            self._state.needed = 1000 * self._state.shape[0]
            return self._state.needed

    def set_device_memory(self, memory, size):
        with self._alone():
            self._state.scratch = (memory, size)

    def execute_async_v3(self, stream_handle):
        with self._alone():
            return self._enqueue(stream_handle)

    def _enqueue(self, handle):
        state, cuda, trt = self._state, self._cuda, self._trt
        state.version -= 1  # running changes nothing
        stream = cuda.stream(handle)
        if trt.enqueue_failure:
            trt.say(trt.enqueue_failure)
            return False
        if stream.captured is not None and (trt.refuses_capture or not state.warm):
            trt.say("the work cannot be captured")
            stream.invalid = True
            return False
        if not state.engine._device == stream.device == cuda.device:
            cuda.fault("an engine of another GPU is run")
        if any(count for other, count in state.pending.items() if other != int(handle)):
            cuda.fault("a context runs on two streams at once")
        names = {"pixels", *state.engine._outputs}
        if state.shape is None or set(state.addresses) != names:
            trt.say("shapes or addresses are missing")
            return False
        state.warm = True
        if self.profiler is not None and stream.captured is None:
            for place, layer in enumerate(trt.layers):
                name = layer if isinstance(layer, str) else layer["Name"]
                self.profiler.report_layer_time(name, 0.5 + place)
        stream.invalid = stream.invalid or trt.spoils_capture
        version, captured = state.version, stream.captured is not None
        state.pending[int(handle)] += not captured
        uses = (*state.addresses.values(), state.scratch[0])
        cuda.put(handle, lambda: self._work(state, cuda, int(handle), version, captured), uses)
        return True

    @staticmethod
    def _work(state, cuda, handle, version, captured):
        if not captured:
            state.pending[handle] -= 1
        elif not state.alive or state.version != version:
            cuda.fault("a graph is launched after its context changed or ended")
        address, size = state.scratch
        if size < state.needed:
            cuda.fault("a context has too little scratch memory")
        touch = functools.partial(cuda.touch, device=state.engine._device)
        touch(address, state.needed)[:] = 0xEE
        pixels = touch(state.addresses["pixels"], math.prod(state.shape)).reshape(state.shape)
        for name, values in expected(pixels).items():
            content = np.frombuffer(values.tobytes(), np.uint8)
            touch(state.addresses[name], len(content))[:] = content


class _RtxExecutionContext(IExecutionContext):
    def is_stream_capturable(self, stream):
        return self._trt.capturable


def expected(pixels):
    """The outputs of the engine, which are those of conftest's toy graph."""
    score = pixels.astype(np.float64).mean(axis=(1, 2, 3))
    return {
        "score": score.astype(np.float32),
        "weights": (score[:, None] * SHARES).astype(np.float32),
    }


class ICudaEngine:
    _outputs = ("score", "weights")

    def __init__(self, plan, trt, cuda):
        self._plan, self._trt, self._cuda, self._device = plan, trt, cuda, cuda.device
        self.num_io_tensors = 3
        self.num_optimization_profiles = len(plan["profiles"])

    def get_tensor_name(self, index):
        return ("pixels", *self._outputs)[index]

    def get_tensor_mode(self, name):
        modes = self._trt.TensorIOMode
        return modes.INPUT if name == "pixels" else modes.OUTPUT

    def get_tensor_dtype(self, name):
        return getattr(self._trt.DataType, self._plan["types"][name])

    def get_tensor_shape(self, name):
        return {"pixels": (-1, 3, SIDE, SIDE), "score": (-1,), "weights": (-1, 10)}[name]

    def get_tensor_profile_shape(self, name, profile_index):
        return [(batch, 3, SIDE, SIDE) for batch in self._plan["profiles"][profile_index]]

    def create_engine_inspector(self):
        return EngineInspector(self._trt)

    def create_execution_context(self, strategy):
        if self._trt.context_failure:
            self._trt.say(self._trt.context_failure)
            return None
        if not self._plan.get("refitted", True):
            self._trt.say("weights are missing")
            return None
        return IExecutionContext(self)


class _RtxEngine(ICudaEngine):
    def create_runtime_config(self):
        return IRuntimeConfig(self._trt)

    def create_execution_context(self, runtime_config):
        assert runtime_config._strategy is self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        kinds = self._trt.DynamicShapesKernelSpecializationStrategy
        assert runtime_config.dynamic_shapes_kernel_specialization_strategy is kinds.EAGER
        assert runtime_config.cuda_graph_strategy is self._trt.CudaGraphStrategy.DISABLED
        runtime_config._cache.kernels += b" kernel"
        return _RtxExecutionContext(self)


class EngineInspector:
    def __init__(self, trt):
        self._trt = trt

    def get_engine_information(self, format):
        assert format is self._trt.LayerInformationFormat.JSON
        return json.dumps({"Layers": self._trt.layers})


class IRuntimeCache:
    def __init__(self, trt):
        self._trt = trt
        self.kernels = b"kernels:"

    def deserialize(self, blob):
        fits = blob.startswith(b"kernels:")
        if fits:
            self.kernels = blob
            self._trt.caches_read.append(blob)
        return fits

    def serialize(self):
        return self.kernels


class IRuntimeConfig:
    def __init__(self, trt):
        self._trt = trt
        self.dynamic_shapes_kernel_specialization_strategy = None
        self.cuda_graph_strategy = None

    def create_runtime_cache(self):
        return IRuntimeCache(self._trt)

    def set_runtime_cache(self, cache):
        self._cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy):
        self._strategy = strategy


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity, msg):
        raise NotImplementedError


class IProfiler:
    def report_layer_time(self, layer_name, ms):
        raise NotImplementedError


class Runtime:
    _trt: Any
    _cuda: Any

    def __init__(self, logger):
        self.logger = logger
        self._host_code = self._is_made = False
        self._trt.take(logger)
        if self._trt.start_failure:
            self._trt.say(self._trt.start_failure)
            if self._trt.is_null_without_cuda:
                raise TypeError("pybind11::init(): factory function returned nullptr")
        self._is_made = True

    def __del__(self):
        if self._is_made:
            self._touch()

    def _touch(self):
        if self._trt.start_failure:
            self._cuda.fault("the process is gone: the run time had not started")

    @property
    def engine_host_code_allowed(self):
        return self._host_code

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed):
        self._touch()
        self._host_code = allowed

    def deserialize_cuda_engine(self, serialized_engine):
        self._touch()
        trt = self._trt
        self.logger.log(ILogger.WARNING, "the engine is of another model of GPU")
        if not serialized_engine.startswith(b"plan"):
            trt.say("magicTag mismatch")
            return None
        plan = json.loads(serialized_engine[4:])
        if plan.get("host_code") and not self.engine_host_code_allowed:
            trt.say("host code is not allowed")
            return None
        return trt.ICudaEngine(plan, trt, self._cuda)


class Refitter:
    def __init__(self, engine, logger):
        self.engine = engine

    def refit_cuda_engine(self):
        self.engine._plan["refitted"] = True
        return True


class OnnxParserRefitter:
    def __init__(self, refitter, logger):
        self.logger = logger

    def refit_from_bytes(self, model, path=None):
        good = b"pixels" in model
        if not good:
            self.logger.log(ILogger.ERROR, "this is no graph")
        return good


CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
_KernelSpecialization = enum.Enum("_KernelSpecialization", "LAZY EAGER NONE")


class FakeTensorrt(types.ModuleType):
    """`tensorrt`, `tensorrt_rtx` or `tensorrt_lean`."""

    ILogger, IProfiler = ILogger, IProfiler
    LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")
    TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
    DataType = enum.Enum("DataType", "FLOAT HALF UINT8")
    ExecutionContextAllocationStrategy = enum.Enum(
        "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
    )

    def __init__(self, cuda, name="tensorrt", version="11.4.0.106"):
        super().__init__(name)
        self.__version__ = version
        self.Runtime = type("Runtime", (Runtime,), {"_trt": self, "_cuda": cuda})
        self.ICudaEngine = _RtxEngine if name == "tensorrt_rtx" else ICudaEngine
        if name != "tensorrt_lean":
            self.Refitter, self.OnnxParserRefitter = Refitter, OnnxParserRefitter
        if name == "tensorrt_rtx":
            self.CudaGraphStrategy = CudaGraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = _KernelSpecialization
        self._cuda = cuda
        self._first_logger: Any = None
        self._logger: Any = None
        self.start_failure = self.size_failure = None
        self.is_null_without_cuda = False
        self.contexts_made = self.most_contexts = 0
        self.caches_read = []
        self.layers = [{"Name": "all of it"}]
        self.refuses_capture = self.spoils_capture = False
        self.capturable = True
        self.enqueue_failure = self.context_failure = None

    def take(self, logger):
        """Keep weak references: TensorRT has pointers, and uses the first one for ever."""
        self._logger = weakref.ref(logger)
        self._first_logger = self._first_logger or self._logger

    def say(self, text):
        if self._first_logger() is None:
            self._cuda.fault("the first logger is used and gone")
        if (logger := self._logger()) is not None:
            logger.log(ILogger.ERROR, text)


def plan_bytes(profiles=((1, 2, 4),), **more):
    """A plan that the stand-ins deserialise."""
    types_ = {"pixels": "UINT8", "score": "FLOAT", "weights": "FLOAT"} | more.pop("types", {})
    return b"plan" + json.dumps({"profiles": profiles, "types": types_} | more).encode()


def install(monkeypatch, cuda, *tensorrts):
    """Let the package import the stand-ins and none of the real libraries."""
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    for module in tensorrts:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)


def engine_of(path, backend="tensorrt", profiles=((1, 2, 4),), **plan):
    """The manifest's record of a plan file."""
    record = {
        "version": "1.7.1.116" if backend == "tensorrt-rtx" else "11.4.0.106",
        "capabilities": ("8.9",),
        "platform": this_platform(),
        "profiles": tuple(BatchProfile(*profile) for profile in profiles),
        "version_compatible": False,
        "hardware_compatibility": "none",
        "stripped": False,
        "plugin_layers": 0,
        "fused_attention": True,
        "onnx_sha256": "0" * 64,
        "inspected": True,
    }
    return Engine(
        backend=backend,
        file=path.name,
        sha256=sha256_of(path) if path.exists() else "0" * 64,
        precision="fp16",
        max_batch=max(profile[2] for profile in profiles),
        versions={},
        parity=None,
        invariance=None,
        plan=EnginePlan(**(record | plan)),
    )
