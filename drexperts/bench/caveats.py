"""What is shown beside a benchmark's numbers: what its boundaries mean, and what weakens it."""

from collections.abc import Iterator, Mapping

from drexperts.bench.reports import ENOUGH, BenchReport, EngineDescription, Seconds
from drexperts.bench.timing import Summary
from drexperts.runtime.manifest import TENSORRT_BACKENDS
from drexperts.runtime.selection import BACKENDS

BUSY = 0.25  # load average per core, before the run, above which others used the CPUs
STOLEN = 0.01  # of the CPUs' time
UNSTABLE = 0.1  # coefficient of variation above which a mean says little

Series = Mapping[str, Seconds]


def boundaries(engine: EngineDescription) -> dict[str, str]:
    """What the name of each boundary means for an engine."""
    copies, kernel = "", "not timed separately on a CPU: part of engine_gpu"
    library = "OpenVINO" if engine.backend == "openvino" else "ONNX Runtime"
    compute = f"on a CPU, the computation alone: {library} on bound tensors, nothing copied"
    if BACKENDS[engine.backend].device == "cuda":
        copies = ", with the copies to the GPU and back"
        kernel = "of single operations, by `python benchmarks/bench_kernels.py`"
        compute = (
            "CUDA's events around the engine's work, pixels and results on the GPU, no CUDA graph"
            if engine.backend in TENSORRT_BACKENDS
            else "the host's clock around ONNX Runtime, pixels and results on the GPU"
        )
    return {
        "kernel": kernel,
        "engine_gpu": compute,
        "engine_e2e": f"from uint8 crops on the host to float32 results on the host{copies}",
        "image_e2e": "from a file's bytes to a Score: decoding, cropping, the engine, averaging",
    }


def warnings(report: BenchReport) -> list[str]:
    """What weakens a report's numbers."""
    rounds, queries = _rounds(report), _queries(report)
    return [
        *_server(report),
        *_shared(report),
        *_unstable({**rounds, **queries, **_verdict(report)}),
        *_few(rounds, "samples", f"--repeats {ENOUGH}"),
        *_few(queries, "queries", "more --seconds"),
        *_throttled(report),
    ]


def _shared(report: BenchReport) -> Iterator[str]:
    """That others used the CPUs, too."""
    found = report.conditions
    load = None if found is None else found.load_before
    if load is not None and load > BUSY * report.machine.cores:
        yield f"other work ran on the machine: its load average was {load:.2f} before the run"
    if found is not None and found.steal is not None and found.steal > STOLEN:
        yield f"the host gave {found.steal:.1%} of the CPUs' time to other machines (steal)"


def _rounds(report: BenchReport) -> Series:
    """Samples of what is repeated as often as the user asked, by what they are of."""
    entries = [(entry, "") for entry in report.batches]
    entries += [(entry, " engine_gpu") for entry in report.engine_gpu]
    found = {
        f"{name}{boundary} batch {entry.batch}": times
        for entry, boundary in entries
        for name, times in entry.shown.items()
    }
    image = report.image
    return found | {"preprocess": image.preprocess, "image_e2e": image.image_e2e}


def _queries(report: BenchReport) -> Series:
    """Samples of a scenario's queries, as many as its time allowed."""
    found = report.scenarios
    streams = {"single_stream": found.single_stream, "multi_stream": found.multi_stream}
    return {name: times for name, times in streams.items() if times is not None}


def _verdict(report: BenchReport) -> Series:
    """Samples of the trial that the server's verdict rests on; its note speaks of their number."""
    server = report.scenarios.server
    best = None if server is None else server.best
    return {} if best is None else {f"server at {best.rate:.4g}/s": best.seconds}


def _server(report: BenchReport) -> Iterator[str]:
    server = report.scenarios.server
    if server is not None and server.note is not None:
        yield f"server: {server.note}"


def _unstable(series: Series) -> Iterator[str]:
    variation = {name: Summary.of(times).cv for name, times in series.items()}
    found = [f"{name} {cv:.0%}" for name, cv in variation.items() if cv > UNSTABLE]
    if found:
        yield (
            f"unstable, so that the mean says little: the coefficient of variation exceeds "
            f"{UNSTABLE:.0%} for {', '.join(found)}"
        )


def _few(series: Series, kind: str, remedy: str) -> Iterator[str]:
    counts = {name: len(times) for name, times in series.items()}
    few = [name for name, count in counts.items() if count < ENOUGH]
    if few:
        named = "" if len(few) == len(series) else f" for {', '.join(few)}"
        yield (
            f"the p99 of {min(counts.values())} {kind}{named} is little more than the slowest: "
            f"use {remedy} for one that means something"
        )


def _throttled(report: BenchReport) -> Iterator[str]:
    for number, states in enumerate(
        zip(report.machine.gpus or (), report.gpus_after, strict=False)
    ):
        reasons = [reason for state in states for reason in state.throttled or ()]
        if reasons:
            yield f"GPU {number} lowered its clocks: {', '.join(dict.fromkeys(reasons))}"
