"""The receipt of `bench_full_size.py`, and its tables."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from drexperts.bench import caveats, tables
from drexperts.bench.provenance import Machine, Source
from drexperts.bench.reports import (
    ENGINE,
    BatchTimes,
    BenchReport,
    ColdStart,
    EngineDescription,
    ImageTimes,
    Seconds,
)
from drexperts.bench.timing import Ratio, Summary
from drexperts.benchmarks.receipt_types.receipt import Part, left_out, machine_line, three_digits
from drexperts.runtime.proof import BatchInvariance, Parity
from drexperts.ui.markdown import Table, markdown_text

RELEASED = "eager-dense"
LIBRARIES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
SHOWN = 4  # caveats


@dataclass(frozen=True)
class Proofs:
    """How an engine's bundle was proven; None for a proof that it lacks.

    searched: whether its precision was searched, by "auto"; older receipts do not say
    """

    parity: Parity | None
    invariance: BatchInvariance | None
    searched: bool = False


@dataclass(frozen=True)
class EngineCosts:
    """What an engine costs beside its calls.

    cold: a fresh process that finds no compiled model in the cache
    warm: the same again, once for each process
    image: of the photograph that is made here
    """

    cold: ColdStart
    warm: tuple[ColdStart, ...]
    image: ImageTimes


@dataclass(frozen=True)
class StreamTimes:
    """Calls from several threads at once, of one crop each.

    crops: in each round, of all callers
    seconds: of each round, by the number of streams, which share the threads
    """

    engine: str
    threads: int
    crops: int
    seconds: dict[str, Seconds]


@dataclass(frozen=True)
class FullSizeReceipt:
    """What `bench_full_size.py` observed.

    report: of `drx bench`
    proofs: of each engine in it, as its bundle has them
    costs: of each engine; empty in older receipts
    streams: of an engine for OpenVINO; None for another
    """

    report: BenchReport
    proofs: dict[str, Proofs]
    costs: dict[str, EngineCosts] = field(default_factory=dict)
    streams: StreamTimes | None = None

    @property
    def command(self) -> str:
        """Repeats the measurement."""
        return self.report.command

    @property
    def machine(self) -> Machine:
        """What it was measured on."""
        return self.report.machine

    @property
    def source(self) -> Source:
        """The source that was measured."""
        return self.report.source

    @property
    def engines(self) -> dict[str, EngineDescription]:
        """The engines that were measured, by the names of their times."""
        return {ENGINE: self.report.bundle, **self.report.against}

    @property
    def failures(self) -> list[str]:
        """The proofs that an engine lacks or did not pass."""
        found = []
        for name, proofs in self.proofs.items():
            if proofs.parity is None or not proofs.parity.within_limits:
                found.append(f"parity of {name}")
            if proofs.invariance is None or not proofs.invariance.passed:
                found.append(f"batch invariance of {name}")
        return found


def summary(receipt: FullSizeReceipt) -> Iterator[Part]:
    """The one table of the README: one image by the released recipe and by our engines."""
    machine, (one, *_) = receipt.machine, receipt.report.batches
    yield (
        f"One image at full size (DeiT-III small, 384 px) on {machine.cores} cores of an "
        f"{machine.cpu}, {'no GPU' if not machine.gpus else 'a GPU'}, random weights:"
    )
    headings = ("", "ms (median)", "times the released recipe's speed", "MB")
    released = three_digits(1e3 * Summary.of(one.seconds[RELEASED]).p50)
    rows = [
        ("released recipe, in PyTorch", released, "1", "", ""),
        *(
            (f"drexperts, {shown_name(receipt, name)}", *_summary_cells(receipt, one, name))
            for name in slowest_first(receipt, one)
        ),
    ]
    yield Table((*headings, "SRCC with float32 PyTorch (95 %)"), rows)


def shown_name(receipt: FullSizeReceipt, name: str) -> str:
    """An engine as readers know it, such as "OpenVINO bf16"."""
    engine, searched = receipt.engines[name], receipt.proofs[name].searched
    library = LIBRARIES.get(engine.backend, engine.backend)
    return f"{library} {engine.precision}" + " (--precision auto)" * searched


def slowest_first(receipt: FullSizeReceipt, one: BatchTimes) -> list[str]:
    """The names of the engines that were timed."""
    timed = [name for name in receipt.engines if name in one.seconds]
    return sorted(timed, key=lambda name: -median(one.seconds[name]))


def _summary_cells(receipt: FullSizeReceipt, one: BatchTimes, name: str) -> tuple[str, ...]:
    parity = receipt.proofs[name].parity
    faster = Ratio.of(one.seconds[RELEASED], one.seconds[name])
    interval = None if parity is None else parity.srcc_interval
    between = "" if interval is None else f" ({interval.low:.4f}-{interval.high:.4f})"
    return (
        three_digits(1e3 * Summary.of(one.seconds[name]).p50),
        str(faster),
        f"{receipt.engines[name].bytes / 1e6:.0f}",
        "" if parity is None else f"{parity.srcc:.4f}{between}",
    )


def against_released(receipt: FullSizeReceipt) -> Iterator[Part]:
    """How many times faster than the released recipe everything is, within each round."""
    batches = [times for times in receipt.report.batches if RELEASED in times.seconds]
    if batches:
        headings = (
            "times the speed of the released recipe",
            *(f"batch {b.batch}" for b in batches),
        )
        rows = [
            (
                shown_name(receipt, name) if name in receipt.engines else name,
                *(str(Ratio.of(b.seconds[RELEASED], b.seconds[name])) for b in batches),
            )
            for name in batches[0].shown
            if name != RELEASED
        ]
        yield Table(headings, rows)


def engine_costs(receipt: FullSizeReceipt) -> Iterator[Part]:
    """The start of each engine, its memory, and an image."""
    headings = ("", "load s, nothing cached", "load s, cached", "first crop s", "resident MB")
    rows = [
        (
            shown_name(receipt, name),
            f"{found.cold.load_s:.2f}",
            f"{median(each.load_s for each in found.warm):.2f}",
            f"{median(each.first_inference_s for each in found.warm):.2f}",
            _megabytes([each.resident_bytes for each in found.warm]),
            f"{median(found.image.image_e2e):.2f}",
        )
        for name, found in receipt.costs.items()
    ]
    if rows:
        yield Table((*headings, "a 1024x768 JPEG to its Score, s"), rows)


def _megabytes(sizes: list[int | None]) -> str:
    known = [size for size in sizes if size is not None]
    return f"{median(known) / 1e6:.0f}" if known else ""


def streams(receipt: FullSizeReceipt) -> Iterator[Part]:
    """Several callers at once, in one stream and in several."""
    found = receipt.streams
    if found is not None:
        rows = [
            (
                f"{count} of {found.threads // int(count)} threads",
                three_digits(1e3 * Summary.of(times).p50 / found.crops),
            )
            for count, times in found.seconds.items()
        ]
        yield Table(("streams, two callers at once", "ms per crop"), rows)


def parts(receipt: FullSizeReceipt) -> Iterator[Part]:
    """Every variant, scenario, the start, memory, and what weakens the numbers."""
    report = receipt.report
    weights = "random weights" if report.weights == "random" else "trained weights"
    versions = report.machine.versions
    engines = {"": report.bundle, **report.against}
    shown = (
        f"{name} preset `{e.preset}`, {e.backend} {e.precision}, {e.bytes / 1e6:.0f} MB".strip()
        for name, e in engines.items()
    )
    session = report.bundle.session
    yield machine_line(report.machine, session, f"PyTorch {versions['torch']}", *shown, weights)
    headings = ("batch", "", "p50 ms", "p90 ms", "p99 ms", "times the engine")
    yield Table(headings, [row for times in report.batches for row in _rows(times)])
    yield tables.noise_floor(report)
    yield from against_released(receipt)
    yield from engine_costs(receipt)
    yield from streams(receipt)
    yield "MLPerf-style scenarios, from an image's bytes to its Score:"
    yield tables.scenarios(report)
    yield Table((), list(_costs(report)))
    yield f"Boundaries. {_joined(caveats.boundaries(report.bundle))}."
    yield from left_out(report.left_out)
    if weaknesses := caveats.warnings(report):
        first, rest = weaknesses[:SHOWN], weaknesses[SHOWN:]
        more = [f"and {len(rest)} more in the receipt"] if rest else []
        yield f"Warnings. {markdown_text('; '.join([*first, *more]))}."
    yield from (f"**Failed: {failure}.**" for failure in receipt.failures)


def _joined(named: dict[str, str]) -> str:
    return markdown_text("; ".join(f"{name}: {meaning}" for name, meaning in named.items()))


def _rows(times: BatchTimes) -> Iterator[tuple[str, ...]]:
    for name, seconds in times.shown.items():
        found, ratio = Summary.of(seconds), times.ratio(name)
        quantiles = (three_digits(1e3 * each) for each in (found.p50, found.p90, found.p99))
        yield str(times.batch), name, *quantiles, "" if ratio is None else str(ratio)


def _costs(report: BenchReport) -> Iterator[tuple[str, str]]:
    """What is measured once: an image, the start, memory."""
    image, cold = report.image, report.cold_start
    crops = f"{sum(image.crops) / len(image.crops):g} crops"
    source = "a photograph" if image.photographs else "a 1024x768 JPEG"
    yield f"{source} to {crops}", f"{1e3 * Summary.of(image.preprocess).p50:.1f} ms"
    yield f"and to its Score, {crops}", f"{Summary.of(image.image_e2e).p50:.2f} s"
    yield "import of the runtime", f"{cold.import_s:.2f} s"
    yield "load of the bundle", f"{cold.load_s:.2f} s"
    yield "first inference", f"{cold.first_inference_s:.2f} s"
    memory = {
        "resident after it": cold.resident_bytes,
        "peak memory, host": report.memory.host_peak_bytes,
        "peak memory, device": report.memory.device_bytes,
    }
    yield from ((name, f"{size / 1e6:.0f} MB") for name, size in memory.items() if size)
    joules = report.energy.joules_per_image
    if joules is not None:
        yield f"energy per image, {report.energy.source}", f"{joules:.2f} J"
