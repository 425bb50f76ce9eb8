"""A report of `drx bench` as files: JSON, raw observations, Markdown, and a page with plots."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from drexperts.bench import tables
from drexperts.bench.page import page
from drexperts.runtime.files import written_whole
from drexperts.ui.markdown import Table, markdown_table, markdown_text

Report = Mapping[str, Any]


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, observations.jsonl, report.md and index.html, each whole or not at all.

    Raises OSError, and ValueError for a report with a number that JSON does not have.
    """
    lines = (json.dumps(one, allow_nan=False) for one in observations(report))
    files = {
        "report.json": json.dumps(report, indent=2, allow_nan=False) + "\n",
        "observations.jsonl": "".join(f"{line}\n" for line in lines),
        "report.md": markdown(report),
        "index.html": page(report),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        with written_whole(folder / name) as aside:
            # A command line may hold bytes that are no text.
            aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def observations(report: Report) -> Iterator[dict[str, Any]]:
    """Every raw observation.

    Yields:
        set: where its statistics are in report.json, a JSON Pointer (RFC 6901);
        contender and batch, None where there are none;
        round, from 0: equal rounds of a batch were timed in turn;
        seconds.
    """
    yield from _observations(report, (), None)


def _observations(node: Any, place: tuple[str, ...], batch: int | None) -> Iterator[dict[str, Any]]:
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        batch = node.get("batch", batch)
        children = node.items()
        pointer = "".join(f"/{_step(step)}" for step in place)
        contender = place[-1] if place[-2:-1] == ("latency",) else None
        for i, seconds in enumerate(node.get("samples", ())):
            yield {
                "set": pointer,
                "contender": contender,
                "batch": batch,
                "round": i,
                "seconds": seconds,
            }
    elif isinstance(node, list):
        children = enumerate(node)
    for key, child in children:
        yield from _observations(child, (*place, str(key)), batch)


def _step(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def markdown(report: Report) -> str:
    """The report's tables."""
    lines = [
        f"# {markdown_text(tables.title(report))}",
        *_warnings(report["warnings"]),
        *_section("Latency, engine_e2e", tables.latency(report["batches"])),
        "",
        markdown_text(tables.noise_floor(report)),
        *_section("Computing alone, engine_gpu", tables.latency(report["engine_gpu"])),
        *_section("Throughput", tables.throughput(report)),
        *_section("Scenarios", tables.scenarios(report), tables.server_trials(report)),
        *_section("Roofline", tables.roofline(report)),
        *_section("Cost of an image by part", tables.parts(report), tables.layers(report)),
        *_section("What is timed", tables.boundaries(report), tables.image(report)),
        *_section("Start, memory, size, energy", tables.costs(report)),
        *_section("Agreement", tables.agreement(report)),
        *_section("Left out", tables.left_out(report)),
        *_section("Where this is from", tables.machine(report)),
    ]
    return "\n".join(lines) + "\n"


def _warnings(warnings: Iterable[str]) -> Iterator[str]:
    for i, warning in enumerate(warnings):
        yield from [""] * (i == 0)
        yield f"- **Warning:** {markdown_text(warning)}"


def _section(title: str, *found: Table) -> Iterator[str]:
    """Empty lines around a heading and tables, unless there is nothing in them."""
    kept = tables.shown(found)
    if kept:
        yield from ("", f"## {title}")
    for table in kept:
        yield ""
        yield from markdown_table(table)
