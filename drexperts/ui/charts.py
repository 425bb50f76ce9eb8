"""Charts as SVG for our pages: no script, nothing fetched, in the colours of the page around them.

Times are given in seconds and drawn in milliseconds. The same values always give the same bytes.
"""

import io
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from drexperts.ui.palette import COLOURS, colour

_MARKERS = "os^DvPX*<>dp"
_DASHES = ("-", "--", "-.", ":")
_WIDTH, _HEIGHT = 440, 260  # px of a chart without its legend
_LEGEND_ROW = 20  # px
_STRIP = 48  # px per series in `strips`
_LONGEST = 40  # characters of a name
_CELLS = 48  # of `density`, across
_FAINTEST = 0.45  # opacity of its cells with one point

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
# matplotlib cannot name the colours of a page, so these stand for them until the SVG is written.
_INK, _LINE = "#010203", "#010204"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold a "$"
    "font.size": 12,
    "xtick.major.pad": 6,
    "axes.labelsize": 12,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-5, 6),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _LINE,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    ),
}
Array = NDArray[np.float64]
_P = ParamSpec("_P")
_T = TypeVar("_T")


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def _dashes(index: int) -> str:
    return _DASHES[index // len(COLOURS) % len(_DASHES)]


def _numbered(
    series: Mapping[str, _T], numbers: Mapping[str, int] | None
) -> Iterator[tuple[int, str, _T]]:
    """Each series with its number: its place here, unless `numbers` has it."""
    for place, (name, each) in enumerate(series.items()):
        yield place if numbers is None else numbers[name], name, each


def _chart(draw: Callable[_P, Figure]) -> Callable[_P, Markup]:
    """A function that draws a figure, made into one that writes it as SVG in our style.

    The figure's label describes the picture for those who cannot see it.
    """

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Markup:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # whatever a user's matplotlibrc says
            matplotlib.rcParams.update(_STYLE)
            return _svg(draw(*args, **kwargs))

    return drawn


def _svg(figure: Figure) -> Markup:
    label = _one_line(str(figure.get_label()))
    # Pages hold many charts: their identifiers must differ.
    matplotlib.rcParams["svg.hashsalt"] = label
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=nothing)
    _, _, inside = stream.getvalue().partition("<svg")[2].partition(">")
    inside = re.sub(r' id="[a-z0-9.]+_\d+"', "", inside)
    inside = inside.replace(_INK, "currentColor").replace(_LINE, "var(--line)")
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    said = escape(label)
    return Markup(
        f'<svg {_NAMESPACES} class="chart" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{said}"><title>{said}</title>{inside}'
    )


def _figure(
    label: str, height: float = _HEIGHT, width: float = _WIDTH, left_axis: bool = True
) -> tuple[Figure, Axes]:
    """An empty chart of so many px. left_axis: whether it has a vertical axis."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    figure.set_label(label)
    axes = figure.subplots()
    if not left_axis:
        axes.yaxis.set_visible(False)
        axes.spines.left.set_visible(False)
    return figure, axes


def _one_line(text: str) -> str:
    """A text without line breaks, and without surrogates, which file names may hold."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def _shown(name: str) -> str:
    """A name that is not too long. matplotlib leaves names out that begin with "_"."""
    line = _one_line(name)
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
    return f" {line}" if line.startswith("_") else line


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Name the series below the chart, which grows by as much."""
    handles, names = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, names)) < _LONGEST / 2 else 1
    width, height = figure.get_size_inches()
    rows = math.ceil(len(names) / columns)
    figure.set_size_inches(width, height + rows * _LEGEND_ROW / 72)
    figure.legend(handles, names, loc="outside lower left", ncols=columns)


def _make_logarithmic(
    axis: XAxis | YAxis, values: Sequence[float], room: float, base: int = 10
) -> None:
    """A logarithmic axis around positive values, with round numbers on it.

    room: by what factor the axis goes beyond the values
    """
    low, high = min(values) / room, max(values) * room
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)})
    few_decades = base == 10 and high / low < 100
    axis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if few_decades else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _number(value: float) -> str:
    """A value with three digits, such as 0.0123, 12.3 and 12345."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e5 else f"{value:.3g}"


@_chart
def strips(
    calls: Mapping[str, Sequence[float]], label: str, numbers: Mapping[str, int] | None = None
) -> Figure:
    """Every call of each series on one logarithmic axis of time.

    Each call is a tick; a band covers the middle 60 % of the calls and a marker is at the median.

    calls: the seconds of each call by series
    numbers: of the series, which decide colours and markers, where a page has several charts
    """
    figure, axes = _figure(label, _STRIP * (len(calls) + 1), left_axis=False)
    times = {name: 1e3 * np.maximum(seconds, 1e-9) for name, seconds in calls.items()}
    _make_logarithmic(axes.xaxis, np.concatenate(list(times.values())).tolist(), 1.08)
    for i, (number, name, each) in enumerate(_numbered(times, numbers)):
        # Calls that share a pixel are one to the eye, and there may be thousands.
        apart = np.unique(np.round(np.log10(each), 3))
        across = np.repeat(10**apart, 3)
        upward = np.tile([i + 0.1, i + 0.45, np.nan], len(apart))
        axes.plot(across, upward, color=colour(number), linewidth=0.8)
        p20, p50, p80 = np.quantile(each, (0.2, 0.5, 0.8)).tolist()
        axes.barh(i + 0.27, p80 - p20, 0.18, p20, color=colour(number), alpha=0.5)
        axes.plot(p50, i + 0.27, _marker(number), color=colour(number), mec=_INK, ms=8)
        at_the_side = axes.get_yaxis_transform()
        axes.text(0, i, _shown(name), transform=at_the_side)
        axes.text(1, i, f"p50 {p50:.4g} ms", ha="right", transform=at_the_side)
    axes.set(xlabel="latency per call in ms, logarithmic", ylim=(len(calls) - 0.4, -0.5))
    return figure


@_chart
def histogram(calls: Sequence[float], label: str, index: int = 0) -> Figure:
    """How many calls took how long, in seconds, with a line at p50 and a dashed one at p99.

    index: the number of the series, which decides the colour
    """
    figure, axes = _figure(label, height=190, width=300)
    times = 1e3 * np.asarray(calls)
    axes.hist(times, int(np.clip(2 * math.sqrt(len(times)), 8, 48)), color=colour(index))
    for quantile, line in ((0.5, "-"), (0.99, "--")):
        axes.axvline(float(np.quantile(times, quantile)), color=_INK, linestyle=line)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set(xlabel="latency per call in ms", ylabel="calls")
    return figure


class Words(NamedTuple):
    """What a chart says: as a whole, along its axes, and about a limit that is drawn across it."""

    label: str
    across: str
    upward: str
    rule: str = ""


@_chart
def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    words: Words,
    rule: float | None = None,
    logarithmic: bool = False,
    base: int = 10,
    numbers: Mapping[str, int] | None = None,
) -> Figure:
    """Lines through points (x, y), and a dashed line across at `rule`.

    logarithmic: whether y is; otherwise it begins at zero. x is logarithmic, to this base.
    numbers: see `strips`
    """
    figure, axes = _figure(words.label)
    for number, name, points in _numbered(series, numbers):
        form = f"{_marker(number)}{_dashes(number)}"
        axes.plot(*zip(*points, strict=True), form, color=colour(number), label=_shown(name))
    heights = [y for points in series.values() for _, y in points]
    if rule is not None:
        heights.append(rule)
        axes.axhline(rule, color=_INK, linestyle="--", label=_shown(words.rule))
    _make_logarithmic(axes.xaxis, [x for line in series.values() for x, _ in line], 1.15, base)
    if logarithmic:
        _make_logarithmic(axes.yaxis, heights, 1.3)
    else:
        axes.set_ylim(0, 1.15 * max(heights))
    axes.set(xlabel=words.across, ylabel=words.upward)
    _add_legend(figure, axes)
    return figure


@_chart
def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], words: Words, marked: Collection[str] = ()
) -> Figure:
    """Lines through points (x, y), both axes linear. marked: the series whose points are seen."""
    figure, axes = _figure(words.label)
    for i, (name, points) in enumerate(series.items()):
        marker = _MARKERS[i % len(_MARKERS)] if name in marked else ""
        axes.plot(*zip(*points, strict=True), f"{marker}-", color=colour(i), label=_shown(name))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set(xlabel=words.across, ylabel=words.upward)
    _add_legend(figure, axes)
    return figure


class Roof(NamedTuple):
    """The most that a machine can do: FLOP/s, and bytes/s of its memory; None where unknown."""

    flops: float | None
    bandwidth: float | None


@_chart
def roofline(points: Mapping[int, tuple[float, float]], roof: Roof, label: str) -> Figure:
    """The engine under the roof of its machine (Williams et al., 2009), both axes logarithmic.

    points: (FLOP/byte, FLOP/s) by batch size; the smallest and the largest are named
    """
    figure, axes = _figure(label)
    ridge = [roof.flops / roof.bandwidth] if roof.flops and roof.bandwidth else []
    speeds = [speed for _, speed in points.values()] + ([roof.flops] if roof.flops else [])
    unit, name = (1e12, "TFLOP/s") if max(speeds) >= 1e12 else (1e9, "GFLOP/s")
    _make_logarithmic(axes.xaxis, [*(x for x, _ in points.values()), *ridge], 3)
    _make_logarithmic(axes.yaxis, [speed / unit for speed in speeds], 3)
    for batch, (x, speed) in points.items():
        axes.plot(x, speed / unit, _marker(0), color=colour(0))
        if batch in (min(points), max(points)):
            at, below = (x, speed / unit), (0, -16)
            axes.annotate(str(batch), at, xytext=below, textcoords="offset points", ha="center")
    axes.set(xlabel="FLOP per byte of weights, logarithmic", ylabel=f"{name}, logarithmic")
    if roof.flops is not None:
        low, high = axes.get_xlim()
        across = np.array([low, *ridge, high])
        reached = np.minimum(roof.flops, across * (roof.bandwidth or math.inf)) / unit
        memory = "" if roof.bandwidth is None else f", {_number(roof.bandwidth / 1e9)} GB/s"
        said = f"roof: {_number(roof.flops / unit)} {name}{memory}"
        axes.plot(across, reached, "--", color=_INK, label=said)
        _add_legend(figure, axes)
    return figure


@_chart
def shares(parts: Mapping[str, float], colours: Mapping[str, str], label: str) -> Figure:
    """One bar of times, in their order; the legend gives the share of each."""
    figure, axes = _figure(label, height=90, left_axis=False)
    total, before = sum(parts.values()), 0.0
    for name, seconds in parts.items():
        said = f"{_shown(name)} {seconds / total:.0%}"
        axes.barh(0, 1e3 * seconds, left=1e3 * before, color=colours[name], label=said)
        before += seconds
    axes.set(xlabel="time in ms", xlim=(0, 1e3 * total))
    _add_legend(figure, axes)
    return figure


@_chart
def scatter(groups: Mapping[str, Sequence[tuple[float, float]]], words: Words) -> Figure:
    """Points (x, y) in groups, both axes on the same scale, with the diagonal where y = x."""
    figure, axes = _figure(words.label, height=_WIDTH)
    axes.axline((0, 0), slope=1, color=_INK, linestyle="--")
    for i, (name, points) in enumerate(groups.items()):
        across, upward = zip(*points, strict=True)
        axes.plot(across, upward, _marker(i), color=colour(i), alpha=0.75, label=_shown(name))
    axes.set(xlabel=words.across, ylabel=words.upward, aspect="equal")
    _add_legend(figure, axes)
    return figure


@_chart
def density(across: Array, upward: Array, words: Words) -> Figure:
    """How many points (x, y) lie in each cell, both axes on the same scale, with the diagonal.

    The ink of a cell grows with the logarithm of its number, and that of a single point is seen.

    across, upward: float64 [n], of any number of points
    """
    figure, axes = _figure(words.label, height=_WIDTH)
    axes.axline((0, 0), slope=1, color=colour(1), linestyle="--")
    low, high = min(across.min(), upward.min()), max(across.max(), upward.max())
    room = 0.02 * (high - low) or 0.5
    ends = low - room, high + room
    inks = ListedColormap([(*to_rgb(_INK), alpha) for alpha in np.linspace(_FAINTEST, 1, 64)])
    axes.hexbin(
        across,
        upward,
        gridsize=_CELLS,
        extent=ends * 2,
        bins="log",
        mincnt=1,
        cmap=inks,
        linewidths=0,
    )
    axes.set(xlabel=words.across, ylabel=words.upward, aspect="equal", xlim=ends, ylim=ends)
    return figure
