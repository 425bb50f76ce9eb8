"""A session that runs a TensorRT engine with cuda-python and TensorRT alone.

Tested against stand-ins for both libraries, which a test compares with the real ones. Nothing in
this file has been executed on a GPU.
"""

import contextlib
import importlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.compatibility import Gpu, gpus, library, obstacle, why_no_gpu
from drexperts.runtime.cuda import (
    DeviceBuffer,
    Event,
    Graph,
    PinnedBuffer,
    Stream,
    bindings,
    copy_to_device,
    copy_to_host,
    let_go,
    on_device,
)
from drexperts.runtime.errors import (
    BundleError,
    CudaError,
    DeviceError,
    InternalError,
    MissingDependencyError,
    OutOfMemoryError,
    UserError,
)
from drexperts.runtime.gpu_array import GpuArray
from drexperts.runtime.interface import Tensor
from drexperts.runtime.manifest import Engine
from drexperts.runtime.tensorrt_plan import Execution, LoadedPlan

_log = logging.getLogger("drexperts.runtime")

_LANES = 8  # (profile, batch) pairs that a worker keeps ready: the Scorer's default batch
_ALIGNMENT = 256  # bytes, which TensorRT requires of every address
_DEFAULT_STREAMS = (0, 1, 2)  # CUDA handles: none, legacy and per-thread


class TensorrtSession:
    """Runs uint8 pixels through a TensorRT engine on one GPU. Safe to share between threads.

    path: path of the engine
    gpu: number of the GPU, as CUDA counts
    contexts: how many batches may be on the GPU at once; each has its own stream, buffers and
        scratch memory, of the size that its largest batch so far needs
    max_batch: the largest batch per call of the engine; `run` splits larger ones
    inputs, outputs: of the engine
    concurrency: `contexts`; further callers wait

    Raises MissingDependencyError without TensorRT or cuda-python, DeviceError without a GPU,
    UserError for a GPU that does not exist, and BundleError for an engine that this machine cannot
    run or that TensorRT refuses.
    """

    def __init__(
        self, path: str | os.PathLike[str], engine: Engine, *, gpu: int = 0, contexts: int = 2
    ) -> None:
        if type(contexts) is not int or not 1 <= contexts <= 64:
            raise UserError(f"contexts must be 1 to 64, got {contexts!r}")
        self.path = os.fspath(path)
        module = _library(engine)
        device = _gpu(engine, gpu, str(module.__version__))
        self._gpu = gpu
        with on_device(gpu):
            self._plan = LoadedPlan(path, engine, module, device)
        largest = max(profile.max for profile in self._plan.profiles)
        self.max_batch = min(engine.certified_batch, largest)
        self.concurrency = contexts
        self.inputs = [Tensor(self._plan.input.name, "uint8", (None, *self._plan.input.shape))]
        self.outputs = [Tensor(t.name, "float32", (None, *t.shape)) for t in self._plan.outputs]
        self.description = (
            f"{module.__name__} {module.__version__} on {device.name} ({device.capability})"
        )
        self._limits = _Limits(self.max_batch)
        graphs = _GraphPermission()
        self._idle = _Idle(_Worker(self._plan, gpu, graphs) for _ in range(contexts))
        self._closed = False
        self._closing = threading.Lock()

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Run the engine on uint8 pixels [B, 3, H, W], B >= 1; returns float32 outputs by name.

        If the GPU is out of memory the batch is halved, once in the session's life, with a warning.
        Raises InternalError for other pixels and DeviceError if the GPU or TensorRT fails; the next
        call then allocates its resources anew.
        """
        self._check(pixels)
        parts: list[dict[str, NDArray[np.float32]]] = []
        done = 0
        while done < len(pixels):
            profile, batch = self._choice(len(pixels) - done)
            try:
                with self._worker() as worker:
                    parts.append(worker.run(profile, pixels[done : done + batch]))
            except OutOfMemoryError as cause:
                if not self._limits.lower(batch, cause):
                    raise
            else:
                done += batch
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run_on_gpu(self, pixels: Any, stream: Any = None) -> dict[str, GpuArray]:
        """Run the engine on an array that is on the GPU; the results stay there, without a copy.

        pixels: uint8 [B, 3, H, W] with `__dlpack__` or `__cuda_array_interface__`, C-contiguous,
            aligned to 256 bytes, 1 <= B <= max_batch. It must not change until the stream is done.
        stream: the stream to enqueue the work on, without waiting: a handle or an object with
            `__cuda_stream__`, neither a default stream nor one that is being captured. None uses
            a stream of the session and waits for it.

        At most `contexts` such calls are on the GPU at once; a further one waits. Raises UserError
        for other arguments, and otherwise what `run` raises; a batch is not halved if it does not
        fit into memory.
        """
        handle = _stream_handle(stream)
        with self._worker() as worker:
            return worker.run_on_gpu(self._choice, pixels, handle)

    def observe(
        self, pixels: NDArray[np.uint8], attach: Callable[[Any], None], calls: int
    ) -> list[float]:
        """Run a batch `calls` times in a new context, for a profiler.

        pixels: as for `run`, at most as many as the engine takes at once
        attach: called with TensorRT's context before it runs. No CUDA graph is used, because
            profilers see no layers in one.

        Returns the seconds of each call, copies included. Raises what `run` raises, and UserError
        for more images than the engine takes at once.
        """
        profile = self._profile_at_once(pixels)
        with self._worker() as worker:
            return worker.observe(profile, pixels, attach, calls)

    def compute_seconds(self, pixels: NDArray[np.uint8]) -> float:
        """Run a batch that is already on the GPU, and return the GPU's seconds without copies.

        Measured as trtexec does: with CUDA events around the engine's work, without a graph.
        Raises what `run` raises, and UserError for more images than the engine takes at once.
        """
        profile = self._profile_at_once(pixels)
        with self._worker() as worker:
            return worker.compute_seconds(profile, pixels)

    def close(self) -> None:
        """Wait for running calls, then free everything; later calls are refused.

        The kernels that TensorRT for RTX compiled are kept on disk.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            workers = [self._idle.get() for _ in range(self.concurrency)]
            try:
                self._free(workers)
            finally:
                for worker in workers:  # a caller that still waits gets an error
                    self._idle.put(worker)

    def _free(self, workers: list["_Worker"]) -> None:
        with contextlib.ExitStack() as stack:
            # A lost GPU cannot be selected any more, but its resources are released all the same.
            with contextlib.suppress(CudaError):
                stack.enter_context(on_device(self._gpu))
            for worker in workers:
                worker.close()
            self._plan.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, pixels: NDArray[np.uint8]) -> None:
        shape = self._plan.input.shape
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or len(pixels) < 1:
            raise InternalError(
                f"the session takes uint8 [1.., {', '.join(map(str, shape))}], "
                f"got {pixels.dtype} {list(pixels.shape)}"
            )

    def _profile_at_once(self, pixels: NDArray[np.uint8]) -> int:
        self._check(pixels)
        profile, batch = self._choice(len(pixels))
        if batch < len(pixels):
            raise UserError(f"this engine takes {batch} images at once, got {len(pixels)}")
        return profile

    def _choice(self, count: int) -> tuple[int, int]:
        """Profile and batch for the next of `count` images: largest batch, then nearest optimum."""
        choices = []
        for index, profile in enumerate(self._plan.profiles):
            batch = min(count, profile.max, self._limits.batch)
            if profile.includes(batch):
                choices.append((batch, -abs(profile.opt - batch), -index))
        batch, _, index = max(choices)
        return -index, batch

    @contextlib.contextmanager
    def _worker(self) -> Iterator["_Worker"]:
        worker = self._idle.get()
        try:
            if self._closed:
                raise UserError("the session is closed: open the bundle again")
            with on_device(self._gpu), worker.recycled_on_failure():
                yield worker
        finally:
            self._idle.put(worker)


class _Idle:
    """The workers that no thread is using."""

    def __init__(self, workers: Iterable["_Worker"]) -> None:
        self._workers = list(workers)
        self._changed = threading.Condition()

    def get(self) -> "_Worker":
        """Wait for a worker: the last used one, whose contexts are ready, unless it is still busy.

        If all are still busy on the GPU, it is the one that will finish first.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._workers)
            done = [worker for worker in self._workers if not worker.left_running]
            chosen = done[-1] if done else self._workers[0]
            self._workers.remove(chosen)
            return chosen

    def put(self, worker: "_Worker") -> None:
        with self._changed:
            self._workers.append(worker)
            self._changed.notify()


class _Limits:
    """The largest batch, which is halved once if memory is exhausted."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._halved = False
        self._lock = threading.Lock()

    def lower(self, failed: int, cause: OutOfMemoryError) -> bool:
        """Whether a batch that did not fit into memory can be tried again in smaller batches."""
        with self._lock:
            if failed <= self.batch and failed > 1 and not self._halved:
                self._halved = True
                self.batch = failed // 2
                _log.warning(
                    "batches are halved to %d from now on, because %d did not fit: %s",
                    self.batch,
                    failed,
                    cause,
                )
            return failed > self.batch


class _GraphPermission:
    """Whether CUDA graphs are used: until recording one fails, which is logged."""

    def __init__(self) -> None:
        self.granted = True
        self._lock = threading.Lock()

    def withdraw(self, reason: str) -> None:
        with self._lock:
            if self.granted:
                self.granted = False
                _log.warning("running without CUDA graphs, which is slower: %s", reason)


@dataclass
class _Lane:
    """What a worker keeps for one (profile, batch): run once without, then with a graph."""

    execution: Execution
    graph: Graph | None = None
    warm: bool = False

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()
        self.execution.close()


class _Worker:
    """A stream with its buffers and contexts, used by one thread at a time.

    Everything is created when it is first needed, and again after `close`. Its contexts never run
    at the same time, so they share scratch memory.
    """

    def __init__(self, plan: LoadedPlan, gpu: int, graphs: _GraphPermission) -> None:
        self._plan = plan
        self._gpu = gpu
        self._graphs = graphs
        self._stream: Stream | None = None
        self._staging: _Staging | None = None
        self._scratch: DeviceBuffer | None = None
        self._lanes: OrderedDict[tuple[int, int, bool], _Lane] = OrderedDict()
        # The end of the last call on a caller's stream, and what that call uses until then.
        self._left_running: tuple[Event, Any] | None = None

    def run(self, profile: int, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        stream, staging, lane = self._prepared(profile, pixels)
        self._execute(lane, stream, staging)
        stream.synchronize()
        return staging.results(len(pixels))

    def _prepared(
        self, profile: int, pixels: NDArray[np.uint8]
    ) -> tuple[Stream, "_Staging", _Lane]:
        """The stream, the buffers with the pixels in them, and the lane of a batch."""
        stream = self._ready_stream()
        staging = self._staging_for(len(pixels))
        lane = self._lane(profile, len(pixels), stream, staging)
        staging.fill(pixels)
        return stream, staging, lane

    def observe(
        self, profile: int, pixels: NDArray[np.uint8], attach: Callable[[Any], None], calls: int
    ) -> list[float]:
        self.close()  # so that the context is new
        stream, staging, lane = self._prepared(profile, pixels)
        attach(lane.execution.context)
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            self._put_or_name_the_loss(lane, stream, staging)
            stream.synchronize()
            seconds.append(time.perf_counter() - start)
        self.close()
        return seconds

    def compute_seconds(self, profile: int, pixels: NDArray[np.uint8]) -> float:
        stream, staging, lane = self._prepared(profile, pixels)
        with Event(timed=True) as begin, Event(timed=True) as end:
            try:
                staging.put_pixels(len(pixels), stream)
                stream.synchronize()
                begin.record(int(stream))
                lane.execution.enqueue(int(stream))
                end.record(int(stream))
            finally:
                stream.synchronize()
            return end.seconds_since(begin)

    def run_on_gpu(self, choice: Any, pixels: Any, handle: int | None) -> dict[str, GpuArray]:
        own = self._ready_stream()
        stream = int(own) if handle is None else handle
        view = _view(pixels, stream, own)
        self._check_view(view)
        profile, batch = choice(view.shape[0])
        if batch < view.shape[0]:
            raise UserError(f"pass at most {batch} images at once, got {view.shape[0]}")
        lane = self._lane(profile, batch, own, None)
        memories = {t.name: DeviceBuffer(t.nbytes(batch)) for t in self._plan.outputs}
        addresses = {name: memory.address for name, memory in memories.items()}
        lane.execution.bind(addresses | {self._plan.input.name: view.ptr})
        ready = Event()
        self._leave_running(lane.execution, stream, ready, (view, memories))
        if handle is None:
            self._finish()
        return {
            tensor.name: GpuArray(
                memories[tensor.name], (batch, *tensor.shape), self._gpu, handle, ready
            )
            for tensor in self._plan.outputs
        }

    def _leave_running(self, execution: Execution, stream: int, ready: Event, used: Any) -> None:
        try:
            execution.enqueue(stream)
            ready.record(stream)
        except BaseException:
            # What was enqueued may still use the memory that is freed next.
            let_go("cudaStreamSynchronize", stream)
            raise
        self._left_running = (ready, used)

    @property
    def left_running(self) -> bool:
        return self._left_running is not None

    @contextlib.contextmanager
    def recycled_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException as cause:
            # Only a mistake in the arguments is known to leave the worker intact.
            if isinstance(cause, DeviceError) or not isinstance(cause, UserError):
                self.close()
            raise

    def close(self) -> None:
        """Free everything, contexts before the memory that they use. Never raises."""
        with contextlib.suppress(CudaError):
            self._finish()
        if self._stream is not None:
            with contextlib.suppress(CudaError):
                self._stream.synchronize()
        self._left_running = None
        self._drop_lanes(0)
        for owned in (self._scratch, self._staging, self._stream):
            if owned is not None:
                owned.close()
        self._scratch = self._staging = self._stream = None

    def _ready_stream(self) -> Stream:
        """The worker's stream, after earlier calls have finished."""
        self._finish()
        if self._stream is None:
            self._stream = Stream()
        return self._stream

    def _finish(self) -> None:
        if self._left_running is not None:
            self._left_running[0].synchronize()
            self._left_running = None

    def _staging_for(self, batch: int) -> "_Staging":
        if self._staging is None or self._staging.batch < batch:
            self._drop_lanes(0)  # their contexts and graphs refer to the old addresses
            if self._staging is not None:
                self._staging.close()
                self._staging = None
            self._staging = _Staging(self._plan, batch)
        return self._staging

    def _lane(self, profile: int, batch: int, stream: Stream, staging: "_Staging | None") -> _Lane:
        key = (profile, batch, staging is None)
        lane = self._lanes.pop(key, None)
        if lane is None:
            self._drop_lanes(_LANES - 1)
            # Stored before it is complete, so that `close` frees it if an error follows.
            self._lanes[key] = lane = _Lane(Execution(self._plan, batch))
            lane.execution.choose(profile, stream)
            self._share_scratch(lane.execution)
            if staging is not None:
                lane.execution.bind(staging.addresses)
        self._lanes[key] = lane
        return lane

    def _drop_lanes(self, kept: int) -> None:
        while len(self._lanes) > kept:
            self._lanes.popitem(last=False)[1].close()

    def _share_scratch(self, execution: Execution) -> None:
        """Give the newest lane scratch memory of the size that its shapes need."""
        nbytes = execution.scratch()
        if self._scratch is None or self._scratch.nbytes < nbytes:
            self._drop_lanes(1)  # the others refer to the old address
            if self._scratch is not None:
                self._scratch.close()
                self._scratch = None
            self._scratch = DeviceBuffer(nbytes)
        execution.use_scratch(self._scratch.address, self._scratch.nbytes)

    def _execute(self, lane: _Lane, stream: Stream, staging: "_Staging") -> None:
        # TensorRT requires one ordinary run before the work of a context is recorded.
        if lane.warm and lane.graph is None and self._graphs.granted:
            self._record(lane, stream, staging)
        if lane.graph is not None:
            lane.graph.launch(stream)
        else:
            self._put_or_name_the_loss(lane, stream, staging)
        lane.warm = True

    def _put_or_name_the_loss(self, lane: _Lane, stream: Stream, staging: "_Staging") -> None:
        try:
            self._put(lane, stream, staging)
        except DeviceError:
            stream.synchronize()  # if the GPU is lost CUDA reports it, and TensorRT may not
            raise

    def _put(self, lane: _Lane, stream: Stream, staging: "_Staging") -> None:
        batch = lane.execution.batch
        staging.put_pixels(batch, stream)
        lane.execution.enqueue(int(stream))
        staging.put_results(batch, stream)

    def _record(self, lane: _Lane, stream: Stream, staging: "_Staging") -> None:
        if not lane.execution.can_be_captured(int(stream)):
            self._graphs.withdraw("TensorRT reports that this engine cannot be recorded")
            return
        try:
            lane.graph = Graph(stream, lambda: self._put(lane, stream, staging))
        except DeviceError as cause:
            if isinstance(cause, CudaError) and cause.lost:
                raise
            self._graphs.withdraw(str(cause))

    def _check_view(self, view: Any) -> None:
        shape = self._plan.input.shape
        wanted = f"uint8 [B, {', '.join(map(str, shape))}] on GPU {self._gpu}"
        if not view.is_device_accessible or view.device_id != self._gpu:
            raise UserError(f"pass {wanted}, got an array on device {view.device_id}")
        if view.dtype != np.uint8 or tuple(view.shape[1:]) != shape or view.shape[0] < 1:
            raise UserError(f"pass {wanted}, got {view.dtype} {list(view.shape)}")
        if not _is_contiguous(view) or view.ptr % _ALIGNMENT:
            raise UserError(
                f"pass a C-contiguous array aligned to {_ALIGNMENT} bytes: make a contiguous copy"
            )


class _Staging:
    """Pinned host buffers and their counterparts on the GPU, for batches from the host."""

    def __init__(self, plan: LoadedPlan, batch: int) -> None:
        self.batch = batch
        self._input = plan.input
        self._outputs = plan.outputs
        self._host: dict[str, PinnedBuffer] = {}
        self._device: dict[str, DeviceBuffer] = {}
        try:
            for tensor in (plan.input, *plan.outputs):
                self._host[tensor.name] = PinnedBuffer(tensor.nbytes(batch))
                self._device[tensor.name] = DeviceBuffer(tensor.nbytes(batch))
        except BaseException:
            self.close()  # otherwise the traceback would keep them alive
            raise
        self.addresses = {name: buffer.address for name, buffer in self._device.items()}

    def fill(self, pixels: NDArray[np.uint8]) -> None:
        np.copyto(self._host[self._input.name].array(np.uint8, pixels.shape), pixels)

    def put_pixels(self, batch: int, stream: Stream) -> None:
        name = self._input.name
        nbytes = self._input.nbytes(batch)
        copy_to_device(self.addresses[name], self._host[name], nbytes, stream)

    def put_results(self, batch: int, stream: Stream) -> None:
        for tensor in self._outputs:
            source = self.addresses[tensor.name]
            copy_to_host(self._host[tensor.name], source, tensor.nbytes(batch), stream)

    def results(self, batch: int) -> dict[str, NDArray[np.float32]]:
        """Copies of the outputs in the pinned buffers."""
        return {
            tensor.name: self._host[tensor.name].array(np.float32, (batch, *tensor.shape)).copy()
            for tensor in self._outputs
        }

    def close(self) -> None:
        for buffer in (*self._device.values(), *self._host.values()):
            buffer.close()


def _library(engine: Engine) -> Any:
    bindings()
    module = library(engine)
    if module is None:
        raise MissingDependencyError(str(obstacle(engine, None, None)))
    return module


def _gpu(engine: Engine, index: int, version: str) -> Gpu:
    found = gpus()
    if not found:
        raise DeviceError(f"a TensorRT engine needs a GPU: {why_no_gpu()}; or score on the CPU")
    if type(index) is not int or not 0 <= index < len(found):
        raise UserError(f"gpu must be 0 to {len(found) - 1} on this machine, got {index!r}")
    reason = obstacle(engine, found[index], version)
    if reason is not None:
        raise BundleError(reason)
    return found[index]


def _stream_handle(stream: Any) -> int | None:
    if stream is None:
        return None
    handle = stream.__cuda_stream__()[1] if hasattr(stream, "__cuda_stream__") else stream
    if type(handle) is not int or handle in _DEFAULT_STREAMS:
        raise UserError(
            "stream must be a stream of your own, its handle or an object with __cuda_stream__, "
            f"or None; got {stream!r}"
        )
    return handle


def _view(pixels: Any, stream: int, own: Stream) -> Any:
    """A view of another library's array; work on `stream` waits until the array is written."""
    try:
        utils = importlib.import_module("cuda.core.utils")
    except ImportError as cause:
        raise MissingDependencyError(
            "arrays on the GPU are read with cuda-core: pip install cuda-core"
        ) from cause
    try:
        return utils.StridedMemoryView.from_any_interface(pixels, stream_ptr=stream)
    except Exception as cause:
        own.synchronize()  # if the GPU is lost, CUDA raises that here
        raise UserError(
            "pass an array on the GPU that has __dlpack__ or __cuda_array_interface__, "
            f"got {type(pixels).__name__}: {cause}"
        ) from cause


def _is_contiguous(view: Any) -> bool:
    """Whether a view is C-contiguous. Strides are in elements; those of size 1 mean nothing."""
    if view.strides is None:
        return True
    step = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
