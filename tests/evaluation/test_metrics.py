"""Metrics against SciPy's and closed forms, the logistic fit, intervals, summaries."""

import itertools
import json
import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import kendalltau, pearsonr, spearmanr

from drexperts.evaluation.metrics import (
    NAMES,
    Metrics,
    _logistic,
    compute_metrics,
    correlation_changes,
    correlation_intervals,
    fitted,
    json_ready,
    krcc,
    median_metrics,
    metrics_from_json,
    plcc,
    rmse,
    srcc,
)
from drexperts.runtime.errors import InternalError


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def logistic_data(count: int = 200, seed: int = 0) -> tuple[NDArray[np.float64], ...]:
    """Labels that follow a steep logistic of the scores, and the scores."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=count)
    labels = 20 + 60 / (1 + np.exp(-(scores - 0.3) / 0.2)) + rng.normal(size=count)
    return labels, scores


@pytest.mark.parametrize("values", [2, 5, 1000], ids=["most tied", "some tied", "few tied"])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scipy(values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, values, 60).astype(float)
    second = first + rng.integers(0, values, 60)
    assert srcc(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert plcc(first, second) == pytest.approx(pearsonr(first, second).statistic, abs=1e-12)
    assert krcc(first, second) == pytest.approx(kendalltau(first, second).statistic, abs=1e-12)


def test_tau_b_by_hand() -> None:
    """Six pairs, of which one is tied in the first and one discordant: (4 - 1) / sqrt(5 * 6)."""
    assert krcc([1, 1, 2, 3], [1, 2, 4, 3]) == pytest.approx(3 / math.sqrt(30))


def test_rmse_by_hand() -> None:
    assert rmse([1, 2, 3], [1, 4, 7]) == pytest.approx(math.sqrt(20 / 3))


def test_ranks_ignore_a_monotone_curve() -> None:
    scores = np.linspace(-2, 2, 30)
    assert srcc(scores, np.exp(scores)) == pytest.approx(1)
    assert srcc(scores, -(scores**3)) == pytest.approx(-1)
    assert plcc(scores, np.exp(scores)) < 0.99


def test_a_constant_correlates_with_nothing() -> None:
    for correlation in (srcc, plcc, krcc):
        assert math.isnan(correlation([1, 1, 1], [1, 2, 3]))
        assert math.isnan(correlation([1, 2, 3], [5, 5, 5]))
        # The mean of these is not exactly any of them.
        assert math.isnan(correlation([0.1] * 10, np.arange(10)))
        assert math.isnan(correlation([1], [2]))


def test_the_fit_finds_the_logistic() -> None:
    labels, scores = logistic_data()
    expected = 20 + 60 / (1 + np.exp(-(scores - 0.3) / 0.2))
    np.testing.assert_allclose(fitted(labels, scores), expected, atol=1.0)
    assert plcc(labels, fitted(labels, scores)) > 0.998 > 0.97 > plcc(labels, scores)


@pytest.mark.parametrize("factor", [1e6, 1e-6, -1.0, -1e6])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_fit_is_of_any_scale_and_direction(factor: float, offset: float) -> None:
    labels, scores = logistic_data()
    changed = factor * (scores + offset)
    np.testing.assert_allclose(fitted(labels, changed), fitted(labels, scores), atol=1e-3)


def test_the_fit_stands_an_outlier() -> None:
    labels, scores = logistic_data()
    scores[0] = 1e4
    assert plcc(labels, scores) < 0.2
    assert plcc(labels[1:], fitted(labels, scores)[1:]) > 0.99


@pytest.mark.parametrize("seed", [12, 15, 24, 45])
@pytest.mark.slow
def test_the_fit_is_the_best_of_many_starts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=60)
    scores = labels + rng.normal(size=60) * (3, 1, 0.5)[seed % 3]
    x, y = ((values - values.mean()) / values.std() for values in (scores, labels))
    costs = [
        least_squares(lambda b: _logistic(b, x) - y, [sign * 2, -sign * 2, centre, width]).cost
        for sign, centre, width in itertools.product(
            (1, -1), np.quantile(x, (0.1, 0.3, 0.7, 0.9)), (0.05, 0.3, 1)
        )
    ]
    best = labels.std() * math.sqrt(2 * min(costs) / len(labels))
    assert rmse(labels, fitted(labels, scores)) < 1.001 * best


@pytest.mark.parametrize(
    ("of_labels", "of_scores"),
    [(1.0, 1e-320), (1e-200, 1e300), (1e-320, 1e160), (1e160, 1.0), (1e300, 1e-200)],
)
def test_no_scale_is_too_small_or_too_large(of_labels: float, of_scores: float) -> None:
    labels, scores = logistic_data(40)
    expected = compute_metrics(labels, scores, resamples=20)
    # Below 1e-308 a float has few digits left.
    close = 1e-2 if min(of_labels, of_scores) < 1e-308 else 1e-6
    found = compute_metrics(of_labels * labels, of_scores * scores, resamples=20)
    assert plcc(of_labels * labels, of_scores * scores) == pytest.approx(expected.plcc, rel=close)
    for name in NAMES:
        unit = of_labels if name == "rmse" else 1.0
        assert getattr(found, name) / unit == pytest.approx(getattr(expected, name), rel=close)
        ends = [end / unit for end in found.intervals[name]]
        assert ends == pytest.approx(expected.intervals[name], rel=close)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(-20, 20), st.integers(-1000, 1000)), min_size=5, max_size=40
    ).filter(lambda rows: all(len(set(column)) > 1 for column in zip(*rows, strict=True)))
)
@pytest.mark.slow
def test_the_fit_is_never_worse_than_the_scores(rows: list[tuple[int, int]]) -> None:
    labels, scores = np.array(rows, float).T
    after = plcc(labels, fitted(labels, scores))
    before = abs(plcc(labels, scores))
    # A fit that is flat but for rounding has no correlation, nor had the scores.
    assert after >= before - 1e-4 or (math.isnan(after) and before < 1e-3)


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([1, 2, 3, 4], [1, 2, 3, 5]), ([1] * 9, range(9)), (range(9), [0.1] * 9), ([1], [1])],
    ids=["four images", "constant labels", "constant scores", "one image"],
)
def test_the_fit_needs_five_images_and_variation(labels: list[float], scores: list[float]) -> None:
    assert np.isnan(fitted(labels, scores)).all()
    metrics = compute_metrics(labels, scores, resamples=50)
    assert math.isnan(metrics.plcc_fitted)
    assert math.isnan(metrics.rmse)
    assert metrics.images == len(labels)


def test_judge() -> None:
    labels, scores = logistic_data()
    metrics = compute_metrics(labels, scores)
    fit = fitted(labels, scores)
    assert metrics.images == 200
    assert metrics.srcc == srcc(labels, scores)
    assert metrics.plcc == plcc(labels, scores)
    assert metrics.plcc_fitted == plcc(labels, fit)
    assert metrics.krcc == krcc(labels, scores)
    assert metrics.rmse == rmse(labels, fit)
    assert 0.8 < metrics.rmse < 1.2  # the noise of the labels, in their units
    assert set(metrics.intervals) == set(NAMES)
    for name, (low, high) in metrics.intervals.items():
        assert low < getattr(metrics, name) < high


def test_intervals_are_those_of_the_seed() -> None:
    labels, scores = logistic_data()
    first, again, other = (
        compute_metrics(labels, scores, seed=s, resamples=100) for s in (3, 3, 4)
    )
    assert first == again
    assert first.intervals != other.intervals
    assert compute_metrics(labels, scores, resamples=0).intervals == {}


@pytest.mark.slow
def test_the_interval_of_a_correlation_is_fishers() -> None:
    """For normal values, atanh of Pearson's is normal with standard deviation 1 / sqrt(n - 3)."""
    rng = np.random.default_rng(1)
    labels = rng.normal(size=500)
    scores = labels + rng.normal(size=500)
    metrics = compute_metrics(labels, scores)
    expected = np.tanh(np.arctanh(metrics.plcc) + np.array([-1.96, 1.96]) / math.sqrt(497))
    np.testing.assert_allclose(metrics.intervals["plcc"], expected, atol=0.015)


@pytest.mark.parametrize("count", [4, 30])
def test_intervals_are_percentiles_of_metrics_over_resampled_images(count: int) -> None:
    rng = np.random.default_rng(count)
    labels, scores = rng.integers(0, 8, (2, count)).astype(float)
    found = compute_metrics(labels, scores, seed=7, resamples=200)
    fit = fitted(labels, scores)
    chosen = np.random.default_rng(7).integers(0, count, (200, count))
    of = {"srcc": srcc, "plcc": plcc, "krcc": krcc}
    for name, correlation in of.items():
        values = [correlation(labels[row], scores[row]) for row in chosen]
        expected = np.nanquantile(values, (0.025, 0.975))
        np.testing.assert_allclose(found.intervals[name], expected, atol=1e-12)
    if count >= 5:
        values = [rmse(labels[row], fit[row]) for row in chosen]
        expected = np.quantile(values, (0.025, 0.975))
        np.testing.assert_allclose(found.intervals["rmse"], expected, atol=1e-12)
    pair = correlation_intervals(labels, scores, seed=7, resamples=200)
    assert pair == {name: found.intervals[name] for name in ("srcc", "plcc")}


def test_changes_are_of_both_models_on_the_same_resamples() -> None:
    labels, scores = logistic_data(30)
    other = scores + np.random.default_rng(1).normal(size=30)
    # The second model's direction is the other: its labels are mirrored.
    found = correlation_changes((labels, scores), (-labels, -other), seed=7, resamples=200)
    chosen = np.random.default_rng(7).integers(0, 30, (200, 30))
    for name, correlation in (("srcc", srcc), ("plcc", plcc)):
        change, interval = found[name]
        assert change == pytest.approx(correlation(labels, other) - correlation(labels, scores))
        values = [
            correlation(labels[row], other[row]) - correlation(labels[row], scores[row])
            for row in chosen
        ]
        np.testing.assert_allclose(interval, np.quantile(values, (0.025, 0.975)), atol=1e-12)
    same = correlation_changes((labels, scores), (labels, 2 * scores), resamples=20)
    assert np.abs([[value, *interval] for value, interval in same.values()]).max() < 1e-12


@pytest.mark.parametrize("count", [2, 3, 5, 9])
@pytest.mark.slow
def test_few_images_have_wide_intervals_or_none(count: int) -> None:
    metrics = compute_metrics(np.arange(count), np.arange(count) ** 2)
    assert metrics.srcc == pytest.approx(1)
    assert metrics.intervals["srcc"] == pytest.approx((1, 1))


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([1, 2], [1, math.nan]), ([math.nan, 1], [1, 2]), ([1, 2], [1, math.inf])],
)
def test_values_that_are_not_finite_are_refused(labels: list[float], scores: list[float]) -> None:
    with pytest.raises(InternalError):
        compute_metrics(labels, scores)


@pytest.mark.parametrize(("labels", "scores"), [([], []), ([1, 2], [1]), ([[1, 2]], [[1, 2]])])
def test_values_of_other_shapes_are_refused(labels: list[float], scores: list[float]) -> None:
    with pytest.raises(InternalError):
        compute_metrics(labels, scores)


def test_the_median_over_splits() -> None:
    found = [Metrics(10, x, x, x, x, 10 * x) for x in (0.5, 0.9, 0.7, 0.8)]
    summary = median_metrics(found)
    assert summary.splits == 4
    assert summary.srcc == pytest.approx((0.75, np.std([0.5, 0.9, 0.7, 0.8]), 0.5, 0.9))
    assert summary.rmse.median == pytest.approx(7.5)
    assert median_metrics(found[:1]).krcc == (0.5, 0.0, 0.5, 0.5)


def test_an_undefined_split_makes_the_median_undefined() -> None:
    found = [Metrics(10, x, 0.5, 0.5, 0.5, 1.0) for x in (0.5, math.nan, 0.7)]
    assert math.isnan(median_metrics(found).srcc.median)
    assert median_metrics(found).plcc.median == 0.5


def test_results_are_json() -> None:
    metrics = compute_metrics([1, 2, 3, 4], [2, 1, 4, 3], resamples=20)
    document = json.loads(json.dumps(json_ready(metrics), allow_nan=False))
    assert document["images"] == 4
    assert json_ready(metrics_from_json(document)) == document
    assert document["plcc_fitted"] is None
    assert document["intervals"]["rmse"] == {"low": None, "high": None}
    assert document["intervals"]["srcc"]["high"] == metrics.intervals["srcc"].high
    summary = json_ready(median_metrics([metrics]))
    assert summary["splits"] == 1
    assert summary["srcc"]["median"] == metrics.srcc
    assert summary["rmse"] == {"median": None, "std": None, "low": None, "high": None}
