"""Which epoch is the best one."""

import pytest

from drexperts.training.result import Criterion, Epoch, best_epoch


def epochs(*pairs: tuple[float | None, float | None]) -> list[Epoch]:
    """Epochs with these (SRCC, PLCC)."""
    return [Epoch(i, plcc, srcc, 1.0, None) for i, (srcc, plcc) in enumerate(pairs, 1)]


@pytest.mark.parametrize(
    ("pairs", "by", "best"),
    [
        ([(0.2, 0.9), (0.3, 0.1)], "srcc", 2),
        ([(0.2, 0.9), (0.3, 0.1)], "plcc", 1),
        ([(0.3, 0.1), (0.3, 0.2), (0.3, 0.2)], "srcc", 2),  # the other correlation, the earlier one
        ([(0.3, 0.1), (0.3 + 1e-16 * 3, 0.05)], "srcc", 1),  # equal but for rounding
        ([(None, None), (-0.5, -0.4), (None, None)], "srcc", 2),
        ([(None, None)], "plcc", None),
        ([], "srcc", None),
    ],
)
def test_ties_and_undefined_correlations(
    pairs: list[tuple[float | None, float | None]], by: Criterion, best: int | None
) -> None:
    assert best_epoch(epochs(*pairs), by) == best
