"""A session that runs an ONNX model with ONNX Runtime."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.errors import DeviceError, InternalError, UserError
from drexperts.runtime.interface import Tensor, check_pixels
from drexperts.runtime.onnx_file import Content, check_self_contained
from drexperts.runtime.onnx_library import import_onnxruntime
from drexperts.runtime.onnx_providers import (
    NAMES,
    cpu_session,
    gpu_session,
    new_options,
    shared_with,
)

_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
_OPTIONS = (
    "intra_op_num_threads",
    "inter_op_num_threads",
    "execution_mode",
    "graph_optimization_level",
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
)


class OnnxSession:
    """Runs uint8 pixels through `model.onnx`.

    path: path of the model, for messages, and to read it unless `content` is given
    content: the bytes of the model, which are not kept
    source: a path of these bytes that is valid now, which takes less memory; for the CPU only
    threads: CPU threads per operator; None is one per core that this process may use
    provider: "cpu", "cuda" or "tensorrt"; "tensorrt" builds an engine at the first start, which
        takes minutes, and keeps it in the user's cache folder
    gpu: number of the GPU, unless the provider is "cpu"
    inputs, outputs: of the graph
    description: ONNX Runtime's version, the provider, and how many nodes other providers run

    Raises MissingDependencyError without onnxruntime, BundleError for a file that cannot be
    loaded or that keeps weights outside itself, DeviceError if a GPU provider cannot be used,
    UserError for an unknown provider.
    """

    # A call on the CPU uses every core, and calls on a GPU share one stream: concurrent calls would
    # only slow each other down.
    concurrency = 1

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_batch: int,
        content: Content | None = None,
        source: str | None = None,
        threads: int | None = None,
        provider: str = "cpu",
        gpu: int = 0,
    ) -> None:
        if provider not in NAMES:
            raise UserError(f"provider must be one of {', '.join(NAMES)}, got {provider!r}")
        runtime = import_onnxruntime()
        options = new_options(runtime, threads)
        self.path, name = os.fspath(path), repr(os.fspath(path))
        model = Path(path).read_bytes() if content is None else content
        check_self_contained(model, name)
        self.threads, self.provider = threads, provider
        self._on_cpu = provider == "cpu"
        self._place = ("cpu", 0) if self._on_cpu else ("cuda", gpu)
        if self._on_cpu:
            self._session = cpu_session(runtime, source or model, options, name)
        else:
            self._session = gpu_session(runtime, model, options, name, provider, gpu, max_batch)
        self.max_batch = max_batch
        self.description = f"onnxruntime {runtime.__version__} {NAMES[provider]}"
        if not self._on_cpu:
            self.description += shared_with(self._session, NAMES[provider])
        self.inputs = [_tensor(node) for node in self._session.get_inputs()]
        self.outputs = [_tensor(node) for node in self._session.get_outputs()]
        self._input = self.inputs[0].name if self.inputs else ""
        self._image_shape = self.inputs[0].shape[1:] if self.inputs else ()
        self._outputs = [output.name for output in self.outputs]

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """pixels: uint8 [B, 3, H, W], 1 <= B <= max_batch; returns the graph's outputs by name.

        Raises InternalError for other pixels, and when ONNX Runtime fails on the CPU;
        DeviceError when it fails on a GPU.
        """
        check_pixels(pixels, self._image_shape, self.max_batch)
        try:
            arrays = self._session.run(self._outputs, {self._input: pixels})
        except Exception as cause:
            raise self._failure(pixels, cause) from cause
        return dict(zip(self._outputs, arrays, strict=True))

    def compute_seconds(self, pixels: NDArray[np.uint8]) -> float:
        """Run a batch that is already on the device, and return the seconds until it is done.

        The results stay on the device: nothing is copied from or to the host. Arguments and errors
        are those of `run`.
        """
        check_pixels(pixels, self._image_shape, self.max_batch)
        try:
            value = import_onnxruntime().OrtValue.ortvalue_from_numpy(pixels, *self._place)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._input, value)
            for name in self._outputs:
                binding.bind_output(name, *self._place)
            binding.synchronize_inputs()
            start = time.perf_counter()
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return time.perf_counter() - start
        except Exception as cause:
            raise self._failure(pixels, cause) from cause

    @property
    def options(self) -> dict[str, str]:
        """How ONNX Runtime was set, as it says itself: what bears on speed, and each provider's."""
        told = self._session.get_session_options()
        found = {name: str(getattr(told, name)).rpartition(".")[2] for name in _OPTIONS}
        for provider, options in self._session.get_provider_options().items():
            found |= {f"{provider}.{name}": str(value) for name, value in options.items()}
        return found

    def close(self) -> None:
        """Free the model."""
        del self._session

    def _failure(self, pixels: NDArray[np.uint8], cause: Exception) -> InternalError | DeviceError:
        message = f"ONNX Runtime failed on {pixels.shape} pixels: {cause}"
        if self._on_cpu:
            return InternalError(message)
        remedy = "free the GPU's memory, score smaller batches, or use the CPU"
        return DeviceError(f"{message}; {remedy}")


def _tensor(node: Any) -> Tensor:
    kind = _TYPES.get(node.type, node.type)
    # ONNX Runtime gives free sizes a name, or None.
    return Tensor(node.name, kind, tuple(s if isinstance(s, int) else None for s in node.shape))
