"""A TensorRT plan: deserialised, compared with its record, and executed in contexts.

The calls are those of TensorRT 11.4 and TensorRT for RTX 1.7, checked by name and signature.
Deserialising and everything after it needs a GPU, and has not been executed.
"""

import contextlib
import ctypes
import functools
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drexperts.runtime.compatibility import Gpu
from drexperts.runtime.cuda import Stream
from drexperts.runtime.errors import (
    BundleError,
    ChangedFileError,
    DeviceError,
    OutOfMemoryError,
)
from drexperts.runtime.files import written_whole
from drexperts.runtime.manifest import Engine, EnginePlan, read_recorded
from drexperts.runtime.onnx_file import check_self_contained
from drexperts.runtime.places import cache_folder
from drexperts.runtime.wording import rebuild

_log = logging.getLogger("drexperts.runtime")


@dataclass(frozen=True)
class Tensor:
    """An input or output of the engine. shape: for one image; itemsize: in bytes"""

    name: str
    shape: tuple[int, ...]
    itemsize: int

    def nbytes(self, batch: int) -> int:
        return batch * math.prod(self.shape) * self.itemsize


class LoadedPlan:
    """The engine of a plan on the current GPU. Contexts are created and destroyed one at a time.

    input: uint8 [3, H, W] per image
    outputs: float32

    Raises BundleError for a plan that TensorRT refuses, with what it logged, or that differs from
    its record, and DeviceError if TensorRT cannot start.
    """

    def __init__(
        self, path: str | os.PathLike[str], engine: Engine, library: Any, gpu: Gpu
    ) -> None:
        assert engine.plan is not None, "the manifest gives every TensorRT engine a plan"
        self._path = Path(path)
        self._record = engine
        self._library = library
        self._logger = _logger(library)
        self._lock = threading.Lock()
        self.profiles = engine.plan.profiles
        self._runtime = self._started()
        self._engine = self._deserialised(engine.plan)
        if engine.plan.stripped:
            self._refit(engine.plan)
        self.input, self.outputs = self._tensors()
        self._check_profiles()
        self._kernels = _KernelCache(self._engine, engine, gpu, library)

    def close(self) -> None:
        """Free the engine, whose contexts must all be closed; keep the kernels it compiled."""
        self._kernels.save()
        del self._kernels, self._engine, self._runtime

    def make_context(self) -> Any:
        """A context without scratch memory. Raises DeviceError."""
        with self._lock:
            return self.attempt("make a context", self._kernels.make_context, self._engine)

    def end_context(self, holder: "Execution") -> None:
        with self._lock:
            holder.context = None

    def attempt(self, action: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of TensorRT and return its result.

        Raises DeviceError if the result is None or False, or 0 with an error logged.
        """
        _said.errors.clear()
        result = function(*arguments)
        del function  # the traceback of an error would keep its context alive
        if result is None or result is False or (result == 0 and _said.errors):
            raise self.failure(action)
        return result

    def failure(self, action: str) -> DeviceError:
        """The error for an action that failed, with what TensorRT logged."""
        return DeviceError(
            f"TensorRT could not {action}: {_reason()}; run it again, and if it fails again "
            + rebuild(self._record.backend)
        )

    def _started(self) -> Any:
        """TensorRT's runtime. Without CUDA it is missing, or using or freeing it crashes."""
        _said.errors.clear()
        try:
            runtime = self._library.Runtime(self._logger)
        except TypeError:  # pybind11 raises it for a null pointer
            runtime = None
        if runtime is None or _said.errors:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))  # so that it is never freed
            raise DeviceError(
                f"TensorRT could not start: {_reason()}; check the GPU and its driver with "
                "`nvidia-smi`"
            )
        return runtime

    def _refusal(self, reason: str) -> BundleError:
        return BundleError(f"{str(self._path)!r} {reason}; {rebuild(self._record.backend)}")

    def _deserialised(self, plan: EnginePlan) -> Any:
        content = self._record.read(self._path)
        if plan.version_compatible:
            # Such a plan contains the lean runtime of its own version, which is machine code.
            self._runtime.engine_host_code_allowed = True
        _said.errors.clear()
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self._refusal(f"was refused by TensorRT: {_reason()}")
        return engine

    def _refit(self, plan: EnginePlan) -> None:
        """Put the weights of the bundle's graph back into a plan without weights."""
        model = self._path.with_name("model.onnx")
        if not hasattr(self._library, "OnnxParserRefitter"):
            raise self._refusal("has no weights, and the lean runtime cannot restore them")
        try:  # the weights of another graph would give other scores and no error
            content = read_recorded(model, plan.onnx_sha256, "restore it")
        except ChangedFileError as cause:
            other = f"has no weights, and was not built from this {model.name}"
            raise self._refusal(other) from cause
        check_self_contained(content, repr(str(model)))
        _said.errors.clear()
        refitter = self._library.Refitter(self._engine, self._logger)
        parser = self._library.OnnxParserRefitter(refitter, self._logger)
        if not (parser.refit_from_bytes(content) and refitter.refit_cuda_engine()):
            raise self._refusal(f"has no weights, and refused those of {model.name}: {_reason()}")

    def _tensors(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        engine, modes, types = self._engine, self._library.TensorIOMode, self._library.DataType
        found: dict[Any, list[Tensor]] = {modes.INPUT: [], modes.OUTPUT: []}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            mode, kind = engine.get_tensor_mode(name), engine.get_tensor_dtype(name)
            shape = tuple(engine.get_tensor_shape(name))
            wanted, itemsize = (types.UINT8, 1) if mode == modes.INPUT else (types.FLOAT, 4)
            if kind != wanted or min(shape[1:], default=1) < 1:
                raise self._refusal(f"has a tensor {name!r} of type {kind} and shape {shape}")
            found[mode].append(Tensor(name, shape[1:], itemsize))
        inputs, outputs = found[modes.INPUT], found[modes.OUTPUT]
        if len(inputs) != 1 or len(inputs[0].shape) != 3 or not outputs:
            raise self._refusal(f"does not take one batch of images: {inputs} -> {outputs}")
        return inputs[0], tuple(outputs)

    def _check_profiles(self) -> None:
        count = self._engine.num_optimization_profiles
        shapes = [
            self._engine.get_tensor_profile_shape(self.input.name, index) for index in range(count)
        ]
        found = [tuple(shape[0] for shape in bounds) for bounds in shapes]
        if found != [(profile.min, profile.opt, profile.max) for profile in self.profiles]:
            recorded = ", ".join(map(str, self.profiles))
            raise self._refusal(f"has the profiles {found}, its record says {recorded}")


class Execution:
    """A context with one profile and one batch size for its whole life.

    CUDA graphs need this: a graph refers to the context as it was when the graph was recorded.
    Contexts that never run at the same time may share scratch memory.
    """

    def __init__(self, plan: LoadedPlan, batch: int) -> None:
        self._plan = plan
        self.batch = batch
        self.context = plan.make_context()

    def choose(self, profile: int, stream: Stream) -> None:
        """Set the profile and the shapes, once. Raises DeviceError."""
        plan = self._plan
        # The context gets no local variable: the traceback of an error would keep it alive.
        choose = f"choose profile {profile}"
        plan.attempt(choose, self.context.set_optimization_profile_async, profile, int(stream))
        stream.synchronize()  # it may run on another stream
        name, shape = plan.input.name, (self.batch, *plan.input.shape)
        plan.attempt(f"take the shape {shape}", self.context.set_input_shape, name, shape)
        for tensor in plan.outputs:
            # Outputs are read with these shapes, so the engine must agree.
            given = tuple(self.context.get_tensor_shape(tensor.name))
            if given != (self.batch, *tensor.shape):
                raise plan.failure(f"give {tensor}: it gives {given}")

    def scratch(self) -> int:
        """Bytes of scratch memory for its shapes, which must be set. Raises DeviceError."""
        action = "report its scratch memory"
        return int(self._plan.attempt(action, self.context.update_device_memory_size_for_shapes))

    def use_scratch(self, address: int, nbytes: int) -> None:
        self.context.set_device_memory(address, nbytes)

    def bind(self, addresses: dict[str, int]) -> None:
        """Set the address of each input and output on the GPU, aligned to 256 bytes."""
        for name, address in addresses.items():
            self._plan.attempt(f"bind {name!r}", self.context.set_tensor_address, name, address)

    def enqueue(self, stream: int) -> None:
        """Enqueue the engine's work on a stream. Raises DeviceError."""
        action = f"run a batch of {self.batch}"
        self._plan.attempt(action, self.context.execute_async_v3, stream)

    def can_be_captured(self, stream: int) -> bool:
        """Whether a CUDA graph can record it; TensorRT without RTX shows that only by failing."""
        ask = getattr(self.context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(stream))

    def close(self) -> None:
        self._plan.end_context(self)


class _Said(threading.local):
    """The errors that TensorRT logged in this thread since the last call began."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=20)


_said = _Said()


def _reason() -> str:
    """What TensorRT logged; raises OutOfMemoryError if it says that memory is exhausted."""
    said = "; ".join(_said.errors) or "it logged no reason"
    if "out of memory" in said.lower() or "outofmemory" in said.lower():
        raise OutOfMemoryError(
            f"TensorRT is out of memory: {said}; free memory of the GPU (`nvidia-smi` lists the "
            "processes that use it), or use fewer contexts or a smaller batch"
        )
    return said


@functools.cache
def _logger(library: Any) -> Any:
    """The logger of a library. Never freed, because TensorRT keeps a pointer to the first one."""
    errors = (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR)

    def log(_: Any, severity: Any, message: str) -> None:
        if severity in errors:
            _said.errors.append(message)
        # Errors as well, because those of TensorRT's own threads are not collected.
        if severity in (*errors, library.ILogger.WARNING):
            _log.info("TensorRT says: %s", message)

    return type("Logger", (library.ILogger,), {"log": log})()


class _KernelCache:
    """The kernels that TensorRT for RTX compiles for this GPU, kept for the next process.

    TensorRT has no such cache. The file is in the user's cache folder, named after the engine, the
    GPU and the library, which refuses a file that does not match. Losing it only costs time.
    """

    def __init__(self, loaded: Any, engine: Engine, gpu: Gpu, library: Any) -> None:
        self._cache: Any = None
        self._how = library.ExecutionContextAllocationStrategy.USER_MANAGED
        if engine.backend != "tensorrt-rtx":
            return
        self._name = f"{engine.sha256[:32]}-{gpu.capability}-{library.__version__}"
        config = loaded.create_runtime_config()
        self._cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):
            if not self._cache.deserialize(self._path.read_bytes()):
                _log.info("%s does not match this machine: kernels are compiled anew", self._name)
        config.set_runtime_cache(self._cache)
        config.set_execution_context_allocation_strategy(self._how)
        # By default kernels are replaced by faster ones at run time, which would change scores.
        kinds = library.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        # The session records its own graphs, which include the copies.
        config.cuda_graph_strategy = library.CudaGraphStrategy.DISABLED
        self._how = config

    @property
    def _path(self) -> Path:
        """Where the kernels are kept. Raises OSError if there is no such place."""
        return cache_folder() / "rtx-kernels" / self._name

    def make_context(self, engine: Any) -> Any:
        return engine.create_execution_context(self._how)

    def save(self) -> None:
        content = None if self._cache is None else self._cache.serialize()
        if content is None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with written_whole(self._path) as aside:
                aside.write_bytes(content)
        except OSError as reason:
            _log.info("compiled kernels are not kept: %s", reason)
