"""What is known of the quality of one image."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.manifest import ScoreScale


@dataclass(frozen=True, eq=False)
class DistortionMaps:
    """Where each distortion's expert looked.

    values: float32 [n, D, g, g], one map per crop and distortion
    boxes: int64 [n, 4], (left, top, right, bottom) of each crop in the resized image
    size: (width, height) of the resized image
    """

    values: NDArray[np.float32]
    boxes: NDArray[np.int64]
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Score:
    """The quality of one image, or why there is none.

    source: the key that was given with the image, else its path, else a description of the object
    value: mean of the crops' scores, on `scale`; NaN if there is an error
    std: population standard deviation of the crops' scores
    raw: the score of each crop
    distortions: mean weight of each distortion's expert over the crops, in the manifest's order
    fingerprint: equal for scores made by the same weights, preprocessing and software
    maps: None unless they were asked for
    error: why the image has no score; None if it has one
    enlarged: the factor by which the image was enlarged before it was scored, because its shorter
        side is below the preprocessing's `short_side_min`; None if it was not
    crops_per_side: the most crops along each axis, if that is not what the bundle says; None if it
        is
    frames: of a video, whose score is the mean of its frames' scores: how many of them have one;
        None for an image
    """

    source: str
    value: float
    std: float
    raw: tuple[float, ...]
    distortions: dict[str, float]
    scale: ScoreScale
    fingerprint: str
    maps: DistortionMaps | None = None
    error: str | None = None
    enlarged: float | None = None
    crops_per_side: int | None = None
    frames: int | None = None

    def as_row(self) -> dict[str, Any]:
        """A JSON-ready dictionary without the maps; NaN becomes None.

        Only rows of videos have `frames`.
        """
        absent = {"maps"} if self.frames is not None else {"maps", "frames"}
        row = {name: value for name, value in vars(self).items() if name not in absent}
        numbers = {"value": _none_if_nan(self.value), "std": _none_if_nan(self.std)}
        return row | numbers | {"raw": list(self.raw), "scale": dataclasses.asdict(self.scale)}


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
