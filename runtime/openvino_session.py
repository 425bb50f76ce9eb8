"""A session that runs an ONNX model with OpenVINO on the CPU."""

import io
import os
import queue
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.cpus import available_cores, cpu_capability
from drexperts.runtime.errors import BundleError, DeviceError, InternalError
from drexperts.runtime.interface import Tensor, check_pixels
from drexperts.runtime.onnx_file import Content, check_self_contained
from drexperts.runtime.openvino_library import openvino_core, openvino_version
from drexperts.runtime.openvino_products import products, products_text
from drexperts.runtime.wording import rebuild

DEVICE = "CPU"
PROPERTIES: dict[str, Any] = {
    # The graph says what is computed in which type. By default OpenVINO computes everything in
    # bfloat16 where the CPU has it.
    "INFERENCE_PRECISION_HINT": "f32",
    # By default products with compressed weights quantise their other side by the batch, so that a
    # score would depend on its neighbours.
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "PERFORMANCE_HINT": "LATENCY",
    # A thread that is pinned to a CPU waits for it while others are idle, if another process uses
    # the same one: every process would pin its threads to the first CPUs.
    "ENABLE_CPU_PINNING": False,
}
_OPTIONS = (
    "INFERENCE_NUM_THREADS",
    "NUM_STREAMS",
    "ENABLE_HYPER_THREADING",
    "SCHEDULING_CORE_TYPE",
    *PROPERTIES,
)


class OpenvinoSession:
    """Runs uint8 pixels through a model that OpenVINO compiles for this CPU.

    path: path of the model, for messages, and to read it unless `content` is given
    content: the bytes of the model, which are not kept
    source: a path of these bytes that is valid now, which takes less memory
    threads: CPU threads; None is one per core that this process may use
    streams: how many calls are computed at once, which share the threads; at most one per thread
    wanted: how many matrix products the compiled model must have of each type; empty for any
    compiled: the `openvino.CompiledModel` of the file, made with `settings_of` these threads and
        streams; None to read and compile the file
    inputs, outputs: of the graph
    products: how many matrix products are computed in each type, see `openvino_products`
    description: OpenVINO's version, the CPU's capability and the types of the products

    Raises MissingDependencyError without openvino, BundleError for a file that cannot be loaded or
    that keeps weights outside itself, DeviceError if this CPU computes in other types than
    `wanted`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_batch: int,
        content: Content | None = None,
        source: str | None = None,
        threads: int | None = None,
        streams: int = 1,
        wanted: Mapping[str, int] | None = None,
        compiled: Any = None,
    ) -> None:
        self.path, self.max_batch = os.fspath(path), max_batch
        settings = settings_of(threads, streams)
        self.threads, self.concurrency = settings["INFERENCE_NUM_THREADS"], settings["NUM_STREAMS"]
        if compiled is None:
            model = Path(path).read_bytes() if content is None else content
            check_self_contained(model, repr(self.path), rebuild("openvino"))
            compiled = compiled_model(source or model, settings, repr(self.path))
        self.compiled = compiled
        self.products = products(compiled)
        self._check_products(dict(wanted or {}))
        self.description = (
            f"openvino {openvino_version()} {DEVICE} {cpu_capability()}, products "
            + products_text(self.products)
        )
        self.inputs = [_tensor(port) for port in self.compiled.inputs]
        self.outputs = [_tensor(port) for port in self.compiled.outputs]
        self._input = self.inputs[0].name if self.inputs else ""
        self._image_shape = self.inputs[0].shape[1:] if self.inputs else ()
        # A request holds the memory of one call, so each is used by one caller at a time.
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.concurrency):
            self._requests.put(self.compiled.create_infer_request())

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """pixels: uint8 [B, 3, H, W], 1 <= B <= max_batch; returns the graph's outputs by name.

        The arrays are the caller's own. Raises InternalError for other pixels, and when OpenVINO
        fails.
        """
        check_pixels(pixels, self._image_shape, self.max_batch)
        request = self._requests.get()
        try:
            arrays = request.infer({self._input: pixels})
            return {output.name: arrays[i] for i, output in enumerate(self.outputs)}
        except Exception as cause:
            raise _failure(pixels, cause) from cause
        finally:
            self._requests.put(request)

    def compute_seconds(self, pixels: NDArray[np.uint8]) -> float:
        """Run a batch that is in the engine's memory, and return the seconds until it is done.

        The results stay in the engine's memory. Arguments and errors are those of `run`.
        """
        check_pixels(pixels, self._image_shape, self.max_batch)
        request = self._requests.get()
        try:
            # Not the caller's array: a later `run` would write into it.
            tensor = request.get_tensor(self._input)
            tensor.shape = pixels.shape
            tensor.data[...] = pixels
            start = time.perf_counter()
            # Without arguments, `infer` would copy the results.
            request.start_async()
            request.wait()
            return time.perf_counter() - start
        except Exception as cause:
            raise _failure(pixels, cause) from cause
        finally:
            self._requests.put(request)

    @property
    def options(self) -> dict[str, str]:
        """How OpenVINO was set, as it says itself: what bears on speed and on precision."""
        return {name: _text(self.compiled.get_property(name)) for name in _OPTIONS}

    def close(self) -> None:
        """Free the model. The compiled model stays in the user's cache folder."""
        del self._requests, self.compiled

    def _check_products(self, wanted: dict[str, int]) -> None:
        if wanted and wanted != self.products:
            raise DeviceError(
                f"{self.path!r} has matrix products of the types {products_text(wanted)}, but this "
                f"CPU computes it with {products_text(self.products)}, so its scores would differ "
                f"from those that were proven: {rebuild('openvino')} here"
            )


def settings_of(threads: int | None, streams: int) -> dict[str, Any]:
    """All properties of a compiled model. Arguments are those of `OpenvinoSession`."""
    threads = available_cores() if threads is None else threads
    return PROPERTIES | {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": min(streams, threads)}


def compiled_model(model: Content | str, settings: dict[str, Any], name: str) -> Any:
    """The `openvino.CompiledModel` of a model. Raises BundleError for one that cannot be compiled.

    model: its bytes, or the path of a file
    name: of the model's file, for the message
    """
    core = openvino_core()
    try:
        # `read_model` would let every reader that OpenVINO has try the file.
        reader = import_module("openvino.frontend").FrontEndManager().load_by_framework("onnx")
        file = model if isinstance(model, str) else io.BytesIO(model)
        graph = reader.convert(reader.load(file))
        return core.compile_model(graph, DEVICE, settings)
    except Exception as cause:
        reason = str(cause).replace(model, name) if isinstance(model, str) else str(cause)
        raise BundleError(
            f"OpenVINO cannot load {name}: {' '.join(reason.split())}; {rebuild('openvino')}"
        ) from cause


def _failure(pixels: NDArray[np.uint8], cause: Exception) -> InternalError:
    return InternalError(f"OpenVINO failed on {pixels.shape} pixels: {cause}")


def _tensor(port: Any) -> Tensor:
    sizes = [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
    return Tensor(port.get_any_name(), str(port.get_element_type().to_dtype()), tuple(sizes))


def _text(value: Any) -> str:
    """A property's value in words: some are types of OpenVINO."""
    return value.get_type_name() if hasattr(value, "get_type_name") else str(value)
