"""Correlations against SciPy's."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from drexperts.evaluate import plcc, srcc


@pytest.mark.parametrize("values", [2, 5, 1000], ids=["most tied", "some tied", "few tied"])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scipy(values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, values, 60).astype(float)
    second = first + rng.integers(0, values, 60)
    assert srcc(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert plcc(first, second) == pytest.approx(pearsonr(first, second).statistic, abs=1e-12)


def test_ranks_ignore_a_monotone_curve() -> None:
    scores = np.linspace(-2, 2, 30)
    assert srcc(scores, np.exp(scores)) == pytest.approx(1)
    assert srcc(scores, -(scores**3)) == pytest.approx(-1)
    assert plcc(scores, np.exp(scores)) < 0.99


def test_a_constant_correlates_with_nothing() -> None:
    assert math.isnan(srcc([1, 1, 1], [1, 2, 3]))
    assert math.isnan(plcc([1, 2, 3], [5, 5, 5]))
