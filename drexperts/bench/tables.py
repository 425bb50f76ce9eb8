"""The tables of a report, as text: the same on the terminal, in Markdown and in HTML.

What a report lacks makes no row, or a "-".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from drexperts.bench import caveats
from drexperts.bench.conditions import Conditions
from drexperts.bench.provenance import Gpu, Machine, Source
from drexperts.bench.reports import (
    AGAIN,
    ENGINE,
    BatchTimes,
    BenchReport,
    EngineDescription,
    Profile,
    Roofline,
    Seconds,
    TrainingReport,
)
from drexperts.bench.timing import Summary
from drexperts.runtime.manifest import CPU_BACKENDS
from drexperts.ui.markdown import Table

CALLS = ("p50 ms", "p90 ms", "p95 ms", "p99 ms", "mean ms", "cv")
_NO_CALLS = ("-",) * len(CALLS)
_DIGITS = 12  # of a SHA-256, enough to tell files apart; the JSON document has all
_LAYERS = 20  # of the slowest, in a table


def sections(report: BenchReport) -> dict[str, list[Table]]:
    """All tables by the title of their section; those without a row are left out."""
    found = {
        "Latency, engine_e2e": [latency(report.batches)],
        "Computation alone, engine_gpu": [latency(report.engine_gpu)],
        "Scenarios": [scenarios(report), server_trials(report)],
        "Roofline": [roofline(report)],
        "Time of an image by part": [parts(report), layers(report)],
        "What is timed": [boundaries(report), image(report)],
        "Start, memory, size, energy": [costs(report)],
        "Agreement": [agreement(report)],
        "Left out": [left_out(report)],
        "Conditions": [conditions(report)],
        "Where this is from": [origin(report)],
    }
    kept = {title: [table for table in tables if table.rows] for title, tables in found.items()}
    return {title: tables for title, tables in kept.items() if tables}


def text(value: float | None, unit: float = 1.0) -> str:
    """A number to four digits, in `unit`s; "-" where it is not known."""
    if value is None:
        return "-"
    scaled = value / unit
    return f"{scaled:.0f}" if abs(scaled) >= 1000 else f"{scaled:.4g}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds."""
    return text(seconds, 1e-3)


def calls(times: Seconds) -> tuple[str, ...]:
    """The columns `CALLS` for some samples."""
    found = Summary.of(times)
    shown = (found.p50, found.p90, found.p95, found.p99, found.mean)
    return (*map(milliseconds, shown), f"{100 * found.cv:.1f} %")


def title(report: BenchReport) -> str:
    """What was measured, in one line."""
    bundle, machine = report.bundle, report.machine
    on_gpu = bundle.backend not in CPU_BACKENDS and machine.gpus
    name = machine.gpus[0].name if machine.gpus and on_gpu else _cpu(machine)
    return f"DR.Experts {bundle.preset}, {bundle.backend} {bundle.precision}, on {name}"


def latency(entries: Sequence[BatchTimes]) -> Table:
    """Variants that were timed in the same rounds, by batch."""
    compared = any(len(entry.shown) > 1 for entry in entries)
    headings = ("batch", "variant", *CALLS, "crops/s", *["times the engine"] * compared)
    rows = [
        (
            str(entry.batch),
            name,
            *calls(times),
            text(entry.batch / median(times)),
            *[str(entry.ratio(name) or "")] * compared,
        )
        for entry in entries
        for name, times in entry.shown.items()
    ]
    return Table(headings, rows)


def throughput_points(report: BenchReport) -> dict[str, list[tuple[float, float]]]:
    """For each variant, (batch, crops per second at the median)."""
    points: dict[str, list[tuple[float, float]]] = {}
    for entry in sorted(report.batches, key=lambda entry: entry.batch):
        for name, times in entry.shown.items():
            points.setdefault(name, []).append((entry.batch, entry.batch / median(times)))
    return points


def image(report: BenchReport) -> Table:
    """A photograph, from its bytes on."""
    found = report.image
    rows = [
        ("decode and crop", *calls(found.preprocess)),
        ("image_e2e", *calls(found.image_e2e)),
    ]
    return Table(("of a photograph", *CALLS), rows)


def boundaries(report: BenchReport) -> Table:
    """What is timed, by its name."""
    return Table((), list(caveats.boundaries(report.bundle).items()))


def scenarios(report: BenchReport) -> Table:
    """One row per scenario; latency is that of a query."""
    return Table(("scenario", "images/s", *CALLS), list(_scenarios(report)))


def _scenarios(report: BenchReport) -> Iterator[tuple[str, ...]]:
    found = report.scenarios
    if (times := found.single_stream) is not None:
        rate = text(1 / Summary.of(times).mean)
        yield ("single-stream: one image after another", rate, *calls(times))
    if (times := found.multi_stream) is not None:
        images = found.images_per_query
        rate = text(images / Summary.of(times).mean)
        yield (f"multi-stream: {images} images per query", rate, *calls(times))
    if (server := found.server) is not None:
        best = server.best
        name = f"server: Poisson arrivals, p99 within {milliseconds(server.bound_s)} ms"
        shown = ("-", *_NO_CALLS) if best is None else (text(best.rate), *calls(best.seconds))
        yield (name, *shown)
    if (offline := found.offline) is not None:
        rate = text(offline.images_per_s)
        yield (f"offline: {offline.images} images at once", rate, *_NO_CALLS)


def server_trials(report: BenchReport) -> Table:
    """The rates that the server was tried with.

    The latency of a trial that was stopped early is that of what was answered.
    """
    server = report.scenarios.server
    rows = (
        [
            (
                text(trial.rate),
                f"{len(trial.seconds)} of {trial.planned}",
                *calls(trial.seconds),
                "yes"
                if trial.meets(server.bound_s)
                else "no" + ", stopped early" * (not trial.is_complete),
            )
            for trial in sorted(server.trials, key=lambda trial: trial.rate)
        ]
        if server
        else []
    )
    return Table(("images/s asked for", "answered", *CALLS, "within the bound"), rows)


def parts(report: BenchReport) -> Table:
    """Where the time of one image goes, by part."""
    found = {} if report.profile is None else report.profile.parts
    total = sum(found.values())
    rows = [
        (part, milliseconds(spent), f"{100 * spent / total:.1f} %") for part, spent in found.items()
    ]
    return Table(("part", "ms", "share"), rows)


def layers(report: BenchReport) -> Table:
    """The slowest layers, where the engine's backend times layers."""
    profile = report.profile
    found = () if profile is None else profile.layers
    slowest = sorted(found, key=lambda layer: -layer.seconds)[:_LAYERS]
    calls_of_image = 1.0 if profile is None else profile.calls
    rows = [
        (layer.name, layer.op, layer.part, milliseconds(calls_of_image * layer.seconds))
        for layer in slowest
    ]
    return Table(("layer", "operator", "part", "ms"), rows)


def profile_note(profile: Profile) -> str:
    """How the profile was measured."""
    slower = profile.slowdown.p50
    return (
        f"Times are for one whole image: decoding and cropping it ({profile.crops} crops), and "
        f"{profile.calls:.4g} calls of the engine with {profile.batch} crops; medians of "
        f"{len(profile.called)} rounds. With the profiler a call takes {slower:.2f} times as long "
        f"as without, and that is not subtracted. {profile.method}"
    )


def roofline_points(report: BenchReport) -> dict[int, tuple[float, float]]:
    """For each batch, (FLOP per byte, FLOP/s) of the engine.

    A call reads the weights at least once, so FLOP per byte is an upper bound. Speed is that of the
    computation alone where it was timed, because copies do not count towards the roof.
    """
    found = report.roofline
    if found is None:
        return {}
    return {
        entry.batch: (
            found.flop_per_image * entry.batch / found.weight_bytes,
            found.flop_per_image * entry.batch / median(entry.seconds[ENGINE]),
        )
        for entry in report.engine_gpu or report.batches
    }


def roofline(report: BenchReport) -> Table:
    """The position under the roof, one row per batch."""
    rows = []
    for batch, (intensity, speed) in sorted(roofline_points(report).items()):
        roof = None if report.roofline is None else attainable(report.roofline, intensity)
        share = "-" if roof is None else f"{100 * speed / roof:.0f} %"
        rows.append((str(batch), text(intensity), text(speed, 1e9), text(roof, 1e9), share))
    headings = ("batch", "FLOP/byte", "GFLOP/s", "attainable GFLOP/s", "of attainable")
    return Table(headings, rows)


def attainable(found: Roofline, intensity: float) -> float | None:
    """min(peak, intensity x bandwidth) in FLOP/s; None where either is not known."""
    if found.peak_flops is None or found.bandwidth is None:
        return None
    return min(found.peak_flops, intensity * found.bandwidth)


def costs(report: BenchReport) -> Table:
    """Cold start, memory, size and energy."""
    cold, memory, energy = report.cold_start, report.memory, report.energy
    seconds = {
        "import of the runtime": cold.import_s,
        "load, page cache warm": cold.load_s,
        "first inference": cold.first_inference_s,
    }
    sizes = {
        "memory after it": cold.resident_bytes,
        "peak memory until then": cold.peak_bytes,
        "peak memory, largest batch": memory.host_peak_bytes,
        "memory of the device, largest batch": memory.device_bytes,
        "file of the engine": report.bundle.bytes,
    }
    joules = f"{_with_unit(energy.joules_per_image, 1, 'J')} ({energy.source})"
    rows = [(name, _with_unit(value, 1, "s")) for name, value in seconds.items()]
    rows += [(name, _with_unit(value, 2**20, "MiB")) for name, value in sizes.items()]
    return Table((), [*rows, ("energy of an image", joules)])


def _with_unit(value: float | None, unit: float, name: str) -> str:
    return "-" if value is None else f"{text(value, unit)} {name}"


def agreement(report: BenchReport) -> Table:
    """How far the scores of forms of the model are from those of the reduced one in PyTorch."""
    rows = [(name, f"{apart:.1e}") for name, apart in report.agreement.items()]
    return Table(("variant", "relative difference of scores from eager-reduced"), rows)


def left_out(report: BenchReport) -> Table:
    """What cannot run here, and why."""
    return Table(("what", "why it is left out"), list(report.left_out.items()))


def conditions(report: BenchReport) -> Table:
    """When it ran, on what, beside what else, and how the engine was set."""
    machine, bundle = report.machine, report.bundle
    identity = "" if machine.cpu_id is None else f" ({machine.cpu_id})"
    rows = [
        *_when(report.conditions),
        ("CPU", f"{_cpu(machine)}{identity}, {machine.cores} cores"),
        ("engine", _engine(bundle)),
        ("bundle", "-" if bundle.digest is None else f"digest {_short(bundle.digest)}"),
        ("options", _pairs(bundle.options) or "-"),
        ("warm-ups", _warm_ups(report)),
    ]
    return Table((), rows)


def _when(found: Conditions | None) -> Iterator[tuple[str, str]]:
    if found is not None:
        yield "date", f"{found.started}, for {text(found.seconds)} s"
        most = max(found.loads, default=None)
        yield "load average", f"{text(found.load_before)} before, at most {text(most)} during"
        share = "-" if found.steal is None else f"{100 * found.steal:.2f} %"
        yield "steal", f"{share} of the CPUs' time"


def _warm_ups(report: BenchReport) -> str:
    rounds = len(report.batches[0].seconds[ENGINE])
    return f"{'-' if report.warm_ups is None else report.warm_ups} before {rounds} timed rounds"


def origin(report: BenchReport) -> Table:
    """What was measured, on what, from which source, and how to do it again."""
    rows = [
        ("session", report.bundle.session),
        *((name, _engine(other)) for name, other in report.against.items()),
        ("baselines' weights", report.weights),
        *_machine(report.machine, report.gpus_after),
        ("command", report.command),
        *_source(report.source),
    ]
    return Table((), rows)


def _machine(machine: Machine, gpus_after: Sequence[Gpu] = ()) -> Iterator[tuple[str, str]]:
    yield "threads", "the default" if machine.threads is None else str(machine.threads)
    yield from _gpus("", machine.gpus or ())
    yield from _gpus(" after the last round", gpus_after)
    yield from ((f"unknown: {name}", reason) for name, reason in machine.missing.items())
    yield "system", machine.system
    yield "Python", machine.python
    yield "versions", ", ".join(f"{name} {found}" for name, found in machine.versions.items())


def _source(source: Source) -> Iterator[tuple[str, str]]:
    changed = {True: ", with changes", None: "", False: ""}[source.dirty]
    yield "source", ", ".join(source.packages)
    yield "commit", "-" if source.commit is None else source.commit + changed


def _cpu(machine: Machine) -> str:
    return machine.cpu or "an unnamed CPU"


def _gpus(when: str, gpus: Iterable[Gpu]) -> Iterator[tuple[str, str]]:
    for i, gpu in enumerate(gpus):
        known = {name: value for name, value in vars(gpu).items() if value not in (None, ())}
        throttled = {"throttled": ", ".join(gpu.throttled)} if gpu.throttled else {}
        yield f"GPU {i}{when}", _pairs(known | throttled)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def _engine(engine: EngineDescription) -> str:
    digest = engine.sha256[:_DIGITS]
    return f"{engine.engine}: {engine.backend}, {engine.precision}, SHA-256 {digest}"


def _short(digest: str) -> str:
    kind, _, digits = digest.rpartition(":")
    return f"{kind}:{digits[:_DIGITS]}"


def noise_floor(report: BenchReport) -> str:
    """By how much a ratio must differ from 1 to mean something, for each batch."""
    floors = [
        f"{entry.ratio(AGAIN)} with batch {entry.batch}"
        for entry in report.batches
        if AGAIN in entry.seconds
    ]
    if not floors:
        return "The noise floor was not measured."
    return (
        f"Noise floor: the engine's time over its own, in the same rounds, is {', '.join(floors)}. "
        "A ratio within the range of its batch means nothing."
    )


def training(report: TrainingReport) -> Table:
    """Steps of each variant."""
    headings = ("", "type", "p50 s", "p90 s", "cv", "times ours", "peak MB", "times ours")
    ours = next(iter(report.variants.values())).peak_bytes
    rows = []
    for name, variant in report.variants.items():
        times, peak, ratio = Summary.of(variant.seconds), variant.peak_bytes, report.ratio(name)
        times_ours = "" if ratio is None or not (peak and ours) else f"{peak / ours:.2f}"
        shown = (f"{times.p50:.2f}", f"{times.p90:.2f}", f"{times.cv:.0%}", str(ratio or ""))
        rows.append((name, variant.amp, *shown, text(peak, 1e6), times_ours))
    return Table(headings, rows)


def training_parts(report: TrainingReport) -> Iterator[str]:
    """What our step consists of, and what making its batch takes."""
    medians = {name: median(times) for name, times in report.parts.items()}
    whole = sum(medians.values())
    split = (f"{name} {1e3 * p:.0f} ms ({p / whole:.0%})" for name, p in medians.items())
    yield f"our step of {report.batch} crops: {', '.join(split)}"
    yield f"data: {1e3 * median(report.data):.0f} ms of one core per batch, beside the step"
