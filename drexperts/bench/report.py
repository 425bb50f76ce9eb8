"""Reports of `drx bench` for readers: on the terminal, as files, as the summary of `--json`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drexperts.bench import tables
from drexperts.bench.caveats import boundaries, warnings
from drexperts.bench.json_files import document, write_json
from drexperts.bench.reports import (
    BETWEEN,
    CROP,
    DECODE,
    BatchTimes,
    BenchReport,
    Profile,
    Seconds,
    TrainingReport,
)
from drexperts.bench.timing import Summary
from drexperts.runtime.files import written_whole
from drexperts.ui.markdown import Table, markdown_table, markdown_text

if TYPE_CHECKING:
    from rich.console import Console

_ORIGIN = "Where this is from"  # a section that only files have


def write_report(report: BenchReport, folder: Path) -> None:
    """Write report.json, report.md and index.html, and trace.json of a profile.

    Each is written whole or not at all. Raises OSError, and ValueError for a number that JSON does
    not have.
    """
    from drexperts.bench.page import page

    write_json(report, folder / "report.json")
    texts = {"report.md": markdown(report), "index.html": page(report)}
    if report.profile is not None:
        texts["trace.json"] = json.dumps(trace(report.profile), allow_nan=False)
    for name, text in texts.items():
        with written_whole(folder / name) as aside:
            # A command line may hold bytes that are no text.
            aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def print_report(report: BenchReport, console: "Console") -> None:
    """The report as tables."""
    console.print(f"{tables.title(report)}; {report.bundle.session}")
    console.print(tables.noise_floor(report))
    for title, found in tables.sections(report).items():
        for i, table in enumerate(found if title != _ORIGIN else ()):
            print_table(table, console, title if i == 0 else None)
    for warning in warnings(report):
        console.print(f"warning: {warning}")


def print_training_report(report: TrainingReport, console: "Console") -> None:
    """The report as a table, and what our step consists of."""
    console.print(f"{report.machine.cpu}, {report.machine.cores} cores; training, {report.preset}")
    print_table(tables.training(report), console)
    for line in tables.training_parts(report):
        console.print(line)


def print_table(table: Table, console: "Console", title: str | None = None) -> None:
    """A table on the terminal, as `fitted`. One with names and values has no headings."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid

    from drexperts.ui.fitting import fitted

    grid = Grid(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_header=bool(table.headings),
    )
    headings = table.headings or ("", "")
    for heading, number in zip(headings, table.numeric, strict=True):
        grid.add_column(heading, no_wrap=number)
    for row in table.rows:
        grid.add_row(*row)
    console.print(fitted(grid, console))


def markdown(report: BenchReport) -> str:
    """The report's tables as Markdown."""
    lines = [f"# {markdown_text(tables.title(report))}", ""]
    lines += [f"- **Warning:** {markdown_text(warning)}" for warning in warnings(report)]
    lines += [""] * bool(warnings(report)) + [markdown_text(tables.noise_floor(report))]
    for title, found in tables.sections(report).items():
        lines += ["", f"## {title}"]
        for table in found:
            lines += ["", *markdown_table(table)]
    return "\n".join(lines) + "\n"


def with_summary(report: BenchReport | TrainingReport) -> dict[str, Any]:
    """The report as JSON has it, with a "summary" that is computed from its samples."""
    made = _summary(report) if isinstance(report, BenchReport) else _training_summary(report)
    return document(report) | {"summary": made}


def _summary(report: BenchReport) -> dict[str, Any]:
    found, server, offline = report.scenarios, report.scenarios.server, report.scenarios.offline
    best = None if server is None else server.best
    return {
        "batches": [_batch(entry) for entry in report.batches],
        "engine_gpu": [_batch(entry) for entry in report.engine_gpu],
        "preprocess": _statistics(report.image.preprocess),
        "image_e2e": _statistics(report.image.image_e2e),
        "single_stream": _statistics(found.single_stream),
        "multi_stream": _statistics(found.multi_stream),
        "server_images_per_s": None if best is None else best.rate,
        "offline_images_per_s": None if offline is None else offline.images_per_s,
        "joules_per_image": report.energy.joules_per_image,
        "parts": None if report.profile is None else report.profile.parts,
        "boundaries": boundaries(report.bundle),
        "warnings": warnings(report),
    }


def _training_summary(report: TrainingReport) -> dict[str, Any]:
    variants = report.variants.items()
    ratios = {name: report.ratio(name) for name, _ in variants}
    return {
        "latency": {name: _statistics(variant.seconds) for name, variant in variants},
        "ratio": {name: asdict(ratio) for name, ratio in ratios.items() if ratio},
        "parts": {name: _statistics(times) for name, times in report.parts.items()},
        "data": _statistics(report.data),
        "losses_agree": report.losses_agree,
    }


def _batch(entry: BatchTimes) -> dict[str, Any]:
    ratios = {name: entry.ratio(name) for name in entry.seconds}
    return {
        "batch": entry.batch,
        "latency": {name: _statistics(times) for name, times in entry.seconds.items()},
        "ratio": {name: asdict(ratio) for name, ratio in ratios.items() if ratio},
    }


def _statistics(times: Seconds | None) -> dict[str, float] | None:
    return None if times is None else asdict(Summary.of(times))


def trace(profile: Profile) -> dict[str, Any]:
    """One image as a Chrome trace, which Perfetto and speedscope show.

    Decoding, cropping, and then the engine's calls as one, with the layers inside in the order in
    which they run. Times are the medians of the profile.
    """
    parts = profile.parts
    layers = [(layer, profile.calls * layer.seconds) for layer in profile.layers]
    engine = sum(spent for _, spent in layers) + parts[BETWEEN]
    events: list[dict[str, Any]] = []

    def add(name: str, start: float, spent: float, part: str, **details: object) -> None:
        place = {"ph": "X", "pid": 0, "tid": 0, "ts": 1e6 * start, "dur": 1e6 * spent}
        events.append({"name": name, "cat": part, "args": details} | place)

    start = parts[DECODE] + parts[CROP]
    add("image", 0.0, start + engine, "image")
    add(DECODE, 0.0, parts[DECODE], DECODE)
    add(CROP, parts[DECODE], parts[CROP], CROP)
    add("engine", start, engine, "engine", calls=profile.calls, batch=profile.batch)
    for layer, spent in layers:
        add(layer.name, start, spent, layer.part, operator=layer.op, node=layer.node)
        start += spent
    return {"traceEvents": events, "displayTimeUnit": "ms"}
