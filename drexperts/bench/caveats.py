"""What is said beside a benchmark's numbers: what its boundaries are here, and what weakens it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from drexperts.bench.tables import best_trial, contenders, text
from drexperts.bench.timing import UNSTABLE
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.selection import BACKENDS

ENOUGH = 100  # samples below which a p99 is little more than the slowest

# Bits of nvidia-smi's clocks_throttle_reasons.active, as NVML defines them.
_THROTTLED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
}

Series = Mapping[str, Mapping[str, Any]]
Cards = Sequence[Mapping[str, str]]


def boundaries(scorer: Scorer) -> dict[str, str]:
    """What the name of each boundary stands for with this engine."""
    copies, kernel = "", "on a CPU none is timed apart: folded into engine_gpu"
    compute = "on a CPU the compute alone: ONNX Runtime on bound tensors, nothing copied"
    if BACKENDS[scorer.engine.backend].device == "cuda":
        copies = ", with the copies to the GPU and back"
        kernel = "of single operations, by `python benchmarks/bench_kernels.py`"
        compute = (
            "CUDA's events around the engine's work, pixels and results on the GPU, no CUDA graph"
            if scorer.engine.plan is not None
            else "the host's clock around ONNX Runtime, pixels and results on the GPU"
        )
    return {
        "kernel": kernel,
        "engine_gpu": compute,
        "engine_e2e": f"uint8 crops of the host in, float32 results on the host out{copies}",
        "image_e2e": "a file's bytes in, a Score out: decoding, cropping, the engine, averaging",
    }


def warnings(report: Mapping[str, Any], before: Cards, after: Cards) -> list[str]:
    """What weakens a report's numbers.

    before, after: `provenance.gpu_cards` at both ends of the measurement
    """
    rounds, queries = _rounds(report), _queries(report)
    return [
        *_server(report),
        *_unstable(rounds | queries | _verdict(report)),
        *_few(rounds, "samples", f"--repeats {ENOUGH}"),
        *_few(queries, "queries", "more --seconds"),
        *_throttled(before, after),
    ]


def _rounds(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Statistics of what is repeated as often as was asked for, by what they are of."""
    entries = [(e, "") for e in report["batches"]]
    entries += [(e, " engine_gpu") for e in report["engine_gpu"]]
    found = {
        f"{name}{boundary} batch {entry['batch']}": times
        for entry, boundary in entries
        for name, times in contenders(entry).items()
    }
    return found | {name: report["image"][name] for name in ("preprocess", "image_e2e")}


def _queries(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Statistics of a scenario's queries, as many as its time allowed."""
    streams = ("single_stream", "multi_stream")
    return {name: report["scenarios"][name] for name in streams if name in report["scenarios"]}


def _verdict(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Statistics of the trial that the server's verdict rests on; its note speaks of its count."""
    server = report["scenarios"].get("server")
    best = None if server is None else best_trial(server)
    return {} if best is None else {f"server at {text(best['rate'])}/s": best["latency"]}


def _server(report: Mapping[str, Any]) -> Iterator[str]:
    server = report["scenarios"].get("server")
    if server is not None and server["note"] is not None:
        yield f"server: {server['note']}"


def _unstable(series: Series) -> Iterator[str]:
    found = [
        f"{name} {times['cv']:.0%}" for name, times in series.items() if times["cv"] > UNSTABLE
    ]
    if found:
        yield (
            f"unstable, their mean says little: coefficient of variation above {UNSTABLE:.0%} of "
            + ", ".join(found)
        )


def _few(series: Series, kind: str, remedy: str) -> Iterator[str]:
    counts = {name: len(times["samples"]) for name, times in series.items()}
    few = [name for name, count in counts.items() if count < ENOUGH]
    if few:
        fewest = min(counts.values())
        named = "" if len(few) == len(series) else f", of {', '.join(few)},"
        yield (
            f"p99 of {fewest} {kind}{named} is little more than the slowest: {remedy} for one "
            "that says something"
        )


def _throttled(before: Cards, after: Cards) -> Iterator[str]:
    for number, cards in enumerate(zip(before, after, strict=False)):
        active = 0
        for card in cards:
            active |= _bits(card.get("clocks_throttle_reasons.active", ""))
        reasons = [reason for bit, reason in _THROTTLED.items() if active & bit]
        if reasons:
            yield f"GPU {number} lowered its clocks: {', '.join(reasons)}"


def _bits(text: str) -> int:
    """Such as 0x0000000000000001; none of what the driver does not report."""
    try:
        return int(text, 16)
    except ValueError:
        return 0
