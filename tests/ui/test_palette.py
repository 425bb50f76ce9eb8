"""Colours of series: distinct, and seen on both pages."""

import re
from pathlib import Path

import numpy as np
import pytest

from drexperts.ui.palette import COLOURS, colour, distances

CSS = Path(__file__).parents[2] / "drexperts/ui/templates/page.css"


def luminance(colour: str) -> float:
    """As WCAG defines it."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_no_two_series_share_a_colour() -> None:
    assert len({colour(i) for i in range(300)}) == 300
    assert tuple(map(colour, range(len(COLOURS)))) == COLOURS


# Half of what the first six keep, and a third of it, in OKLab; 0.02 is about what eyes notice.
@pytest.mark.parametrize(("count", "apart"), [(6, 0.075), (15, 0.06), (30, 0.035)])
def test_the_first_are_apart_for_colour_blind_readers_too(count: int, apart: float) -> None:
    shown = tuple(map(colour, range(count)))
    nearest = [distances(one, shown[:i]).min() for i, one in enumerate(shown) if i]
    assert min(nearest) > apart


def test_red_and_green_are_near_for_some_eyes() -> None:
    """`distances` sees what they see: this pair is much further apart for others."""
    (near,) = distances("#96963c", ("#c3783c",))
    (far,) = distances("#0072b2", ("#d55e00",))
    assert 0 < near < 0.08 < far
    assert distances("#123456", ("#123456",)).tolist() == [0.0]


def test_further_colours_are_seen_on_both_pages() -> None:
    papers = re.findall(r"--paper: (#[0-9a-f]{6})", CSS.read_text())
    assert len(papers) == 2
    for index in range(len(COLOURS), 60):
        for paper in papers:
            low, high = sorted((luminance(paper), luminance(colour(index))))
            assert (high + 0.05) / (low + 0.05) > 3.0, (colour(index), paper)
