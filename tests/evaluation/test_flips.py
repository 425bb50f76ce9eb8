"""Pairs that two sets of scores rank in opposite orders."""

import numpy as np
import pytest

from drexperts.evaluation.flips import Array, order_flips

EXPECTED = np.array([1.0, 2.0, 3.0])


def counted_one_by_one(expected: Array, got: Array, apart: float) -> tuple[int, int]:
    before = expected[:, np.newaxis] - expected
    with np.errstate(invalid="ignore"):
        after = got[:, np.newaxis] - got
    counted = before > apart
    return int(np.sum(counted & ~(after >= 0))), int(np.sum(counted))


def test_pairs_are_counted() -> None:
    assert order_flips(EXPECTED, np.array([1.0, 3.0, 2.0])) == (1, 3)
    assert order_flips(EXPECTED, EXPECTED[::-1]) == (3, 3)


def test_ties_are_not_flipped() -> None:
    assert order_flips(np.array([1.0, 1.0, 2.0]), EXPECTED[::-1]) == (2, 2)
    assert order_flips(EXPECTED, np.ones(3)) == (0, 3)


def test_pairs_that_are_clearly_apart() -> None:
    assert order_flips(EXPECTED, EXPECTED[::-1], 1.5) == (1, 1)
    assert order_flips(EXPECTED, np.array([2.0, 1.0, 3.0]), 1.5) == (0, 1)
    assert order_flips(EXPECTED, EXPECTED[::-1], 1.0) == (1, 1)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 17, 300])
@pytest.mark.parametrize("apart", [0.0, 1.0, 3.5])
@pytest.mark.parametrize("different", [2, 30, 10_000])
def test_they_are_those_of_every_pair(count: int, apart: float, different: int) -> None:
    random = np.random.default_rng(count)
    expected, got = random.integers(0, different, (2, count)).astype(float)
    assert order_flips(expected, got, apart) == counted_one_by_one(expected, got, apart)
    got[::5] = np.nan
    assert order_flips(expected, got, apart) == counted_one_by_one(expected, got, apart)


def test_a_hundred_thousand_are_those_of_a_subsample() -> None:
    random = np.random.default_rng(0)
    expected = random.random(100_000) * 100
    got = expected + random.normal(size=100_000)
    some = slice(0, None, 100)
    exact = counted_one_by_one(expected[some], got[some], 1.0)
    assert order_flips(expected[some], got[some], 1.0) == exact
    whole = order_flips(expected, got, 1.0)
    assert whole.flips / whole.pairs == pytest.approx(exact[0] / exact[1], rel=0.1)
