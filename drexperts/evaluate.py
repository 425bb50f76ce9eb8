"""How well predicted scores follow labels: rank and linear correlation."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def srcc(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation; ties share their average rank. NaN if either is constant."""
    return plcc(_ranks(first), _ranks(second))


def plcc(first: ArrayLike, second: ArrayLike) -> float:
    """Pearson's linear correlation. NaN if either is constant."""
    a, b = (np.asarray(x, float) for x in (first, second))
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else float("nan")


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
