"""An ONNX model run by ONNX Runtime on the CPU."""

import importlib
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.errors import BundleError, InternalError, MissingDependencyError

_ERRORS_ONLY = 3


class OnnxSession:
    """Runs uint8 pixels through `model.onnx`.

    threads: threads of one operator; None leaves ONNX Runtime's default, one a physical core.
    image_size: side of the images that the model takes, None where the graph leaves it free.
    Raises MissingDependencyError without onnxruntime, BundleError for a file it cannot load.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_batch: int,
        threads: int | None = None,
    ) -> None:
        runtime = _import_onnxruntime()
        try:
            self._session = runtime.InferenceSession(
                os.fspath(path),
                _options(runtime, threads),
                providers=["CPUExecutionProvider"],
            )
        except Exception as cause:
            raise BundleError(
                f"ONNX Runtime cannot load {os.fspath(path)!r}: {cause}; "
                "export the bundle again with `drx export`"
            ) from cause
        self.max_batch = max_batch
        self.description = f"onnxruntime {runtime.__version__} CPUExecutionProvider"
        graph_input = self._session.get_inputs()[0]
        self._input: str = graph_input.name
        self._image_shape: list[Any] = graph_input.shape[1:]  # names stand for free sizes
        self.image_size: int | None = (
            size if isinstance(size := graph_input.shape[-1], int) else None
        )
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """pixels: uint8 [B, 3, H, W], 1 <= B <= max_batch; returns the graph's outputs by name.

        Raises InternalError for other pixels, and when ONNX Runtime fails.
        """
        self._check(pixels)
        try:
            arrays = self._session.run(self._outputs, {self._input: pixels})
        except Exception as cause:
            raise InternalError(f"ONNX Runtime failed on {pixels.shape} pixels: {cause}") from cause
        return dict(zip(self._outputs, arrays, strict=True))

    def _check(self, pixels: NDArray[np.uint8]) -> None:
        fits = pixels.ndim == 4 and all(
            size == wanted or not isinstance(wanted, int)
            for size, wanted in zip(pixels.shape[1:], self._image_shape, strict=True)
        )
        if pixels.dtype != np.uint8 or not fits or not 1 <= len(pixels) <= self.max_batch:
            raise InternalError(
                f"the session takes uint8 [1..{self.max_batch}, {self._image_shape}], "
                f"got {pixels.dtype} {list(pixels.shape)}"
            )


def _import_onnxruntime() -> Any:
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as cause:
        raise MissingDependencyError(
            'this bundle needs ONNX Runtime: pip install "drexperts[cpu]"'
        ) from cause
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _options(runtime: Any, threads: int | None) -> Any:
    # The memory options stay at their defaults, which measured lowest: see docs/log.md.
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    return options
