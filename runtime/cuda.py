"""CUDA through cuda-python: checked calls, and streams, memory and graphs that free themselves.

Tested against a stand-in for the library; no call in this file has been executed on a GPU.
"""

import contextlib
import ctypes
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.errors import (
    CudaError,
    MissingDependencyError,
    OutOfMemoryError,
)
from drexperts.runtime.installing import install_command

# After one of these errors the driver refuses every further call of the process.
LOST = frozenset(
    {
        "cudaErrorAssert",
        "cudaErrorContained",
        "cudaErrorContextIsDestroyed",
        "cudaErrorECCUncorrectable",
        "cudaErrorExternalDevice",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalAddress",
        "cudaErrorIllegalInstruction",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout",
        "cudaErrorMisalignedAddress",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorTensorMemoryLeak",
    }
)


def bindings() -> Any:
    """The module `cuda.bindings.runtime`. Raises MissingDependencyError without cuda-python."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as cause:
        raise MissingDependencyError(
            f"TensorRT engines need cuda-python: {install_command('tensorrt')}, or "
            + install_command("tensorrt-rtx")
        ) from cause


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; returns its value, a tuple of several, or None.

    Raises CudaError, or OutOfMemoryError if memory is exhausted.
    """
    function = getattr(bindings(), name)
    try:
        error, *values = function(*arguments)
    except ValueError as cause:  # an error code newer than this cuda-python
        raise CudaError(
            f"{name} failed with an error unknown to this cuda-python ({cause}): update it, and "
            "check the GPU and its driver with `nvidia-smi`"
        ) from cause
    if int(error) != 0:
        raise _failure(name, error)
    return values[0] if len(values) == 1 else tuple(values) or None


def let_go(name: str, *arguments: Any) -> None:
    """Call a function that releases or waits for something, and ignore its error. Never raises.

    Such a function reports errors of earlier work, which were raised where they occurred.
    """
    with contextlib.suppress(Exception):
        call(name, *arguments)


def _failure(name: str, error: Any) -> CudaError:
    runtime = bindings()
    # CUDA keeps the error until it is read; another library would take it for its own.
    runtime.cudaGetLastError()
    text = runtime.cudaGetErrorString(error)[1].decode()
    message = f"{name} failed with {error.name} ({text}); "
    if error.name == "cudaErrorMemoryAllocation":
        return OutOfMemoryError(
            f"{message}free memory of the GPU (`nvidia-smi` lists the processes that use it), "
            "or use fewer contexts or a smaller batch"
        )
    if error.name in LOST:
        return CudaError(
            f"{message}the GPU is lost to this process: restart it, and if it happens again check "
            " `nvidia-smi` and the kernel log",
            lost=True,
        )
    return CudaError(f"{message}check the GPU and its driver with `nvidia-smi`")


@contextlib.contextmanager
def on_device(gpu: int) -> Iterator[None]:
    """Make `gpu` the current device of this thread, and restore the previous one afterwards.

    The previous one is device 0 if the thread chose none, and CUDA is then initialised there as
    well: a process that must not touch device 0 needs CUDA_VISIBLE_DEVICES.
    """
    before = call("cudaGetDevice")
    call("cudaSetDevice", gpu)
    try:
        yield
    finally:
        let_go("cudaSetDevice", before)


@contextlib.contextmanager
def _recording_spared() -> Iterator[None]:
    """Let this thread release resources while it records a graph.

    The garbage collector may do so at any time. Otherwise CUDA refuses the release, which leaks,
    and invalidates the recording.
    """
    exchange = "cudaThreadExchangeStreamCaptureMode"
    before = None
    with contextlib.suppress(Exception):
        before = call(exchange, bindings().cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed)
    try:
        yield
    finally:
        if before is not None:
            let_go(exchange, before)


class _Owned:
    """A CUDA resource, released once: by `close`, the end of a `with`, or the collector."""

    _release: str
    handle: Any = None

    def close(self) -> None:
        handle, self.handle = self.handle, None
        if handle is not None:
            with _recording_spared():
                let_go(self._release, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # When the interpreter ends the library may be gone; the process frees the memory.
        if not sys.is_finalizing():
            self.close()


class Stream(_Owned):
    """A stream that does not synchronise with the default stream."""

    _release = "cudaStreamDestroy"

    def __init__(self) -> None:
        self.handle = call("cudaStreamCreateWithFlags", bindings().cudaStreamNonBlocking)

    def __int__(self) -> int:
        return int(self.handle)

    def synchronize(self) -> None:
        call("cudaStreamSynchronize", self.handle)


class Event(_Owned):
    """An event on the current GPU. timed: whether it records the time."""

    _release = "cudaEventDestroy"

    def __init__(self, *, timed: bool = False) -> None:
        kind = bindings().cudaEventDefault if timed else bindings().cudaEventDisableTiming
        self.handle = call("cudaEventCreateWithFlags", kind)

    def record(self, stream: int) -> None:
        """Record the event after the work on the stream, given by its handle."""
        call("cudaEventRecord", self.handle, stream)

    def synchronize(self) -> None:
        call("cudaEventSynchronize", self.handle)

    def seconds_since(self, earlier: "Event") -> float:
        """Time on the GPU between two timed events that have completed."""
        milliseconds: float = call("cudaEventElapsedTime", earlier.handle, self.handle)
        return milliseconds / 1e3

    def hold_back(self, stream: int) -> None:
        """Let later work on `stream` wait for the event."""
        call("cudaStreamWaitEvent", stream, self.handle, 0)


class DeviceBuffer(_Owned):
    """Memory of the current GPU, aligned to at least 256 bytes. Close it when nothing uses it."""

    _release = "cudaFree"

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        # CUDA allocates nothing for 0 bytes, and TensorRT needs no address then.
        self.handle = call("cudaMalloc", nbytes) if nbytes else None

    @property
    def address(self) -> int:
        return int(self.handle or 0)


class PinnedBuffer(_Owned):
    """Page-locked host memory, which the GPU copies from and to directly."""

    _release = "cudaFreeHost"

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.handle = call("cudaHostAlloc", nbytes, bindings().cudaHostAllocDefault)

    def array(self, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """A view of the start of the buffer. It must not outlive the buffer."""
        content = (ctypes.c_uint8 * self.nbytes).from_address(int(self.handle))
        return np.frombuffer(memoryview(content), dtype, count=int(np.prod(shape))).reshape(shape)


def copy_to_device(target: int, source: PinnedBuffer, nbytes: int, stream: Stream) -> None:
    kind = bindings().cudaMemcpyKind.cudaMemcpyHostToDevice
    call("cudaMemcpyAsync", target, source.handle, nbytes, kind, stream.handle)


def copy_to_host(target: PinnedBuffer, source: int, nbytes: int, stream: Stream) -> None:
    kind = bindings().cudaMemcpyKind.cudaMemcpyDeviceToHost
    call("cudaMemcpyAsync", target.handle, source, nbytes, kind, stream.handle)


class Graph(_Owned):
    """A CUDA graph: work recorded once, with fixed addresses and shapes, and launched as one."""

    _release = "cudaGraphExecDestroy"

    def __init__(self, stream: Stream, record: Callable[[], None]) -> None:
        """Record what `record` puts on `stream`. Raises CudaError, and what `record` raises."""
        graph = _captured(stream, record)
        try:
            self.handle = call("cudaGraphInstantiate", graph, 0)
        finally:
            let_go("cudaGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        call("cudaGraphLaunch", self.handle, stream.handle)


def _captured(stream: Stream, record: Callable[[], None]) -> Any:
    # Forbids what cannot be captured in this thread only: others may allocate meanwhile.
    mode = bindings().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    call("cudaStreamBeginCapture", stream.handle, mode)
    try:
        record()
    except BaseException:
        with contextlib.suppress(CudaError):
            let_go("cudaGraphDestroy", call("cudaStreamEndCapture", stream.handle))
        raise
    return call("cudaStreamEndCapture", stream.handle)
