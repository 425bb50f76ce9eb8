"""A report of `drx bench` as one HTML page. No script, nothing fetched."""

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from drexperts.bench import tables
from drexperts.bench.flame import COLOURS, flame
from drexperts.ui import charts
from drexperts.ui.html import STYLE, Table, document, html_table

Report = Mapping[str, Any]

# Trials of the server.
_ANSWERED = "every image answered"
_STOPPED = "stopped early, of what was answered"

_STYLE = (
    STYLE
    + """
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem;
       margin: 1.4rem 0; padding: 0 }
.tiles div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
       padding: .7rem .9rem }
.tiles dt { color: var(--soft); font-size: .86rem }
.tiles dd { margin: 0; font-size: 1.5rem; font-weight: 600 }
.pair { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: start }
.pair > * { flex: 1 1 min(100%, 440px); min-width: 0; max-width: 620px }
.pair > .scroll { flex: 0 1 auto; max-width: 100% }
.pair > .small { display: grid; gap: .4rem 1rem;
       grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)) }
figure { margin: 0 0 .8rem } figcaption { color: var(--soft); font-size: .9rem }
.small figcaption { color: var(--ink); font-weight: 600 }
svg.chart { width: 100%; font: 13px system-ui, sans-serif }
.grid { stroke: var(--line) } .tick { font-size: 12px }
svg.chart text { paint-order: stroke; stroke: var(--paper); stroke-width: 3px }
summary { font-weight: 600; font-size: 1.1rem; cursor: pointer; margin: .8rem 0 }
.rule { stroke: currentColor; stroke-width: 2; stroke-dasharray: 6 4 }
.median, .slow { stroke: currentColor; stroke-width: 1.5 } .slow { stroke-dasharray: 4 3 }
/* Its own background and ink are for a white page. */
.flame { margin-top: 1rem } .flame svg { max-width: none !important }
.flame svg > rect:first-child { fill: none } .flame svg > text { fill: currentColor }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0;
       font-size: .92rem } .legend svg { vertical-align: -3px }
.alarm { background: var(--alarm); border-radius: 8px; padding: .7rem 1rem .7rem 2rem }
"""
)


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
    return document(f"drx bench: {title}", _STYLE, body)


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
        charts.strips(contenders, f"every call of each contender, batch {batch}"),
        "A tick is a call, the band has the middle 60 % of them, the mark is the median. The "
        "histograms have the same calls, with a line at p50 and a dashed one at p99.",
    )
    histograms = "".join(
        f"<figure><figcaption>{escape(name)}</figcaption>"
        f"{charts.histogram(times, f'latencies of {name}, batch {batch}', i)}</figure>"
        for i, (name, times) in enumerate(contenders.items())
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
    yield _beside(charts.curves(points, words) + _legend(points), tables.throughput(report))


def _legend(names: Iterable[str]) -> str:
    return charts.legend({name: charts.colour(i) for i, name in enumerate(names)})


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
        f"bound {charts.number(bound)} ms",
    )
    return charts.curves(kept, words, bound, logarithmic=True) + _legend(kept)


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
    bar += charts.legend({name: COLOURS[name] for name in parts})
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
