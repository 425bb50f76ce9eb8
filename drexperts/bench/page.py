"""A report of `drx bench` as one HTML page. No script, nothing fetched."""

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from markupsafe import Markup

from drexperts.bench import tables
from drexperts.bench.flame import COLOURS, flame
from drexperts.ui import charts
from drexperts.ui.markdown import Table
from drexperts.ui.pages import render

Report = Mapping[str, Any]

# Trials of the server.
_ANSWERED = "every image answered"
_STOPPED = "stopped early, of what was answered"


def html_table(table: Table) -> str:
    """A table as HTML."""
    return render("table.html.j2", content=table)


def _calls(contenders: Mapping[str, Any]) -> dict[str, Any]:
    return {name: times["samples"] for name, times in contenders.items()}


def page(report: Report) -> str:
    """The page of a report of `drexperts.bench.bundle.bench_bundle`."""
    title = tables.title(report)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(report["bundle"]["session"])}</p>',
        _tiles(report),
        _alarms(report["warnings"]),
        *_latency(report),
        *_throughput(report),
        *_scenarios(report),
        *_roofline(report),
        *_cost(report),
        *_tables("What is timed", tables.boundaries(report), tables.image(report)),
        *_tables("Start, memory, size, energy", tables.costs(report)),
        *_tables("Agreement", tables.agreement(report)),
        *_tables("Left out", tables.left_out(report)),
        *_tables("Where this is from", tables.machine(report)),
    ]
    parts = map(Markup, body)
    return render("bench.html.j2", title=f"drx bench: {title}", parts=parts)


def _tiles(report: Report) -> str:
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in _highlights(report)
    )
    return f'<dl class="tiles">{tiles}</dl>'


def _highlights(report: Report) -> Iterator[tuple[str, str]]:
    """What one would ask first."""
    if report["batches"]:
        first = report["batches"][0]
        times = first["latency"]["engine"]
        for quantile in ("p50", "p99"):
            shown = tables.milliseconds(times[quantile])
            yield f"{quantile} of the engine, batch {first['batch']}", f"{shown} ms"
        rates = tables.throughput_points(report)["engine"]
        batch, rate = max(rates, key=lambda point: point[1])
        yield f"at most, with batch {batch}", f"{tables.text(rate)} crops/s"
    if report.get("image") is not None:
        whole = tables.milliseconds(report["image"]["image_e2e"]["p50"])
        yield "p50 from a file's bytes to its Score", f"{whole} ms"


def _alarms(warnings: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<ul class="alarm">{items}</ul>' if items else ""


def _latency(report: Report) -> Iterator[str]:
    yield "<h2>Latency</h2>"
    yield f'<p class="note">{escape(tables.noise_floor(report))}</p>'
    for i, entry in enumerate(report["batches"]):
        heading = escape(f"Batch {entry['batch']}, {entry['boundary']}")
        shown = "".join(_batch(entry))
        opened = "" if i else " open"
        yield f"<details{opened}><summary>{heading}</summary>{shown}</details>"
    if report["engine_gpu"]:
        yield "<h3>Computing alone, engine_gpu</h3>"
        yield html_table(tables.latency(report["engine_gpu"]))


def _batch(entry: Mapping[str, Any]) -> Iterator[str]:
    contenders, batch = tables.contenders(entry), entry["batch"]
    strips = _figure(
        charts.strips(_calls(contenders), f"every call of each contender, batch {batch}"),
        "A tick is a call, the band has the middle 60 % of them, the mark is the median. The "
        "histograms have the same calls, with a line at p50 and a dashed one at p99.",
    )
    histograms = "".join(
        f"<figure><figcaption>{escape(name)}</figcaption>"
        f"{charts.histogram(calls, f'latencies of {name}, batch {batch}', i)}</figure>"
        for i, (name, calls) in enumerate(_calls(contenders).items())
    )
    yield f'<div class="pair">{strips}<div class="small">{histograms}</div></div>'
    yield html_table(tables.latency([entry]))


def _figure(drawn: str, caption: str) -> str:
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


def _beside(drawn: str, table: Table) -> str:
    return f'<div class="pair"><div>{drawn}</div>{html_table(table)}</div>'


def _throughput(report: Report) -> Iterator[str]:
    points = tables.throughput_points(report)
    if not points:
        return
    words = charts.Words("crops a second against batch", "crops in a batch", "crops/s")
    yield "<h2>Throughput</h2>"
    yield _beside(charts.curves(points, words, base=2), tables.throughput(report))


def _scenarios(report: Report) -> Iterator[str]:
    table = tables.scenarios(report)
    if not table.rows:
        return
    yield "<h2>Scenarios</h2>"
    yield '<p class="note">MLPerf-style, each image from the bytes of its file to its Score.</p>'
    yield html_table(table)
    server = report["scenarios"].get("server")
    if server is not None and server["trials"]:
        yield "<h3>Server</h3>"
        yield _beside(_server(server), tables.server_trials(report))


def _server(server: Mapping[str, Any]) -> str:
    points: dict[str, list[tuple[float, float]]] = {_ANSWERED: [], _STOPPED: []}
    for trial in sorted(server["trials"], key=lambda trial: trial["rate"]):
        name = _STOPPED if tables.stopped_early(trial) else _ANSWERED
        points[name].append((trial["rate"], 1e3 * trial["p99"]))
    kept = {name: line for name, line in points.items() if line}
    bound = 1e3 * server["bound_s"]
    words = charts.Words(
        "p99 latency against the rate of arrivals",
        "images/s asked for, logarithmic",
        "p99 in ms, logarithmic",
        f"bound {tables.text(bound)} ms",
    )
    return charts.curves(kept, words, bound, logarithmic=True)


def _roofline(report: Report) -> Iterator[str]:
    points = tables.roofline_points(report)
    if not points:
        return
    found = report["roofline"]
    roof = charts.Roof(found["peak_flops"], found["bandwidth"])
    yield "<h2>Roofline</h2>"
    yield _beside(
        _figure(
            charts.roofline(points, roof, "FLOP/s against FLOP for each byte"),
            f"The number at a mark is its batch. {found['source']}",
        ),
        tables.roofline(report),
    )


def _cost(report: Report) -> Iterator[str]:
    profile = report.get("profile")
    if profile is None:
        return
    parts = {part["part"]: part["seconds"] for part in profile["parts"]}
    yield "<h2>Cost of an image by part</h2>"
    yield f'<p class="note">{escape(profile["note"])}</p>'
    bar = charts.shares(parts, COLOURS, "time by part of one image")
    yield _beside(bar, tables.parts(report))
    yield '<div class="scroll flame" tabindex="0" role="region" aria-label="cost by layer">'
    yield f"{flame(profile)}</div>"
    if profile["layers"]:
        yield "<h3>The slowest layers</h3>"
        yield html_table(tables.layers(report))


def _tables(title: str, *found: Table) -> Iterator[str]:
    """A section, unless there is nothing in it."""
    kept = tables.shown(found)
    if kept:
        yield f"<h2>{escape(title)}</h2>"
        yield from map(html_table, kept)
