"""Scores as JSON."""

import base64
from typing import Any

from drexperts.runtime.errors import ImageError
from drexperts.runtime.score import DistortionMaps, Score


def row_of(name: str, score: Score | ImageError) -> dict[str, Any]:
    """The row of one image, with its maps if it has any, or with the reason why there is none."""
    if isinstance(score, ImageError):
        return {"source": name, "error": str(score)}
    row = score.as_row()
    return row if score.maps is None else row | {"maps": _encoded(score.maps)}


def _encoded(maps: DistortionMaps) -> dict[str, Any]:
    """Maps with their values as base64 of little-endian float32, row by row."""
    return {
        "size": list(maps.size),
        "boxes": maps.boxes.tolist(),
        "shape": list(maps.values.shape),
        "dtype": "float32",
        "data": base64.b64encode(maps.values.astype("<f4").tobytes()).decode("ascii"),
    }
