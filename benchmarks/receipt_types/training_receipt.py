"""The tables of a training step: of the report of `drx bench --train`."""

from collections.abc import Iterator

from drexperts.bench.reports import OURS, TrainingReport
from drexperts.bench.timing import Summary
from drexperts.benchmarks.receipt_types.receipt import Part, machine_line
from drexperts.ui.markdown import Table

FLOAT, DENSE, RELEASED = "ours, fp32", "dense", "released"


def parts(report: TrainingReport) -> Iterator[Part]:
    """Every variant, and what our step consists of."""
    what = f"preset `{report.preset}`, {report.batch} crops"
    yield machine_line(report.machine, f"PyTorch {report.machine.versions['torch']}, {what}")
    headings = ("", "type", "p50 s", "p90 s", "times ours", "peak MB", "times ours")
    yield Table(headings, [_cells(report, name) for name in report.variants])
    medians = {name: Summary.of(seconds).p50 for name, seconds in report.parts.items()}
    whole = sum(medians.values())
    split = ", ".join(f"{name} {part / whole:.0%}" for name, part in medians.items())
    p50 = {name: Summary.of(each.seconds).p50 for name, each in report.variants.items()}
    data = Summary.of(report.data).p50 / p50[OURS]
    yield f"Of our step: {split}. Making a batch of JPEGs takes one core {data:.0%} of it."
    if FLOAT in p50:
        released, dense = (p50[name] / p50[FLOAT] for name in (RELEASED, DENSE))
        yield (
            f"In float32, too, ours is {released:.2f} times as fast as `released` and {dense:.2f} "
            "times as `dense`, by their medians."
        )
    if not report.losses_agree:
        yield "**Failed: the first losses of the reduced and the dense form differ.**"


def _cells(report: TrainingReport, name: str) -> tuple[str, ...]:
    variant, ours = report.variants[name], report.variants[OURS]
    times, peak, our_peak = Summary.of(variant.seconds), variant.peak_bytes, ours.peak_bytes
    return (
        name,
        variant.amp,
        f"{times.p50:.2f}",
        f"{times.p90:.2f}",
        str(report.ratio(name) or ""),
        "" if peak is None else f"{peak / 1e6:.0f}",
        f"{peak / our_peak:.2f}" if peak and our_peak and name != OURS else "",
    )
