"""Charts as SVG in the colours of the page around them. No script, nothing fetched.

Times come in seconds and are drawn in milliseconds. Each mark says its values where it is pointed
at; a series is told apart by its shape as well as by its colour.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

# Okabe and Ito's palette, told apart by colour-blind readers too; grey is seen on black and white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#888888")
_SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-6l6,10h-12z",
    "M0,-6l6,6l-6,6l-6,-6z",
    "M0,6l6,-10h-12z",
)
_WIDTH, _HEIGHT = 440, 280  # of a chart, in its own pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 22, 14, 48
_LETTER = 8  # px, a wide one of the 13 px letters
_ROW = 48  # px of a contender in `strips`


class Axis(NamedTuple):
    """From the values `low`..`high` to the pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, in px."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values to write on the axis: 1, 2 and 5 times powers of ten, or multiples."""
        if self.logarithmic:
            decades = [10.0**i for i in range(*_exponents(self.low, self.high))]
            found = [f * d for d in decades for f in (1, 2, 5) if self._holds(f * d)]
            if len(found) > 8:
                found = [decade for decade in decades if self._holds(decade)]
            if len(found) > 2:
                return found
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, first + 12) if self._holds(i * step)]

    def _holds(self, value: float) -> bool:
        slack = 1e-9 * (self.high - self.low)
        return self.low - slack <= value <= self.high + slack


def _exponents(low: float, high: float) -> tuple[int, int]:
    return math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is `least` or more."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= least * (1 - 1e-9))


def _around(values: Iterable[float], factor: float) -> tuple[float, float]:
    """A range of positive values with room on both sides, never empty."""
    kept = [max(value, 1e-12) for value in values]
    return min(kept) / factor, max(kept) * factor


def number(value: float) -> str:
    """To three digits, or up to five before the point: 0.0123, 12.3, 12345, 1.23e+06."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e5 else f"{value:.3g}"


def _text(x: float, y: float, content: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(content)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _mark(x: float, y: float, index: int, title: str) -> str:
    """The shape of a series, which says its values where it is pointed at."""
    return (
        f'<path d="{_SHAPES[index % len(_SHAPES)]}" transform="translate({x:.1f} {y:.1f})" '
        f'fill="{colour(index)}"><title>{escape(title)}</title></path>'
    )


def colour(index: int) -> str:
    """The colour of a series."""
    return COLOURS[index % len(COLOURS)]


def _chart(label: str, parts: Iterable[str], height: float = _HEIGHT, width: int = _WIDTH) -> str:
    said = escape(label, quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height:.0f}" width="{width}" '
        f'height="{height:.0f}" role="img" aria-label="{said}"><title>{said}</title>'
        f"{''.join(parts)}</svg>"
    )


def _spaced(axis: Axis, ticks: Iterable[float]) -> list[float]:
    """The ticks whose labels fit beside each other."""
    kept: list[float] = []
    for tick in sorted(ticks):
        wide = _LETTER * (len(number(tick)) + 1)
        if not kept or axis.place(tick) - axis.place(kept[-1]) >= wide:
            kept.append(tick)
    return kept


def _across(
    axis: Axis, top: float, bottom: float, label: str, ticks: Iterable[float] | None = None
) -> list[str]:
    """A horizontal axis below `bottom`, with lines up to `top`."""
    drawn = [_text((axis.start + axis.end) / 2, bottom + 38, label, "middle")]
    for tick in _spaced(axis, axis.ticks() if ticks is None else ticks):
        x = axis.place(tick)
        drawn += [_line(x, top, x, bottom, "grid"), _tick(x, bottom + 18, tick, "middle")]
    return drawn


def _upward(
    axis: Axis, left: float, right: float, label: str, ticks: Iterable[float] | None = None
) -> list[str]:
    """A vertical axis left of `left`, with lines to `right`."""
    middle = (axis.start + axis.end) / 2
    turned = f' transform="rotate(-90 14 {middle:.1f})"'
    drawn = [_text(14, middle, label, "middle", turned)]
    for tick in axis.ticks() if ticks is None else ticks:
        y = axis.place(tick)
        drawn += [_line(left, y, right, y, "grid"), _tick(left - 7, y + 4, tick, "end")]
    return drawn


def _tick(x: float, y: float, value: float, anchor: str) -> str:
    return _text(x, y, number(value), anchor, ' class="tick"')


def _shortened(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def strips(contenders: Mapping[str, Mapping[str, Any]], label: str) -> str:
    """Every call of each contender on one logarithmic axis of time.

    Args:
        contenders: from names to what `timing.statistics` says.
    """
    calls = [call for times in contenders.values() for call in times["samples"]]
    low, high = _around(calls, 1.08)
    axis = Axis(1e3 * low, 1e3 * high, 16, _WIDTH - _RIGHT, logarithmic=True)
    bottom = _TOP + _ROW * len(contenders)
    parts = _across(axis, _TOP, bottom, "latency of a call in ms, logarithmic")
    for i, (name, times) in enumerate(contenders.items()):
        parts += _strip(name, times, axis, _TOP + _ROW * i, i)
    return _chart(label, parts, bottom + _BOTTOM)


def _strip(name: str, times: Mapping[str, Any], axis: Axis, top: float, index: int) -> list[str]:
    """A tick a call, a band over the middle 60 %, a mark on the median."""
    median, slow = (f"{1e3 * times[q]:.4g} ms" for q in ("p50", "p99"))
    p20, p50, p80 = (axis.place(1e3 * times[q]) for q in ("p20", "p50", "p80"))
    # Calls within a tenth of a pixel are one to the eye, and there may be thousands.
    places = sorted({round(axis.place(max(1e3 * call, 1e-9)), 1) for call in times["samples"]})
    ticks = "".join(f"M{x},{top + 22:.1f}v16" for x in places)
    return [
        _text(axis.start, top + 15, _shortened(name, 32)),
        _text(axis.end, top + 15, f"p50 {median}", "end"),
        f'<rect x="{p20:.1f}" y="{top + 26:.1f}" width="{max(p80 - p20, 1):.1f}" height="8" '
        f'fill="{colour(index)}" fill-opacity=".45"/>',
        f'<path d="{ticks}" stroke="{colour(index)}" stroke-opacity=".7"/>',
        _mark(p50, top + 30, index, f"{name}: p50 {median}, p99 {slow}"),
    ]


def histogram(times: Mapping[str, Any], label: str, index: int = 0) -> str:
    """How often a call took how long, with lines at p50 and p99; `index` has the colour."""
    samples = 1e3 * np.asarray(times["samples"])
    bins = int(np.clip(2 * math.sqrt(len(samples)), 8, 48))
    counts, edges = np.histogram(samples, bins)
    width, height = 300, 190
    across = Axis(float(edges[0]), float(edges[-1]), 48, width - _RIGHT)
    upward = Axis(0, float(counts.max()), height - _BOTTOM, _TOP)
    parts = _across(across, upward.end, upward.start, "latency of a call in ms")
    whole = [tick for tick in upward.ticks() if tick.is_integer()]
    parts += _upward(upward, across.start, across.end, "calls", whole)
    for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True):
        ends = across.place(low), across.place(high), upward.place(count), upward.start
        title = f"<title>{low:.4g} to {high:.4g} ms: {count} calls</title></rect>"
        parts.append(_bar(*ends, colour(index)) + title)
    for quantile, kind in (("p50", "median"), ("p99", "slow")):
        x = across.place(1e3 * times[quantile])
        parts.append(_line(x, upward.end, x, upward.start, kind))
    return _chart(label, parts, height, width)


def _bar(left: float, right: float, top: float, bottom: float, fill: str) -> str:
    """A rectangle that is open, for its title; a pixel parts it from the next."""
    return (
        f'<rect x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
        f'height="{bottom - top:.1f}" fill="{fill}">'
    )


class Words(NamedTuple):
    """What a chart says: as a whole, along its axes, and of a limit that is drawn across it."""

    label: str
    across: str
    upward: str
    rule: str = ""


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    words: Words,
    rule: float | None = None,
    logarithmic: bool = False,
) -> str:
    """Lines through points (x, y); x is logarithmic, y from zero or logarithmic too."""
    points = [point for line in series.values() for point in line]
    heights = [y for _, y in points] + ([] if rule is None else [rule])
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    across = Axis(*_around((x for x, _ in points), 1.15), _LEFT, right, logarithmic=True)
    low, high = _around(heights, 1.3)
    upward = Axis(low if logarithmic else 0, high, bottom, _TOP, logarithmic)
    parts = _across(across, _TOP, bottom, words.across, dict.fromkeys(x for x, _ in points))
    parts += _upward(upward, _LEFT, right, words.upward)
    for i, (name, line) in enumerate(series.items()):
        parts += _curve(name, line, across, upward, i)
    if rule is not None:
        y = upward.place(rule)
        parts += [_line(_LEFT, y, right, y, "rule"), _text(right, y - 7, words.rule, "end")]
    return _chart(words.label, parts)


def _curve(
    name: str, line: Sequence[tuple[float, float]], across: Axis, upward: Axis, index: int
) -> list[str]:
    places = [(across.place(x), upward.place(y)) for x, y in line]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = f'<polyline points="{path}" fill="none" stroke="{colour(index)}" stroke-width="2"/>'
    said = (f"{name}: {number(y)} at {number(x)}" for x, y in line)
    marks = (_mark(*at, index, title) for at, title in zip(places, said, strict=True))
    return [drawn, *marks]


class Roof(NamedTuple):
    """What a machine can do at most: FLOP/s, and bytes/s of its memory; None is unknown."""

    flops: float | None
    bandwidth: float | None


def roofline(points: Mapping[int, tuple[float, float]], roof: Roof, label: str) -> str:
    """Where the engine lies under the machine's roof (Williams et al., 2009), on two log axes.

    Args:
        points: from batches to (FLOP/byte, FLOP/s).
    """
    ridge = [roof.flops / roof.bandwidth] if roof.flops and roof.bandwidth else []
    speeds = [speed for _, speed in points.values()] + ([roof.flops] if roof.flops else [])
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    reach = _around([*(x for x, _ in points.values()), *ridge], 3)
    across = Axis(*reach, _LEFT, right, logarithmic=True)
    unit, name = (1e12, "TFLOP/s") if max(speeds) >= 1e12 else (1e9, "GFLOP/s")
    upward = Axis(*_around((speed / unit for speed in speeds), 3), bottom, _TOP, logarithmic=True)
    parts = _across(across, _TOP, bottom, "FLOP for each byte of weights, logarithmic")
    parts += _upward(upward, _LEFT, right, f"{name}, logarithmic")
    parts += _roof_lines(roof, across, upward, unit)
    if roof.flops is not None:
        said = f"roof: {number(roof.flops / unit)} {name}"
        memory = "" if roof.bandwidth is None else f", {number(roof.bandwidth / 1e9)} GB/s"
        parts.append(_text(_LEFT + 6, _TOP + 12, said + memory))
    places = {
        batch: (across.place(intensity), upward.place(speed / unit))
        for batch, (intensity, speed) in sorted(points.items())
    }
    reached = {batch: f"{number(speed / unit)} {name}" for batch, (_, speed) in points.items()}
    return _chart(label, [*parts, *_batches(places, reached)])


def _batches(places: Mapping[int, tuple[float, float]], said: Mapping[int, str]) -> list[str]:
    """A mark for each batch at (x, y), with its size below where there is room."""
    drawn, taken = [], -math.inf
    for batch, (x, y) in places.items():
        drawn.append(_mark(x, y, 0, f"batch {batch}: {said[batch]}"))
        if x - taken > 4 * _LETTER:
            drawn.append(_text(x, y + 20, str(batch), "middle"))
            taken = x
    return drawn


def _roof_lines(roof: Roof, across: Axis, upward: Axis, unit: float) -> list[str]:
    """What is known of the roof: the flat part, and the slope that memory's bandwidth makes."""
    if roof.flops is None:
        return []
    y = upward.place(roof.flops / unit)
    if roof.bandwidth is None:
        return [_line(across.start, y, across.end, y, "rule")]
    ridge = across.place(roof.flops / roof.bandwidth)
    foot = max(across.low, unit * upward.low / roof.bandwidth)
    low = upward.place(foot * roof.bandwidth / unit)
    slope = _line(across.place(foot), low, ridge, y, "rule")
    return [slope, _line(ridge, y, across.end, y, "rule")]


def shares(parts: Mapping[str, float], colours: Mapping[str, str], label: str) -> str:
    """One bar of times, in their order, each named above where there is room."""
    total = sum(parts.values())
    axis = Axis(0, 1e3 * total, 16, _WIDTH - _RIGHT)
    top, bottom = 34, 74
    drawn = _across(axis, top, bottom, "time in ms")
    before = 0.0
    for name, seconds in parts.items():
        left, right = axis.place(1e3 * before), axis.place(1e3 * (before + seconds))
        before += seconds
        said = f"{name} {100 * seconds / total:.0f} %"
        title = f"<title>{escape(said)}, {number(1e3 * seconds)} ms</title></rect>"
        drawn.append(_bar(left, right, top, bottom, colours[name]) + title)
        if right - left > _LETTER * len(said):
            drawn.append(_text(left, top - 8, said))
    return _chart(label, drawn, bottom + _BOTTOM)


def legend(colours: Mapping[str, str]) -> str:
    """Names with the marks of their series, in order, as an HTML list."""
    keys = (
        f'<li><svg viewBox="-8 -8 16 16" width="16" height="16" aria-hidden="true">'
        f'<path d="{_SHAPES[i % len(_SHAPES)]}" fill="{fill}"/></svg> {escape(name)}</li>'
        for i, (name, fill) in enumerate(colours.items())
    )
    return f'<ul class="legend">{"".join(keys)}</ul>'
