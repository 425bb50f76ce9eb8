"""A report of `drx bench` as one HTML page. No script, nothing fetched."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import NamedTuple

from markupsafe import Markup

from drexperts.bench import tables
from drexperts.bench.caveats import warnings
from drexperts.bench.reports import ENGINE, PARTS, BatchTimes, BenchReport, Server
from drexperts.bench.timing import Summary
from drexperts.ui import charts
from drexperts.ui.markdown import Table
from drexperts.ui.pages import render

# Trials of the server.
_ANSWERED = "every image answered"
_STOPPED = "stopped early, of what was answered"

# In the order of `PARTS`. Grey is for what is no part of the model.
_COLOURS = ("#e69f00", "#f0e442", "#cc79a7", "#0072b2", "#d55e00", "#009e73", "#999999", "#cccccc")
PART_COLOURS = dict(zip(PARTS, _COLOURS, strict=True))

_THROUGHPUT = charts.Words("crops per second against batch", "crops in a batch", "crops/s")

# Sections that have no chart.
_PLAIN = ("What is timed", "Start, memory, size, energy", "Agreement", "Left out", "Conditions")


class _Batch(NamedTuple):
    """The charts and the table of one batch."""

    batch: int
    strips: Markup
    histograms: dict[str, Markup]
    table: Table


class _Charted(NamedTuple):
    """A section with a chart beside its table."""

    chart: Markup
    table: Table


def page(report: BenchReport) -> str:
    """The page of a report."""
    sections = tables.sections(report)
    profile = report.profile
    # Of each variant in all charts, although some may have run in some batches only.
    names = dict.fromkeys(name for entry in report.batches for name in entry.shown)
    numbers = {name: number for number, name in enumerate(names)}
    return render(
        "bench.html.j2",
        title=f"drx bench: {tables.title(report)}",
        heading=tables.title(report),
        session=report.bundle.session,
        highlights=dict(_highlights(report)),
        warnings=warnings(report),
        noise_floor=tables.noise_floor(report),
        batches=[_batch(entry, numbers) for entry in report.batches],
        computation=tables.latency(report.engine_gpu),
        throughput=charts.curves(
            tables.throughput_points(report), _THROUGHPUT, base=2, numbers=numbers
        ),
        scenarios=tables.scenarios(report),
        server=_server(report),
        roofline=_roofline(report),
        roofline_source="" if report.roofline is None else report.roofline.source,
        profile=_profile(report),
        profile_note="" if profile is None else tables.profile_note(profile),
        layers=tables.layers(report),
        plain={title: found for title, found in sections.items() if title in _PLAIN},
        origin=tables.origin(report),
    )


def _highlights(report: BenchReport) -> Iterator[tuple[str, str]]:
    """What a reader asks first."""
    first = report.batches[0]
    times = Summary.of(first.seconds[ENGINE])
    for name, quantile in (("p50", times.p50), ("p99", times.p99)):
        shown = tables.milliseconds(quantile)
        yield f"{name} of the engine, batch {first.batch}", f"{shown} ms"
    rates = tables.throughput_points(report)[ENGINE]
    batch, rate = max(rates, key=lambda point: point[1])
    yield f"highest throughput, with batch {batch:g}", f"{tables.text(rate)} crops/s"
    whole = tables.milliseconds(median(report.image.image_e2e))
    yield "p50 from a file's bytes to its Score", f"{whole} ms"


def _batch(entry: BatchTimes, numbers: Mapping[str, int]) -> _Batch:
    batch, shown = entry.batch, entry.shown
    histograms = {
        name: charts.histogram(times, f"latencies of {name}, batch {batch}", numbers[name])
        for name, times in shown.items()
    }
    strips = charts.strips(shown, f"every call of each variant, batch {batch}", numbers)
    return _Batch(batch, strips, histograms, tables.latency([entry]))


def _server(report: BenchReport) -> _Charted | None:
    server = report.scenarios.server
    if server is None or not server.trials:
        return None
    return _Charted(_trials(server), tables.server_trials(report))


def _trials(server: Server) -> Markup:
    points: dict[str, list[tuple[float, float]]] = {_ANSWERED: [], _STOPPED: []}
    for trial in sorted(server.trials, key=lambda trial: trial.rate):
        name = _ANSWERED if trial.is_complete else _STOPPED
        points[name].append((trial.rate, 1e3 * Summary.of(trial.seconds).p99))
    kept = {name: line for name, line in points.items() if line}
    bound = 1e3 * server.bound_s
    words = charts.Words(
        "p99 latency against the rate of arrivals",
        "images/s asked for, logarithmic",
        "p99 in ms, logarithmic",
        f"bound {tables.text(bound)} ms",
    )
    return charts.curves(kept, words, bound, logarithmic=True)


def _roofline(report: BenchReport) -> _Charted | None:
    found = report.roofline
    if found is None:
        return None
    roof = charts.Roof(found.peak_flops, found.bandwidth)
    points = tables.roofline_points(report)
    chart = charts.roofline(points, roof, "FLOP/s against FLOP per byte")
    return _Charted(chart, tables.roofline(report))


def _profile(report: BenchReport) -> _Charted | None:
    if report.profile is None:
        return None
    chart = charts.shares(report.profile.parts, PART_COLOURS, "time by part of one image")
    return _Charted(chart, tables.parts(report))
