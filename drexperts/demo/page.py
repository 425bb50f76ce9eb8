"""The demo's results as one HTML page beside its pictures. No script, nothing fetched."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from drexperts.bench.tables import latency
from drexperts.runtime.manifest import Engine
from drexperts.ui.charts import colour
from drexperts.ui.html import STYLE, Table, document, html_table

_PLOT = 460  # px, with a margin for the axis labels
_MARGIN = 46


class Point(NamedTuple):
    """A held-out image in the plot."""

    label: float
    score: float
    group: str


def write_page(
    path: Path,
    report: dict[str, Any],
    engine: Engine,
    points: list[Point],
    pictures: Sequence[Path],
) -> None:
    """Write the page. `pictures` lie in or below the page's own folder."""
    held_out = report["held_out"]
    parts = [
        "<h1>A small DR.Experts, from training to scores</h1>",
        '<p class="note">Trained on this machine on synthetically distorted photographs. The '
        "labels are computed, not people's opinions, the prior is not DA-CLIP, and the set-up was "
        "chosen with these held-out photographs in view: the numbers show that the path works, "
        "not how good the published model is.</p>",
        "<h2>Content it has not seen</h2>",
        f"<p>{held_out['images']} distorted versions of {escape(', '.join(held_out['contents']))}: "
        f"SRCC <b>{held_out['srcc']:.3f}</b>, PLCC <b>{held_out['plcc']:.3f}</b>.</p>",
        scatter(points),
        "<h2>The engine is the model</h2>",
        html_table(_proof_table(engine)),
        "<h2>Latency</h2>",
        html_table(latency(report["bench"]["batches"])),
        "<h2>What it saw</h2>",
        *(_picture(path.parent, picture) for picture in pictures),
    ]
    path.write_text(document("drx demo", STYLE, parts), encoding="utf-8")


def scatter(points: Sequence[Point]) -> str:
    """Score against label, both 0..100, as SVG; a colour for each group."""
    groups = sorted({point.group for point in points})
    colours = {group: colour(i) for i, group in enumerate(groups)}
    top = max(100.0, *(point.score for point in points))
    low = min(0.0, *(point.score for point in points))

    def place(value: float) -> float:
        return _MARGIN + (value - low) / (top - low) * (_PLOT - 2 * _MARGIN)

    dots = [
        f'<circle cx="{place(p.label):.1f}" cy="{_PLOT - place(p.score):.1f}" r="4" '
        f'fill="{colours[p.group]}" fill-opacity=".75"/>'
        for p in points
    ]
    ends = place(low), place(top)
    lines = [
        f'<line x1="{ends[0]}" y1="{_PLOT - ends[0]}" x2="{ends[1]}" y2="{_PLOT - ends[1]}" '
        'stroke="#8c959f" stroke-dasharray="4 4"/>',
        f'<text x="{_PLOT / 2}" y="{_PLOT - 8}" text-anchor="middle">label</text>',
        f'<text x="14" y="{_PLOT / 2}" transform="rotate(-90 14 {_PLOT / 2})" '
        'text-anchor="middle">score</text>',
        *(_axis_label(end, place(end), ends[0]) for end in (low, top)),
    ]
    key = [
        f'<circle cx="{_PLOT + 12}" cy="{40 + 22 * i}" r="5" fill="{colours[group]}"/>'
        f'<text x="{_PLOT + 26}" y="{45 + 22 * i}">{escape(group)}</text>'
        for i, group in enumerate(groups)
    ]
    size = f'width="{_PLOT + 190}" height="{_PLOT}" viewBox="0 0 {_PLOT + 190} {_PLOT}"'
    drawn = "".join(lines + dots + key)
    return f'<svg class="chart" {size} role="img" aria-label="score against label">{drawn}</svg>'


def _axis_label(value: float, place: float, origin: float) -> str:
    """The same value on both axes, which share their scale."""
    across = f'<text x="{place}" y="{_PLOT - origin + 20}" text-anchor="middle">{value:.0f}</text>'
    up = f'<text x="{origin - 8}" y="{_PLOT - place + 5}" text-anchor="end">{value:.0f}</text>'
    return across + up


def _proof_table(engine: Engine) -> Table:
    rows = []
    if engine.parity is not None:
        measured = engine.parity.measured()
        for name, limit in engine.parity.limits.items():
            value = measured.get(name)
            rows.append(
                (name.replace("_", " "), "" if value is None else f"{value:.3g}", f"{limit:g}")
            )
    if engine.invariance is not None:
        drift, limit = engine.invariance.score_max, engine.invariance.tolerance
        rows.append(("batch invariance", f"{drift:.3g}", f"{limit:g}"))
    return Table(("measure", "value", "limit"), rows)


def _picture(folder: Path, picture: Path) -> str:
    source = escape(picture.relative_to(folder).as_posix(), quote=True)
    return f'<img src="{source}" alt="explanation of {source}" loading="lazy">'
