"""How well what an engine says agrees with what the model says: ranks, pairs, leading experts."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drexperts.evaluation.metrics import correlation_intervals, plcc, srcc
from drexperts.runtime.manifest import CLEAR_DIFFERENCE, MIN_IMAGES, ConfidenceInterval, SetParity

Array = NDArray[np.float64]

NO_NUMBER = float(np.finfo(np.float64).max)
# Of the largest: a range below it, in both, is flat. What is left of it is mostly rounding, which
# correlates with nothing, and were it turned round it would hardly be seen.
FLAT = 0.05
_NONE = (0.0, 0.0)


class Flips(NamedTuple):
    """How many pairs were ranked the other way round, and of how many."""

    flips: int
    pairs: int


def score_agreement(expected: Array, got: Array, span: float) -> SetParity:
    """How far scores [n] are from the reference's, which are numbers.

    Scores of which some are no numbers, or all the same, have correlations of 0. Intervals are 95 %
    percentile bootstrap over the images, and there are none for fewer than `MIN_IMAGES`.
    """
    flips, pairs = order_flips(expected, got)
    clear_flips, clear_pairs = order_flips(expected, got, CLEAR_DIFFERENCE * span)
    return SetParity(
        images=len(expected),
        score_max=finite(largest_difference(got, expected) / span),
        order_flips=flips,
        pairs=pairs,
        clear_flips=clear_flips,
        clear_pairs=clear_pairs,
        **_correlations(expected, got),
    )


def order_flips(expected: Array, got: Array, apart: float = 0.0) -> Flips:
    """Of the pairs that `expected` [n] has further apart than `apart`, those `got` [n] turns round.

    A pair that is tied in `got` is none of them; one with what is no number is one.
    """
    flips = pairs = 0
    for i in range(len(expected) - 1):
        before = expected[i] - expected[i + 1 :]
        with np.errstate(invalid="ignore"):
            after = got[i] - got[i + 1 :]
        counted = np.abs(before) > apart
        pairs += int(np.sum(counted))
        flips += int(np.sum(counted & ~(np.sign(before) * np.sign(after) >= 0)))
    return Flips(flips, pairs)


def leading_flips(expected: Array, got: Array) -> int:
    """Of how many images [n, 10] another distortion has the largest |weight|."""
    same = np.abs(expected).argmax(1) == np.abs(got).argmax(1)
    return int(np.sum(~(same & np.isfinite(got).all(1))))


def correlation(expected: Array, got: Array) -> float:
    """Pearson's of all values; 0 where there is none."""
    return _number(plcc(expected.ravel(), got.ravel())) if np.isfinite(got).all() else 0.0


def rank_correlation(expected: Array, got: Array) -> float:
    """Spearman's of all values; 0 where there is none."""
    return _number(srcc(expected.ravel(), got.ravel())) if np.isfinite(got).all() else 0.0


def weights_agreement(expected: Array, got: Array) -> dict[str, Any]:
    """SRCC and PLCC of weights [n, 10] over the images, each that of the expert with the lowest.

    By the names of their fields in `Parity`, with the intervals of those experts. Experts whose
    weights are flat beside the largest have none; all values together would hide an inverted one,
    since experts differ more from each other than each does from image to image.
    """
    largest = float(np.abs(expected).max())
    experts = [
        (before, after)
        for before, after in zip(expected.T, got.T, strict=True)
        if not (_is_flat(before, largest) and _is_flat(after, largest))
    ]
    if not experts:
        return {}
    by_rank = _correlations(*min(experts, key=lambda expert: rank_correlation(*expert)))
    by_value = _correlations(*min(experts, key=lambda expert: correlation(*expert)))
    ranks = {f"weights_{name}": by_rank[name] for name in by_rank if "srcc" in name}
    return ranks | {f"weights_{name}": by_value[name] for name in by_value if "plcc" in name}


def maps_correlation(expected: Array, got: Array) -> float | None:
    """Pearson's of all maps of a crop [n, 10, grid, grid], of the crop that has the lowest.

    A mean over the crops would hide one whose maps are wrong. Crops whose maps are flat have none.
    Rank correlation says nothing here: most of a map is next to zero, in an order of rounding.
    """
    kept = [
        correlation(before, after)
        for before, after in zip(expected, got, strict=True)
        if not all(_is_flat(maps, float(np.abs(before).max())) for maps in (before, after))
    ]
    return min(kept, default=None)


def _is_flat(values: Array, largest: float) -> bool:
    """False for what is no number."""
    with np.errstate(invalid="ignore"):
        return bool(np.ptp(values) <= FLAT * largest)


def largest_difference(got: Array, expected: Array) -> float:
    """Max |difference|, NaN where one is."""
    return float(np.abs(got - expected).max())


def finite(value: float) -> float:
    """The value, or the largest number in place of what is none: a manifest holds numbers alone."""
    return value if np.isfinite(value) else NO_NUMBER


def _number(value: float) -> float:
    return float(np.nan_to_num(value))


def _correlations(expected: Array, got: Array) -> dict[str, Any]:
    """SRCC and PLCC by the names of their fields, with intervals of enough images."""
    found: dict[str, Any] = {
        "srcc": rank_correlation(expected, got),
        "plcc": correlation(expected, got),
    }
    if len(expected) < MIN_IMAGES:
        return found
    numbers = np.isfinite(got).all()
    intervals = correlation_intervals(expected, got) if numbers else dict.fromkeys(found, _NONE)
    return found | {
        f"{name}_interval": ConfidenceInterval(*map(_number, ends))
        for name, ends in intervals.items()
    }
