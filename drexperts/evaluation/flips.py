"""How many pairs of images two sets of scores rank in opposite orders, also among millions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Places = NDArray[np.intp]


class Flips(NamedTuple):
    """How many of `pairs` were ranked in the opposite order."""

    flips: int
    pairs: int


def order_flips(expected: Array, got: Array, apart: float = 0.0) -> Flips:
    """Among the pairs that are further than `apart` in `expected` [n], those that `got` [n] flips.

    A pair that is tied in `got` is not flipped; one with a value that is not finite is. All pairs
    are counted, in a time that grows with n log n.
    """
    pairs = _pairs_apart(expected, apart)
    finite = np.isfinite(got)
    certain = pairs - _pairs_apart(expected[finite], apart)
    return Flips(certain + _flipped(expected[finite], got[finite], apart), pairs)


def _pairs_apart(values: Array, apart: float) -> int:
    return int(_below(np.sort(values), apart).sum())


def _below(ordered: Array, apart: float) -> Places:
    """How many of the ascending values [n] are more than `apart` below each of them."""
    return np.searchsorted(ordered, ordered - apart)


def _flipped(expected: Array, got: Array, apart: float) -> int:
    """The flipped pairs among finite scores.

    In the order of `expected`, what is more than `apart` below an image are the first so many.
    """
    order = np.argsort(expected, kind="stable")
    ranks = np.unique(got[order], return_inverse=True)[1]
    return _count_above(ranks, _below(expected[order], apart))


def _count_above(ranks: Places, first: Places) -> int:
    """How many of the first `first[j]` ranks [n] exceed `ranks[j]`, summed over all j.

    A wavelet matrix (Claude, Navarro and Ordóñez, 2015), asked about all j together. Bit by bit,
    the highest first, ranks without the bit are moved before those with it. Those of the first
    ranks that agree with `ranks[j]` in all bits so far stay neighbours, from `start[j]` to
    `end[j]`; those of them with the bit exceed it if it lacks the bit.
    """
    total = 0
    level, start, end = ranks, np.zeros_like(first), first
    for bit in reversed(range(int(ranks.max(initial=0)).bit_length())):
        has_bit = (level >> bit & 1).astype(bool)
        ones = np.concatenate(([0], np.cumsum(has_bit)))
        own = (ranks >> bit & 1).astype(bool)
        before, until = ones[start], ones[end]
        total += int((until - before)[~own].sum())
        zeros = len(level) - int(ones[-1])
        start = np.where(own, zeros + before, start - before)
        end = np.where(own, zeros + until, end - until)
        level = np.concatenate((level[~has_bit], level[has_bit]))
    return total
