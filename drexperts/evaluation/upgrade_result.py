"""What `compare_results` finds."""

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drexperts.evaluation.flips import Flips
from drexperts.evaluation.metrics import json_ready
from drexperts.evaluation.sides import Side


class Distribution(NamedTuple):
    """Scores, or changes of them, in a few numbers; p05 and p95 are the 5th and 95th percentile."""

    mean: float
    minimum: float
    p05: float
    median: float
    p95: float
    maximum: float


class MovedImage(NamedTuple):
    """An image, its scores, and how far it moved, which is b - a."""

    source: str
    a: float
    b: float
    change: float


class FailedImage(NamedTuple):
    """An image and why it has no score."""

    source: str
    error: str


@dataclass(frozen=True, kw_only=True)
class ResultComparison:
    """What `compare_results` found.

    a, b: the two sides
    differing: in what the contracts differ, one line each; empty unless that was allowed
    only_a, only_b: how many images only one side has
    failed_a, failed_b, failed_both: of the images that both sides have, how many have an error in
        a only, in b only, and in both
    images: how many have a score in both: all that follows is about these
    srcc, plcc: correlations of the scores; NaN where a side has the same score for all
    threshold: how large a change matters, in units of the scale of a
    flips: the pairs of images that a tells apart, and those that b ranks in the opposite order
    clear_flips: the same for pairs that are more than the threshold apart in a
    moved: how many images moved by more than the threshold
    largest: the largest change, without its sign
    scores_a, scores_b, changes: their distributions; a change is b - a
    most_moved: the images that moved most, up to twenty, those that moved farthest first
    newly_failed: of the images with an error in b only, the first twenty in the order of a
    values: float64 [2, images], the scores of a and of b; not part of the JSON document

    The scores of b are on the scale of a: where the two differ, and that was allowed, they were
    mapped to it, the ends to the ends, the better end to the better one.
    """

    a: Side
    b: Side
    differing: tuple[str, ...]
    only_a: int
    only_b: int
    failed_a: int
    failed_b: int
    failed_both: int
    images: int
    srcc: float
    plcc: float
    threshold: float
    flips: Flips
    clear_flips: Flips
    moved: int
    largest: float
    scores_a: Distribution
    scores_b: Distribution
    changes: Distribution
    most_moved: tuple[MovedImage, ...]
    newly_failed: tuple[FailedImage, ...]
    values: NDArray[np.float64] = field(repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """The document that `drx compare --json` prints; undefined numbers are None."""
        names = (each.name for each in fields(self) if each.name != "values")
        return {name: json_ready(getattr(self, name)) for name in names}
