"""How well the outputs of an engine agree with those of the model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drexperts.evaluation.flips import order_flips
from drexperts.evaluation.metrics import correlation_intervals, plcc, srcc
from drexperts.runtime.proof import CLEAR_DIFFERENCE, MIN_IMAGES, ConfidenceInterval, SetParity

Array = NDArray[np.float64]

LARGEST_NUMBER = float(np.finfo(np.float64).max)
# Values whose range is below this fraction of the largest, in engine and model, are flat. What
# varies in them is mostly rounding, which correlates with nothing.
FLAT = 0.05
_NO_CORRELATION = (0.0, 0.0)


class Correlations(NamedTuple):
    """SRCC and PLCC, with 95 % intervals where there are enough images."""

    srcc: float
    plcc: float
    srcc_interval: ConfidenceInterval | None = None
    plcc_interval: ConfidenceInterval | None = None


class MapsAgreement(NamedTuple):
    """What `Parity` says of maps, by the same names."""

    maps_max: float | None = None
    maps_p99: float | None = None
    maps_plcc: float | None = None
    maps_plcc_p01: float | None = None


def score_agreement(expected: Array, got: Array, span: float) -> SetParity:
    """How far scores [n] are from the reference's, which are finite.

    If some scores are not finite, or all are equal, the correlations are 0. Intervals are 95 %
    percentile bootstrap intervals over the images, for at least `MIN_IMAGES` of them.
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
        **_correlations(expected, got)._asdict(),
    )


def leading_flips(expected: Array, got: Array) -> int:
    """The number of images [n, 10] in which another distortion has the largest |weight|."""
    same = np.abs(expected).argmax(1) == np.abs(got).argmax(1)
    return int(np.sum(~(same & np.isfinite(got).all(1))))


def correlation(expected: Array, got: Array) -> float:
    """Pearson's correlation of all values; 0 where it is undefined."""
    return _defined(plcc(expected.ravel(), got.ravel())) if np.isfinite(got).all() else 0.0


def rank_correlation(expected: Array, got: Array) -> float:
    """Spearman's correlation of all values; 0 where it is undefined."""
    return _defined(srcc(expected.ravel(), got.ravel())) if np.isfinite(got).all() else 0.0


def weights_agreement(expected: Array, got: Array) -> Correlations | None:
    """SRCC and PLCC of weights [n, 10] over the images, each of the expert that has the lowest.

    Experts whose weights are flat beside the largest are left out; None if all are. A correlation
    of all values together would hide an inverted expert, since experts differ more from each other
    than each does between images.
    """
    largest = float(np.abs(expected).max())
    experts = [
        (before, after)
        for before, after in zip(expected.T, got.T, strict=True)
        if not (_is_flat(before, largest) and _is_flat(after, largest))
    ]
    if not experts:
        return None
    ranks = _correlations(*min(experts, key=lambda expert: rank_correlation(*expert)))
    values = _correlations(*min(experts, key=lambda expert: correlation(*expert)))
    return Correlations(ranks.srcc, values.plcc, ranks.srcc_interval, values.plcc_interval)


def maps_agreement(expected: Array, got: Array) -> MapsAgreement:
    """How far the maps of crops [n, 10, grid, grid] are from the reference's.

    The correlation is Pearson's over all maps of a crop, the lowest of any crop and the first
    percentile: a mean over the crops would hide one whose maps are wrong. Crops whose maps are flat
    are left out; None if all are. There is no rank correlation: most of a map is next to zero,
    where the order is one of rounding errors.
    """
    drift = np.abs(got - expected).reshape(len(got), -1).max(1)
    kept = [
        correlation(before, after)
        for before, after in zip(expected, got, strict=True)
        if not all(_is_flat(maps, float(np.abs(before).max())) for maps in (before, after))
    ]
    lowest = (min(kept), percentile(kept, 1)) if kept else (None, None)
    return MapsAgreement(finite(float(drift.max())), percentile(drift, 99), *lowest)


def percentile(values: Array | Sequence[float], percent: float) -> float:
    """A percentile, or the largest float beside a value that is not finite."""
    with np.errstate(invalid="ignore"):
        return finite(float(np.percentile(values, percent)))


def _is_flat(values: Array, largest: float) -> bool:
    """Whether the values hardly vary; False if one is not finite."""
    with np.errstate(invalid="ignore"):
        return bool(np.ptp(values) <= FLAT * largest)


def largest_difference(got: Array, expected: Array) -> float:
    """The largest |difference|; NaN if one is NaN."""
    return float(np.abs(got - expected).max())


def finite(value: float) -> float:
    """The value, or the largest float if it is not finite: a manifest holds finite numbers only."""
    return value if np.isfinite(value) else LARGEST_NUMBER


def _defined(value: float) -> float:
    return float(np.nan_to_num(value))


def _correlations(expected: Array, got: Array) -> Correlations:
    point = Correlations(rank_correlation(expected, got), correlation(expected, got))
    if len(expected) < MIN_IMAGES:
        return point
    ends = dict.fromkeys(("srcc", "plcc"), _NO_CORRELATION)
    if np.isfinite(got).all():
        ends |= correlation_intervals(expected, got)
    low_high = {
        name: ConfidenceInterval(*map(_defined, interval)) for name, interval in ends.items()
    }
    return point._replace(srcc_interval=low_high["srcc"], plcc_interval=low_high["plcc"])
