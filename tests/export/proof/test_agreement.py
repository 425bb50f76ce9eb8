"""Ranks, pairs and leading experts of two models."""

import numpy as np
import pytest
from scipy import stats

from drexperts.evaluation.flips import order_flips
from drexperts.export.proof.agreement import (
    correlation,
    leading_flips,
    maps_agreement,
    rank_correlation,
    score_agreement,
    weights_agreement,
)

EXPECTED = np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_not_finite_are_flipped(wrong):
    got = np.array([wrong, wrong, 3.0])
    assert order_flips(EXPECTED, got).flips >= 1
    assert (correlation(EXPECTED, got), rank_correlation(EXPECTED, got)) == (0.0, 0.0)


def test_leading_flips():
    expected = np.array([[1.0, -3.0], [2.0, 1.0], [0.0, 1.0]])
    assert leading_flips(expected, -expected) == 0
    assert leading_flips(expected, expected + np.array([[2.5, 0], [0, 0], [0, 0]])) == 1
    assert leading_flips(expected, np.where(expected == 2, np.nan, expected)) == 1


def test_intervals_are_those_of_scipys_bootstrap():
    random = np.random.default_rng(1)
    expected = random.normal(size=150)
    got = expected + 0.3 * random.normal(size=150)
    ours = score_agreement(expected, got, 1.0)
    assert ours.plcc_interval is not None
    theirs = stats.bootstrap(
        (expected, got),
        lambda a, b, axis: stats.pearsonr(a, b, axis=axis).statistic,
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=random,
    ).confidence_interval
    assert ours.plcc_interval.low == pytest.approx(theirs.low, abs=5e-3)
    assert ours.plcc_interval.high == pytest.approx(theirs.high, abs=5e-3)


def test_weights_that_are_flat_in_both_are_left_out():
    random = np.random.default_rng(2)
    expected = np.stack([random.normal(size=50), 1 + 1e-3 * random.normal(size=50)], 1)
    got = expected * [1, -1]
    flat_inverted = weights_agreement(expected, got + np.array([0, 2]))
    assert flat_inverted is not None
    assert flat_inverted.srcc == pytest.approx(1.0)
    varying = weights_agreement(expected, expected + [[0, 1]] * (np.arange(50) % 2)[:, None])
    assert varying is not None
    assert varying.srcc < 0.5
    assert weights_agreement(expected[:, 1:], got[:, 1:]) is None
    broken = weights_agreement(expected, np.full_like(got, np.nan))
    assert broken is not None
    assert broken.plcc == 0.0


def test_the_crop_with_the_worst_maps_counts():
    expected = np.random.default_rng(3).normal(size=(20, 10, 3, 3))
    got = expected.copy()
    got[4] *= -1
    assert maps_agreement(expected, expected).maps_plcc == pytest.approx(1.0)
    assert maps_agreement(expected, got).maps_plcc == pytest.approx(-1.0)
    flat = np.ones_like(expected)
    assert maps_agreement(flat, flat).maps_plcc is None
    assert maps_agreement(flat, got).maps_plcc == 0.0
