"""How well scores follow labels: correlations, the logistic fit, and how sure both are."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import expit
from scipy.stats import kendalltau, rankdata

from drexperts.runtime.errors import InternalError

Array = NDArray[np.float64]

NAMES = ("srcc", "plcc", "plcc_fitted", "krcc", "rmse")
# Of several distortions of one picture the scores go together: such intervals are too narrow
# for what other pictures would give.
INTERVALS = "95 % intervals by resampling images, not reference contents"

_FIT_NEEDS = 5  # images: four parameters go through any four
_EVALUATIONS = 400  # of the logistic, from each start
_ALMOST_A_LINE = 1e4  # standard deviations of the scores, as the width of a logistic
_AT_ONCE = 4_000_000  # images of all resamples in memory together


class Interval(NamedTuple):
    """From the 2.5th to the 97.5th percentile."""

    low: float
    high: float


@dataclass(frozen=True)
class Metrics:
    """How well scores follow labels; NaN where it cannot be said.

    srcc, plcc, krcc: Spearman's, Pearson's, and Kendall's (tau-b) correlation
    plcc_fitted: Pearson's of labels and scores after the logistic fit. It is never negative: an
        inverted model shows in the others
    rmse: root mean square error after that fit, in units of the labels
    intervals: of each by its name, see `INTERVALS`; the fit stays as it is meanwhile
    """

    images: int
    srcc: float
    plcc: float
    plcc_fitted: float
    krcc: float
    rmse: float
    intervals: dict[str, Interval] = field(default_factory=dict)


class Spread(NamedTuple):
    """One number over several splits: median, population standard deviation, least, largest."""

    median: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """What papers print: each metric over splits. NaN where it is NaN in any split."""

    splits: int
    srcc: Spread
    plcc: Spread
    plcc_fitted: Spread
    krcc: Spread
    rmse: Spread


def srcc(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation; ties share their average rank. NaN if either is constant."""
    return plcc(rankdata(first), rankdata(second))


def plcc(first: ArrayLike, second: ArrayLike) -> float:
    """Pearson's linear correlation. NaN if either is constant."""
    a, b = (_scaled(x)[0] for x in (first, second))
    if min(np.ptp(a), np.ptp(b)) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else math.nan


def krcc(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's rank correlation tau-b. NaN if either is constant."""
    if np.size(first) < 2:
        return math.nan
    return float(kendalltau(first, second).statistic)


def rmse(first: ArrayLike, second: ArrayLike) -> float:
    """Root mean square difference, in the units of both."""
    differences, exponent = _scaled(np.asarray(first, float) - np.asarray(second, float))
    return _in_units(float(np.sqrt(np.mean(differences**2))), exponent)


def fitted(labels: ArrayLike, predictions: ArrayLike) -> Array:
    """Scores brought to the labels by the four-parameter logistic, as the VQEG does.

    b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)), the least squares that are reached from several
    starts: rising and falling, steep and gentle, at the middle and the ends of the scores, and as
    good as straight. From the last it follows that what comes out correlates with the labels at
    least as well as the scores themselves, but for rounding, whichever way those go. That no other
    four parameters are better is likely, and not guaranteed.

    Args:
        labels: [n].
        predictions: [n], on any scale.

    Returns:
        [n], in units of the labels; NaN for fewer than five images, constant labels or scores.
    """
    (y, unit), (x, _) = _scaled(labels), _scaled(predictions)
    if len(x) < _FIT_NEEDS or min(np.ptp(x), np.ptp(y)) == 0:
        return np.full(len(x), math.nan)
    scores, targets = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    candidates = [_improved(start, scores, targets) for start in _starts(scores, targets)]
    best = min(candidates, key=lambda b: float(np.sum((_logistic(b, scores) - targets) ** 2)))
    return np.asarray(np.ldexp(_logistic(best, scores) * y.std() + y.mean(), unit))


def judge(
    labels: ArrayLike, predictions: ArrayLike, *, seed: int = 0, resamples: int = 1000
) -> Metrics:
    """All metrics of predicted scores [n] against labels [n], with intervals.

    An interval is from resampling the images, not the reference contents: where several images
    show the same content, as in sets of distorted pictures, it is narrower than one that says how
    far another choice of contents would have moved the metric.

    resamples: of the images, for the intervals; 0 leaves those out

    Raises InternalError for scores or labels that are no numbers, and for none at all.
    """
    y, x = (np.asarray(values, float) for values in (labels, predictions))
    if y.ndim != 1 or y.shape != x.shape or not len(y):
        raise InternalError(f"labels {y.shape} and scores {x.shape} were to be judged")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InternalError("labels or scores that are no numbers were to be judged")
    (y, unit), (x, _) = _scaled(y), _scaled(x)
    fit = fitted(y, x)
    values = (srcc(y, x), plcc(y, x), plcc(y, fit), krcc(y, x), _in_units(rmse(y, fit), unit))
    intervals = _intervals(y, x, fit, seed, resamples) if resamples else {}
    if resamples:
        intervals["rmse"] = Interval(*(_in_units(end, unit) for end in intervals["rmse"]))
    return Metrics(len(y), **dict(zip(NAMES, values, strict=True)), intervals=intervals)


def correlation_intervals(
    first: ArrayLike, second: ArrayLike, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Interval]:
    """Of "srcc" and "plcc" of two [n], by resampling the n as `judge` does; NaN as there."""
    a, b = (_scaled(x)[0] for x in (first, second))
    values = _over_resamples(
        len(a), lambda drawn: _resampled_correlations(a, b, drawn), seed, resamples
    )
    return {name: _interval(row) for name, row in zip(NAMES, values, strict=False)}


def median_metrics(metrics: Sequence[Metrics]) -> Summary:
    """Each metric over the splits; there must be one at least."""
    spreads = {}
    for name in NAMES:
        values = np.array([getattr(each, name) for each in metrics])
        numbers = (np.median(values), values.std(), values.min(), values.max())
        spreads[name] = Spread(*map(float, numbers))
    return Summary(len(metrics), **spreads)


def json_ready(results: Metrics | Summary) -> dict[str, Any]:
    """The fields by name, intervals and spreads by theirs, and None for NaN."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(results))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _scaled(values: ArrayLike) -> tuple[Array, int]:
    """Values and an exponent e: they times 2^e are those given, and the largest is near one.

    Their squares then neither overflow nor vanish, and a power of two changes no digit.
    """
    array = np.asarray(values, float)
    exponent = int(np.frexp(np.abs(array).max())[1])
    return np.ldexp(array, -exponent), exponent


def _in_units(value: float, exponent: int) -> float:
    return float(np.ldexp(value, exponent))


def _logistic(b: Array, x: Array) -> Array:
    # A width of zero is a step; what overflows on the way there saturates.
    with np.errstate(over="ignore"):
        slope = (x - b[2]) / max(abs(b[3]), np.finfo(float).tiny)
    return np.asarray(b[1] + (b[0] - b[1]) * expit(slope))


def _starts(x: Array, y: Array) -> list[Array]:
    """Where the fit begins, of standardised scores and labels."""
    middle = float(np.median(x))
    # The middle two thirds: an outlier may have the standard deviation to itself.
    spread = float(np.subtract(*np.quantile(x, (5 / 6, 1 / 6)))) / 2
    ends = (y.max(), y.min()), (y.min(), y.max())
    centres = np.quantile(x, (0.1, 0.5, 0.9)).tolist()
    places = [*itertools.product(centres, (0.1, 1.0)), (0.0, 0.25)]
    places += [(middle, spread / 2)] * (spread > 0)
    starts = [np.array([*pair, *place]) for pair in ends for place in places]
    # At its centre the logistic's slope is (b1 - b2) / (4 b4).
    rise = 2 * _ALMOST_A_LINE * float(np.mean(x * y))
    return [*starts, np.array([rise, -rise, 0.0, _ALMOST_A_LINE])]


def _improved(start: Array, x: Array, y: Array) -> Array:
    """The parameters that Levenberg-Marquardt reaches; it never leaves for worse ones."""
    reached = least_squares(
        lambda b: _logistic(b, x) - y, start, method="lm", x_scale="jac", max_nfev=_EVALUATIONS
    ).x
    return np.asarray(reached) if np.isfinite(reached).all() else start


def _intervals(
    labels: Array, predictions: Array, fit: Array, seed: int, resamples: int
) -> dict[str, Interval]:
    """95 % percentile bootstrap over the images."""
    values = _over_resamples(
        len(labels), lambda drawn: _resampled(labels, predictions, fit, drawn), seed, resamples
    )
    return {name: _interval(row) for name, row in zip(NAMES, values, strict=True)}


def _over_resamples(
    count: int, measure: Callable[[NDArray[np.int64]], Array], seed: int, resamples: int
) -> Array:
    """[k, resamples]: what `measure` makes [k, r] of how often each image was drawn [r, n]."""
    generator = np.random.default_rng(seed)
    parts = []
    for done in range(0, resamples, rows := max(1, _AT_ONCE // count)):
        chosen = generator.integers(0, count, (min(rows, resamples - done), count))
        parts.append(measure(_drawn(chosen)))
    return np.concatenate(parts, axis=1)


def _drawn(chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each image was drawn [r, n], of resamples that are indices of the images [r, n]."""
    rows, count = chosen.shape
    places = (chosen + count * np.arange(rows)[:, None]).ravel()
    return np.bincount(places, minlength=rows * count).reshape(rows, count)


def _resampled(labels: Array, predictions: Array, fit: Array, drawn: NDArray[np.int64]) -> Array:
    """The metrics [5, r] of r resamples [r, n]."""
    error = drawn @ (labels - fit) ** 2 / len(labels)
    return np.stack(
        [
            *_resampled_correlations(labels, predictions, drawn),
            _correlations(drawn, labels[None], fit[None]),
            _taus(drawn, labels, predictions),
            np.sqrt(error),
        ]
    )


def _resampled_correlations(first: Array, second: Array, drawn: NDArray[np.int64]) -> Array:
    """SRCC and PLCC [2, r] of r resamples [r, n]."""
    ranked = _correlations(drawn, _ranks(drawn, first), _ranks(drawn, second))
    return np.stack([ranked, _correlations(drawn, first[None], second[None])])


def _by_value(drawn: NDArray[np.int64], inverse: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each different value was drawn, [r, different values], lowest first."""
    sizes = np.bincount(inverse)
    together = drawn[:, np.argsort(inverse, kind="stable")]
    return np.add.reduceat(together, np.cumsum(sizes) - sizes, axis=1)


def _ranks(drawn: NDArray[np.int64], values: Array) -> Array:
    """The rank of each value in each resample, ties averaged, from how often each was drawn."""
    inverse = np.unique(values, return_inverse=True)[1]
    tied = _by_value(drawn, inverse)
    ranks: Array = (np.cumsum(tied, axis=1) - (tied - 1) / 2)[:, inverse]
    return ranks


def _correlations(drawn: NDArray[np.int64], first: Array, second: Array) -> Array:
    """Pearson's correlation [r] of values [r or 1, n], each as often as it was drawn."""
    constant = _constant(drawn, first) | _constant(drawn, second)
    total = drawn.sum(axis=1, keepdims=True)
    a, b = (x - (drawn * x).sum(axis=1, keepdims=True) / total for x in (first, second))
    norm = np.sqrt((drawn * a * a).sum(axis=1) * (drawn * b * b).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.clip((drawn * a * b).sum(axis=1) / norm, -1.0, 1.0)  # rounding goes beyond
    return np.where(constant, math.nan, found)


def _constant(drawn: NDArray[np.int64], values: Array) -> NDArray[np.bool_]:
    most, least = (np.where(drawn > 0, values, end) for end in (-math.inf, math.inf))
    same: NDArray[np.bool_] = most.max(axis=1) == least.min(axis=1)
    return same


def _taus(drawn: NDArray[np.int64], first: Array, second: Array) -> Array:
    """Kendall's tau-b [r] of values [n], each as often as it was drawn [r, n]."""
    x, y = (np.unique(values, return_inverse=True)[1] for values in (first, second))
    order = np.lexsort((y, x))  # pairs tied in x come with rising y, and are not discordant
    drawn, x, y = drawn[:, order], x[order], y[order]
    count = drawn.sum(axis=1)
    pairs = count * (count - 1) // 2
    tied_x, tied_y, tied = (_tied_pairs(drawn, v) for v in (x, y, x * (y.max() + 1) + y))
    excess = pairs - tied_x - tied_y + tied - 2 * _discordant(drawn, y)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(excess / np.sqrt((pairs - tied_x) * (pairs - tied_y).astype(float)))


def _tied_pairs(drawn: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many pairs of draws [r, n] have equal values [n]."""
    times = _by_value(drawn, np.unique(values, return_inverse=True)[1])
    return np.asarray((times * (times - 1) // 2).sum(axis=1))


def _discordant(drawn: NDArray[np.int64], ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many pairs of draws [r, n] have falling ranks [n] from 0: a Fenwick tree of each row."""
    most, rows = int(ranks.max()) + 1, len(drawn)
    tree = np.zeros((most + 1, rows), np.int64)  # what was drawn so far, by rank
    seen, pairs = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for times, rank in zip(np.ascontiguousarray(drawn.T), ranks.tolist(), strict=True):
        not_above, place = np.zeros(rows, np.int64), rank + 1
        while place:
            not_above += tree[place]
            place &= place - 1
        pairs += times * (seen - not_above)
        seen += times
        place = rank + 1
        while place <= most:
            tree[place] += times
            place += place & -place
    return pairs


def _interval(values: Array) -> Interval:
    """Over the resamples in which there was something to correlate."""
    numbers = values[~np.isnan(values)]
    if not len(numbers):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(numbers, (0.025, 0.975))
    return Interval(float(low), float(high))
