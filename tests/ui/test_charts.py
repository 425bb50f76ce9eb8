"""Charts: round ticks, marks where the values are."""

import math
import re

import pytest

from drexperts.bench.timing import statistics
from drexperts.ui.charts import (
    COLOURS,
    Axis,
    Roof,
    Words,
    curves,
    histogram,
    number,
    roofline,
    shares,
)
from drexperts.ui.charts import strips as draw_strips

WORDS = Words("what", "across", "upward", "the rule")


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "ticks"),
    [
        (0, 10, False, [0, 2, 4, 6, 8, 10]),
        (0.31, 0.34, False, [0.31, 0.32, 0.33, 0.34]),
        (3, 300, True, [5, 10, 20, 50, 100, 200]),
        (1, 1e6, True, [1, 10, 100, 1000, 1e4, 1e5, 1e6]),
        (310, 330, True, [310, 315, 320, 325, 330]),
    ],
)
def test_ticks_are_round(low: float, high: float, logarithmic: bool, ticks: list[float]) -> None:
    assert Axis(low, high, 0, 1, logarithmic).ticks() == pytest.approx(ticks)


def test_an_axis_places_values() -> None:
    assert Axis(0, 10, 100, 0).place(2.5) == 75
    assert Axis(1, 100, 0, 50, logarithmic=True).place(10) == pytest.approx(25)


def test_numbers() -> None:
    assert [number(x) for x in (0.012345, 12.345, 1234.5, 123456)] == [
        *("0.0123", "12.3", "1234", "1.23e+05")
    ]


def test_a_histogram_counts_every_call() -> None:
    samples = [0.01 * (1 + i % 7) for i in range(50)]
    counts = re.findall(r": (\d+) calls", histogram(statistics(samples), "label"))
    assert sum(map(int, counts)) == 50


def test_a_histogram_of_equal_times_and_of_one() -> None:
    for samples in ([0.3] * 5, [0.3]):
        drawn = histogram(statistics(samples), "label")
        assert f"{len(samples)} calls" in drawn
        assert "nan" not in drawn


def test_strips_have_every_contender_and_equal_times() -> None:
    times = statistics([0.2, 0.2, 0.2])
    drawn = draw_strips({"<a>": times, "b" * 60: times}, "label")
    assert "&lt;a&gt;" in drawn
    assert "b" * 31 + "…" in drawn
    assert f"{'b' * 60}: p50 200 ms" in drawn  # the whole name where it is pointed at
    assert "nan" not in drawn


def test_curves_pass_through_their_points() -> None:
    drawn = curves({"a": [(1, 10.0), (4, 20.0)], "b": [(1, 5.0)]}, WORDS, rule=15.0)
    assert "a: 20 at 4" in drawn
    assert "the rule" in drawn
    first, last = re.findall(r'<polyline points="(\S+) (\S+)"', drawn)[0]
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in (first, last))
    assert x1 < x2
    assert y1 > y2  # upward is less


def test_crowded_ticks_are_thinned() -> None:
    drawn = curves({"a": [(15, 1.0), (16, 2.0), (64, 3.0)]}, WORDS)
    labels = re.findall(r'<text [^>]*text-anchor="middle" class="tick">([^<]*)<', drawn)
    assert labels == ["15", "64"]


def test_shares_are_as_wide_as_their_times() -> None:
    drawn = shares({"a": 0.003, "b": 0.001}, {"a": COLOURS[0], "b": COLOURS[1]}, "label")
    wide, narrow = map(float, re.findall(r'<rect [^>]*width="([\d.]+)"', drawn))
    assert (wide + 1) / (narrow + 1) == pytest.approx(3, rel=0.01)
    assert "a 75 %" in drawn


def rules(drawn: str) -> int:
    return drawn.count('class="rule"')


def test_a_roof_is_drawn_as_far_as_it_is_known() -> None:
    points = {1: (80.0, 1e11), 4: (320.0, 2e11)}
    assert rules(roofline(points, Roof(3e11, 2e10), "label")) == 2
    assert rules(roofline(points, Roof(3e11, None), "label")) == 1
    assert rules(roofline(points, Roof(None, 2e10), "label")) == 0
    assert "roof" not in roofline(points, Roof(None, None), "label")


def test_a_roof_has_its_ridge_where_memory_suffices() -> None:
    """At peak / bandwidth FLOP a byte the slope meets the flat part."""
    drawn = roofline({1: (10.0, 1e10)}, Roof(1e12, 1e10), "label")
    lines = re.findall(r'x1="(\S+)" y1="(\S+)" x2="(\S+)" y2="(\S+)" class="rule"', drawn)
    slope, flat = ([float(each) for each in line] for line in lines)
    assert slope[2:] == flat[:2]
    assert flat[1] == flat[3]
    # Both axes are logarithmic and a slope of one decade a decade: from (10/3, ..) to (100, ..).
    assert slope[1] > slope[3]
    assert all(math.isfinite(each) for each in slope)


def test_large_numbers_are_in_tera() -> None:
    assert "TFLOP/s" in roofline({1: (100.0, 3e13)}, Roof(7e14, 2e12), "label")
    assert "GFLOP/s" in roofline({1: (100.0, 3e10)}, Roof(7e11, 2e10), "label")
