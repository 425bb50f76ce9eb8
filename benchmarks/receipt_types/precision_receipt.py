"""The receipt of `bench_precision.py`, and its tables."""

from collections.abc import Iterator
from dataclasses import dataclass

from drexperts.bench.timing import Ratio, Summary
from drexperts.benchmarks.receipt_types.answers import Answers, Reference
from drexperts.benchmarks.receipt_types.receipt import (
    WEIGHTS,
    Part,
    Receipt,
    Samples,
    machine_line,
    three_digits,
)
from drexperts.runtime.manifest import PrecisionTrial
from drexperts.runtime.proof import TOLERANCES
from drexperts.ui.markdown import Table

FLOAT, SMOOTHED, CHOSEN = "float32", "static, smoothed", "auto"


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """One way to eight bits.

    bytes: of the ONNX graph
    seconds: of a call with one image, one per round
    batch_drift: the largest difference between scores in a batch and alone, in units of the score
    """

    bytes: int
    answers: Answers
    seconds: Samples
    batch_drift: float


@dataclass(frozen=True, kw_only=True)
class PrecisionReceipt(Receipt):
    """What `bench_precision.py` observed.

    weights: "random", "demo" or "trained"
    layers: how many linear layers the blocks have
    islands: those of them that `auto` keeps in float32
    searched: what `auto` tried
    """

    weights: str
    preset: str
    reference: Reference
    layers: int
    islands: tuple[str, ...]
    searched: tuple[PrecisionTrial, ...]
    ways: dict[str, Quantised]

    def is_batch_invariant(self, way: Quantised) -> bool:
        """Whether scores are the same in any batch, but for rounding."""
        return self.drift_share(way) <= TOLERANCES["int8"]

    def drift_share(self, way: Quantised) -> float:
        """The drift between batches as a fraction of the span."""
        return way.batch_drift / self.reference.span

    @property
    def failures(self) -> list[str]:
        """What was asked of `auto` and does not hold."""
        chosen, found = self.ways[CHOSEN], []
        if not self.reference.keeps_limits(chosen.answers, "int8"):
            found.append("the limits of parity")
        if not self.is_batch_invariant(chosen):
            found.append("batch invariance")
        return found


def parts(receipt: PrecisionReceipt) -> Iterator[Part]:
    """A row per way, and what `--precision auto` tried before it chose."""
    images = len(receipt.reference.scores)
    said = f"{images} images; preset `{receipt.preset}`. {WEIGHTS[receipt.weights]}"
    yield machine_line(receipt.machine, said.rstrip().removesuffix("."))
    headings = ("", "MB", "p50 ms", "speed of float32", "SRCC (95 %)", "worst, % of the span")
    rows = [_cells(receipt, name) for name in receipt.ways]
    yield Table((*headings, "same in any batch"), rows)
    tried = ", ".join(
        f"{each.islands} ({'kept' if each.passed else 'failed'})" for each in receipt.searched
    )
    islands, layers = len(receipt.islands), receipt.layers
    yield f"`auto` keeps {islands} of {layers} linear layers in float32. Tried: {tried}."
    yield from (f"**`auto` failed: {failure}.**" for failure in receipt.failures)


def _cells(receipt: PrecisionReceipt, name: str) -> tuple[str, ...]:
    way, base = receipt.ways[name], receipt.ways[FLOAT]
    agreement = receipt.reference.agreement(way.answers)
    interval = agreement.srcc_interval
    between = "" if interval is None else f" ({interval.low:.4f}-{interval.high:.4f})"
    drift = f"no, {100 * receipt.drift_share(way):.2g} % of the span"
    return (
        name,
        f"{way.bytes / 1e6:.3g}",
        three_digits(1e3 * Summary.of(way.seconds).p50),
        "" if name == FLOAT else f"{1 / Ratio.of(way.seconds, base.seconds).p50:.2f}",
        f"{agreement.srcc:.4f}{between}",
        f"{100 * agreement.score_max:.2g}",
        "yes" if receipt.is_batch_invariant(way) else drift,
    )
