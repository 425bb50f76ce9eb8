"""How well scores follow labels: correlations, the logistic fit, and their confidence intervals."""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import expit
from scipy.stats import DegenerateDataWarning, bootstrap, kendalltau, rankdata

from drexperts.runtime.errors import InternalError

Array = NDArray[np.float64]

NAMES = ("srcc", "plcc", "plcc_fitted", "krcc", "rmse")
# Several distortions of one picture get similar scores: such intervals are too narrow to say what
# other pictures would give.
INTERVALS = "95 % intervals from resampling the images, not the reference contents"

_FIT_NEEDS = 5  # images: four parameters go through any four
_EVALUATIONS = 400  # of the logistic, from each start
_ALMOST_A_LINE = 1e4  # width of a logistic that is nearly straight, in standard deviations
_AT_ONCE = 4_000_000  # values of all resamples that are in memory together


class Interval(NamedTuple):
    """The 2.5th and the 97.5th percentile over bootstrap resamples."""

    low: float
    high: float


class Change(NamedTuple):
    """By how much a metric differs between two models on the same images, and its interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Metrics:
    """How well scores follow labels. A value is NaN where it is not defined.

    srcc, plcc, krcc: Spearman's, Pearson's and Kendall's (tau-b) correlation
    plcc_fitted: Pearson's correlation of labels and scores after the logistic fit. It is never
        negative, so an inverted model shows in the other correlations only
    rmse: root mean square error after that fit, in units of the labels
    intervals: one per metric, by name, see `INTERVALS`; the fit is not repeated for resamples
    """

    images: int
    srcc: float
    plcc: float
    plcc_fitted: float
    krcc: float
    rmse: float
    intervals: dict[str, Interval] = field(default_factory=dict)


class Spread(NamedTuple):
    """One number over several splits: median, population standard deviation, minimum, maximum."""

    median: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class MetricsSummary:
    """What papers print: each metric over the splits, NaN where it is NaN in any split."""

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
    return float(_pearson(_scaled(first)[0], _scaled(second)[0]))


def krcc(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's rank correlation tau-b. NaN if either is constant."""
    if np.size(first) < 2:
        return math.nan
    # Only the p-value depends on the method. This one is the cheapest, but not defined for two.
    method = "asymptotic" if np.size(first) > 2 else "auto"
    return float(kendalltau(first, second, method=method).statistic)


def rmse(first: ArrayLike, second: ArrayLike) -> float:
    """Root mean square difference, in the units of both."""
    differences, exponent = _scaled(np.asarray(first, float) - np.asarray(second, float))
    return _in_units(float(np.sqrt(np.mean(differences**2))), exponent)


def fitted(labels: ArrayLike, predictions: ArrayLike) -> Array:
    """Map scores to the labels with the four-parameter logistic that the VQEG uses.

    The function is b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)). Its parameters are the best
    least-squares solution from several starts: rising and falling, steep and gentle, centred in the
    middle and at the ends of the scores, and almost straight. Because of the last start the result
    correlates with the labels at least as well as the scores do, up to rounding, in either
    direction. That no other parameters are better is likely but not guaranteed.

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


def compute_metrics(
    labels: ArrayLike, predictions: ArrayLike, *, seed: int = 0, resamples: int = 1000
) -> Metrics:
    """All metrics of predicted scores [n] against labels [n], with intervals.

    An interval comes from resampling the images, not the reference contents. Where several images
    show the same content, as in sets of distorted pictures, it is narrower than one that says how
    far another choice of contents would have moved the metric.

    resamples: bootstrap resamples of the images; 0 leaves the intervals out

    Raises InternalError for scores or labels that are not finite, and for an empty input.
    """
    y, x = (np.asarray(values, float) for values in (labels, predictions))
    if y.ndim != 1 or y.shape != x.shape or not len(y):
        raise InternalError(f"labels {y.shape} and scores {x.shape} cannot be compared")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InternalError("labels and scores must be finite")
    (y, unit), (x, _) = _scaled(y), _scaled(x)
    fit = fitted(y, x)
    values = (srcc(y, x), plcc(y, x), plcc(y, fit), krcc(y, x), _in_units(rmse(y, fit), unit))
    intervals = {}
    if resamples:
        found = _intervals(
            len(y), lambda chosen: _resampled(y[chosen], x[chosen], fit[chosen]), seed, resamples
        )
        intervals = dict(zip(NAMES, found, strict=True))
        intervals["rmse"] = Interval(*(_in_units(end, unit) for end in intervals["rmse"]))
    return Metrics(len(y), *values, intervals=intervals)


def correlation_intervals(
    first: ArrayLike, second: ArrayLike, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Interval]:
    """The intervals of "srcc" and "plcc" of two [n], made as in `compute_metrics`; NaN as there."""
    a, b = (_scaled(x)[0] for x in (first, second))
    found = _intervals(len(a), lambda chosen: _correlations(a[chosen], b[chosen]), seed, resamples)
    return dict(zip(NAMES, found, strict=False))


def correlation_changes(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Change]:
    """By how much the second "srcc" and "plcc" of labels and scores exceed the first.

    Each resample takes the same images of both, so that what the two have in common cancels: the
    interval is narrower than those of the two correlations.

    Args:
        first, second: labels [n] and scores [n] of the same images in the same order.
    """
    pairs = [tuple(_scaled(values)[0] for values in pair) for pair in (first, second)]

    def measure(chosen: NDArray[np.int64]) -> Array:
        before, after = (_correlations(*(values[chosen] for values in pair)) for pair in pairs)
        return after - before

    whole = measure(np.arange(len(pairs[0][0]))[np.newaxis])[:, 0].tolist()
    intervals = _intervals(len(pairs[0][0]), measure, seed, resamples)
    changes = map(Change, whole, intervals)
    return dict(zip(NAMES, changes, strict=False))


def median_metrics(metrics: Sequence[Metrics]) -> MetricsSummary:
    """Each metric over the splits, of which there must be at least one."""
    spreads = {name: spread([getattr(each, name) for each in metrics]) for name in NAMES}
    return MetricsSummary(len(metrics), **spreads)


def spread(values: Sequence[float]) -> Spread:
    """The spread of one number over the splits, of which there must be at least one."""
    array = np.array(values)
    numbers = (np.median(array), array.std(), array.min(), array.max())
    return Spread(*map(float, numbers))


def json_ready(report: Any) -> Any:
    """A report as JSON values: dataclasses and named tuples by field name, None for NaN."""
    if dataclasses.is_dataclass(report):
        report = {each.name: getattr(report, each.name) for each in dataclasses.fields(report)}
    elif isinstance(report, tuple) and hasattr(report, "_asdict"):
        report = report._asdict()
    if isinstance(report, Mapping):
        return {name: json_ready(value) for name, value in report.items()}
    if isinstance(report, tuple | list):
        return [json_ready(value) for value in report]
    return None if isinstance(report, float) and math.isnan(report) else report


def metrics_from_json(document: Mapping[str, Any]) -> Metrics:
    """The inverse of `json_ready`. Raises KeyError, TypeError or ValueError for anything else."""
    numbers = {name: _number(document[name]) for name in NAMES}
    intervals = {
        name: Interval(_number(ends["low"]), _number(ends["high"]))
        for name, ends in document["intervals"].items()
    }
    return Metrics(int(document["images"]), **numbers, intervals=intervals)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _scaled(values: ArrayLike) -> tuple[Array, int]:
    """Values whose largest is near one, and the exponent e: times 2^e they are those given.

    Their squares then neither overflow nor vanish, and a power of two changes no digit.
    """
    array = np.asarray(values, float)
    exponent = int(np.frexp(np.abs(array).max())[1])
    return np.ldexp(array, -exponent), exponent


def _in_units(value: float, exponent: int) -> float:
    return float(np.ldexp(value, exponent))


def _logistic(b: Array, x: Array) -> Array:
    # A width of zero is a step; a slope that overflows on the way there saturates.
    with np.errstate(over="ignore"):
        slope = (x - b[2]) / max(abs(b[3]), np.finfo(float).tiny)
    return np.asarray(b[1] + (b[0] - b[1]) * expit(slope))


def _starts(x: Array, y: Array) -> list[Array]:
    """The parameters at which fits of standardised scores and labels begin."""
    middle = float(np.median(x))
    # Of the middle two thirds: a single outlier can make up the whole standard deviation.
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
    """The parameters that Levenberg-Marquardt reaches, which are never worse than the start."""
    reached = least_squares(
        lambda b: _logistic(b, x) - y, start, method="lm", x_scale="jac", max_nfev=_EVALUATIONS
    ).x
    return np.asarray(reached) if np.isfinite(reached).all() else start


def _intervals(
    count: int, measure: Callable[[NDArray[np.int64]], Array], seed: int, resamples: int
) -> list[Interval]:
    """95 % percentile bootstrap over the images, one interval per metric.

    measure: the metrics [k, r] of r resamples, given which images each of them has [r, n]
    """
    if count < 2:
        return [Interval(math.nan, math.nan)] * len(NAMES)
    with warnings.catch_warnings():  # SciPy warns of resamples in which a metric is not defined
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (np.arange(count),),
            lambda chosen, axis: measure(chosen),
            n_resamples=resamples,
            batch=max(1, _AT_ONCE // count),
            vectorized=True,
            axis=-1,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return [_interval(values) for values in found.bootstrap_distribution]


def _resampled(labels: Array, predictions: Array, fit: Array) -> Array:
    """The metrics [5, r] of r resamples [r, n]."""
    return np.stack(
        [
            *_correlations(labels, predictions),
            _pearson(labels, fit),
            [krcc(*pair) for pair in zip(labels, predictions, strict=True)],
            np.sqrt(np.mean((labels - fit) ** 2, axis=-1)),
        ]
    )


def _correlations(first: Array, second: Array) -> Array:
    """SRCC and PLCC [2, r] of r resamples [r, n]."""
    ranks = (rankdata(values, axis=-1) for values in (first, second))
    return np.stack([_pearson(*ranks), _pearson(first, second)])


def _pearson(first: Array, second: Array) -> Array:
    """Pearson's correlation [...] over the last axis; NaN where either is constant."""
    constant = (np.ptp(first, axis=-1) == 0) | (np.ptp(second, axis=-1) == 0)
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.vecdot(a, b) / np.sqrt(np.vecdot(a, a) * np.vecdot(b, b))
    # Rounding can leave [-1, 1].
    return np.where(constant, math.nan, np.clip(found, -1.0, 1.0))


def _interval(values: Array) -> Interval:
    """The interval over the resamples in which the metric is defined."""
    numbers = values[~np.isnan(values)]
    if not len(numbers):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(numbers, (0.025, 0.975))
    return Interval(float(low), float(high))
