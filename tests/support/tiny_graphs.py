"""Tiny models as ONNX, exported once for all tests of a process. Copy one before changing it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import onnx

from drexperts.export.graph.to_onnx import onnx_from_model


@cache
def tiny_graph(
    tiny: Callable[..., Any], random_model: Callable[..., Any], preset: str, precision: str
) -> onnx.ModelProto:
    """tiny, random_model: the fixtures."""
    return onnx_from_model(random_model(tiny(preset)), maps=True, precision=precision)
