"""Charts: every value is drawn where it is, and every name is text."""

import inspect
from collections.abc import Callable
from functools import partial
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from support.sample_reports import HOSTILE

from drexperts.ui import charts, palette
from drexperts.ui.charts import Roof, Words

WORDS = Words("what <is> shown \udcff", "across", "upward", "the limit")
CALLS = {HOSTILE: [0.2, 0.3, 0.4], "_$a$ \udcff": [0.2, 0.2]}
POINTS = {HOSTILE: [(1, 10.0), (4, 20.0)], "_$a$ \udcff": [(1, 5.0)]}
TIMES = {HOSTILE: 0.003, "_$a$ \udcff": 0.001}
PALETTE = dict(zip(TIMES, palette.COLOURS, strict=False))
UNDER_A_ROOF = {1: (80.0, 1e11), 4: (320.0, 2e11)}

# Those that name series, then the others.
NAMING: dict[str, Callable[[], str]] = {
    "strips": partial(charts.strips, CALLS, WORDS.label),
    "curves": partial(charts.curves, POINTS, WORDS, 15.0),
    "curves, logarithmic": partial(charts.curves, POINTS, WORDS, logarithmic=True, base=2),
    "shares": partial(charts.shares, TIMES, PALETTE, WORDS.label),
    "lines": partial(charts.lines, POINTS, WORDS),
    "scatter": partial(charts.scatter, POINTS, WORDS),
}
CHARTS = NAMING | {
    "histogram": partial(charts.histogram, [0.2, 0.3, 0.4], WORDS.label),
    "histogram of equal calls": partial(charts.histogram, [0.3] * 5, WORDS.label),
    "histogram of one call": partial(charts.histogram, [0.3], WORDS.label),
    "strips of equal calls": partial(charts.strips, {"a": [0.0, 0.0]}, WORDS.label),
    "roofline": partial(charts.roofline, UNDER_A_ROOF, Roof(3e11, 2e10), WORDS.label),
}


def axes_of(chart: Callable[..., str], *args: object) -> Axes:
    """The axes of a chart before it is written as SVG."""
    (axes,) = inspect.unwrap(chart)(*args).axes
    return axes


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.text]


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_the_same_each_time_and_says_what_it_is(name: str) -> None:
    svg = CHARTS[name]()
    with matplotlib.rc_context({"font.size": 30, "text.usetex": True}):
        assert CHARTS[name]() == svg
    picture = ElementTree.fromstring(svg)
    assert picture.get("aria-label") == "what <is> shown \\udcff"
    assert "nan" not in svg
    assert "currentColor" in svg
    assert "#0102" not in svg


@pytest.mark.parametrize("name", NAMING)
def test_names_are_text_whatever_is_in_them(name: str) -> None:
    said = "".join(texts(NAMING[name]()))
    assert HOSTILE[:30] in said
    assert "_$a$ \\udcff" in said


def test_long_names_are_shortened() -> None:
    assert charts.strips({"b" * 60: [0.2]}, "").count("b" * 39 + "…") == 1


def test_a_series_keeps_its_colour_and_marker_by_its_number() -> None:
    numbers = {"a": 0, "b": 1, "c": 13}
    some = {"c": [(1, 2.0)], "a": [(1, 1.0)]}
    lines = axes_of(charts.curves, some, WORDS, None, False, 10, numbers).lines
    assert [line.get_color() for line in lines] == [palette.colour(13), palette.colour(0)]
    first = axes_of(charts.curves, {"a": [(1, 1.0)]}, WORDS).lines[0]
    assert lines[1].get_marker() == first.get_marker()
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    calls = {"c": [0.2], "a": [0.3]}
    drawn = axes_of(charts.strips, calls, "", numbers).lines
    assert {line.get_color() for line in drawn} == {palette.colour(13), palette.colour(0)}


def test_no_two_of_many_series_look_alike() -> None:
    many = {f"series {i}": [(1, 1.0 + i), (2, 2.0)] for i in range(40)}
    lines = axes_of(charts.curves, many, WORDS).lines
    assert len({line.get_color() for line in lines}) == 40
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 24


def test_every_call_is_drawn() -> None:
    axes = axes_of(charts.histogram, [0.01 * (1 + i % 7) for i in range(50)], "")
    assert sum(bar.get_bbox().height for bar in bars(axes)) == 50
    axes = axes_of(charts.strips, {"a": [0.2, 0.3, 0.3]}, "")
    drawn = np.unique(axes.lines[0].get_xdata())
    np.testing.assert_allclose(drawn, [200, 300], rtol=2e-3)  # to a pixel


def test_shares_are_as_wide_as_their_times() -> None:
    axes = axes_of(charts.shares, TIMES, PALETTE, "")
    assert [bar.get_bbox().width for bar in bars(axes)] == pytest.approx([3, 1])
    assert any("75%" in text for text in texts(charts.shares(TIMES, PALETTE, "")))


@pytest.mark.parametrize(
    ("roof", "limits"),
    [
        # The ridge is at 15 FLOP per byte.
        (Roof(3e11, 2e10), {6.0: 120.0, 15.0: 300.0, 100.0: 300.0}),
        (Roof(3e11, None), {50.0: 300.0, 100.0: 300.0}),
        (Roof(None, 2e10), None),
        (Roof(None, None), None),
    ],
)
def test_a_roof_is_drawn_as_far_as_it_is_known(
    roof: Roof, limits: dict[float, float] | None
) -> None:
    svg = charts.roofline(UNDER_A_ROOF, roof, "")
    assert any("roof" in text for text in texts(svg)) == (limits is not None)
    if limits is not None:
        line = axes_of(charts.roofline, UNDER_A_ROOF, roof, "").lines[-1]
        across, upward = np.asarray(line.get_data(), dtype=float)
        drawn = np.interp(list(limits), across, upward)
        np.testing.assert_allclose(drawn, list(limits.values()))


def test_large_numbers_are_in_tera() -> None:
    assert "TFLOP/s" in charts.roofline({1: (100.0, 3e13)}, Roof(7e14, 2e12), "")
    assert "GFLOP/s" in charts.roofline({1: (100.0, 3e10)}, Roof(7e11, 2e10), "")


@pytest.mark.parametrize(
    ("x", "base", "ticks"),
    [
        ((1, 64), 2, ["1", "2", "4", "8", "16", "32", "64"]),
        ((3, 50), 10, ["5", "10", "20", "50"]),
        ((310, 330), 10, ["300", "320", "340", "360"]),
    ],
)
def test_logarithmic_axes_have_round_numbers(
    x: tuple[int, int], base: int, ticks: list[str]
) -> None:
    svg = charts.curves({"a": [(each, 1.0) for each in x]}, WORDS, base=base)
    assert [text for text in texts(svg) if text in ticks] == ticks


def test_lines_go_through_their_points_and_may_be_negative() -> None:
    axes = axes_of(charts.lines, {"a": [(1, -0.5), (2, 0.5)], "b": [(1, 0.1)]}, WORDS, {"a"})
    drawn = [np.asarray(line.get_data(), dtype=float)[1].tolist() for line in axes.lines]
    assert drawn == [[-0.5, 0.5], [0.1]]
    assert [line.get_marker() for line in axes.lines] == ["o", "None"]
    assert axes.get_xscale() == "linear"


def test_density_shows_every_point_in_one_of_its_cells() -> None:
    random = np.random.default_rng(0)
    across = random.random(20_000) * 100
    upward = across + random.normal(size=20_000)
    upward[0], across[0] = 150.0, 0.0
    axes = axes_of(charts.density, across, upward, WORDS)
    (cells,) = axes.collections
    counts = np.asarray(cells.get_array())
    assert (counts.sum(), counts.min()) == (20_000, 1)
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[1] > 150
    assert len(charts.density(across, upward, WORDS)) < 400_000


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_density_of_a_single_score(value: float) -> None:
    axes = axes_of(charts.density, np.full(3, value), np.full(3, value), WORDS)
    assert np.asarray(axes.collections[0].get_array()).tolist() == [3]
    assert axes.get_xlim() == (value - 0.5, value + 0.5)
