"""The receipt of `gpu_model.py`, and its tables."""

from collections.abc import Iterator
from dataclasses import dataclass

from drexperts.bench.timing import Ratio, Summary
from drexperts.benchmarks.receipt_types.answers import Answers, Reference
from drexperts.benchmarks.receipt_types.receipt import (
    GpuStates,
    Part,
    Receipt,
    Samples,
    left_out,
    machine_line,
    require_gpu,
    three_digits,
)
from drexperts.runtime.proof import TOLERANCES, invariance_limits, within
from drexperts.ui.markdown import Table

DENSE, REDUCED, FOLDED = "dense", "reduced", "folded"
AGAIN = "first again"  # the first variant's second turn in a round, which shows the noise
HEAD = "head"  # in the place of a form: what follows the encoders in the reduced form


@dataclass(frozen=True)
class BatchDrift:
    """How far the same crops in batches are from what they are compared with.

    against: "each alone", or "the same batch in order" for a program of one batch size
    batches: the sizes that were tried
    worst: of each output, by the names of `BatchInvariance`
    """

    against: str
    batches: tuple[int, ...]
    worst: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class VariantCheck:
    """What one variant of the model did at one batch size.

    answers: None if some output is not finite, or `error` came first
    repeatable: whether several runs agreed bit by bit
    error: what it raised
    """

    precision: str
    batch: int
    variant: str
    answers: Answers | None = None
    repeatable: bool | None = None
    drift: BatchDrift | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """Such as "fp16, B64, reduced, eager"."""
        return f"{self.precision}, B{self.batch}, {self.variant}"

    @property
    def is_dense(self) -> bool:
        """Whether it is the form that the paper writes, of which only parity is asked."""
        return self.variant.startswith(DENSE)

    def mistakes(self, reference: Reference) -> list[str]:
        """What is wrong."""
        if self.error is not None:
            return [self.error]
        if self.answers is None or self.drift is None:
            return ["its outputs are not finite"]
        found = []
        if not reference.keeps_limits(self.answers, self.precision):
            found.append("parity with float32")
        if not self.is_dense and not self.repeatable:
            found.append("two runs differ")
        limits = invariance_limits(TOLERANCES[self.precision])
        if not self.is_dense and not within(self.drift.worst, limits):
            found.append("batch invariance")
        return found


@dataclass(frozen=True)
class BatchRow:
    """All variants that were timed with one batch size.

    seconds: of a call, one per round, of `AGAIN` and of heads too
    made: seconds that making a program took; those made for another batch size are not named
    peak_bytes: device memory that a call takes beyond what was taken before; None on a CPU
    refused: why the others were not timed
    """

    precision: str
    batch: int
    seconds: dict[str, Samples]
    made: dict[str, float]
    peak_bytes: dict[str, int | None]
    refused: dict[str, str]

    @property
    def variants(self) -> dict[str, Samples]:
        """The seconds of the variants alone, the first of which the others are divided by."""
        return {n: s for n, s in self.seconds.items() if n != AGAIN and not n.startswith(HEAD)}

    def ratio(self, name: str) -> Ratio | None:
        """The time of a variant divided by that of the first; None for the first itself."""
        first, *_ = self.variants
        return None if name == first else Ratio.of(self.seconds[name], self.seconds[first])

    def head_shares(self) -> dict[str, Ratio]:
        """The share of the head in the time of each variant whose head was timed."""
        heads = {name: f"{HEAD}{name.removeprefix(REDUCED)}" for name in self.variants}
        return {
            name: Ratio.of(self.seconds[head], self.seconds[name])
            for name, head in heads.items()
            if head in self.seconds
        }


@dataclass(frozen=True, kw_only=True)
class ModelReceipt(Receipt):
    """What `gpu_model.py` observed.

    trial: the script on a CPU, so that its times say nothing of a GPU
    complete: whether the run was finished
    weights: "random", or the SHA-256 of the checkpoint
    images: what the images of the reference are
    boundary: what is timed
    """

    trial: bool
    complete: bool
    device: str | None
    cuda: str | None
    preset: str
    weights: str
    images: str
    boundary: str
    reference: Reference
    checks: tuple[VariantCheck, ...]
    rows: tuple[BatchRow, ...]
    clocks: tuple[GpuStates, ...]
    left_out: dict[str, str]

    @property
    def failures(self) -> dict[str, list[str]]:
        """What is wrong, by the labels of the checks that failed."""
        found = {check.label: check.mistakes(self.reference) for check in self.checks}
        return {label: mistakes for label, mistakes in found.items() if mistakes}

    @property
    def checked_ours(self) -> bool:
        """Whether any form but the dense one was checked."""
        return not all(check.is_dense for check in self.checks)


def parts(receipt: ModelReceipt) -> Iterator[Part]:
    """The time of every variant, and how far it is from float32."""
    require_gpu(receipt.trial, receipt.device)
    yield machine_line(receipt.machine, f"PyTorch {receipt.machine.versions['torch']}")
    weights = "random weights" if receipt.weights == "random" else "trained weights"
    yield f"The whole model, preset `{receipt.preset}`, {weights}; {receipt.boundary}."
    if not receipt.complete:
        yield "The run was stopped before its end."
    headings = ("batch", "", "p50 ms", "p99 ms", "images/s", "times the first")
    rows = [_cells(receipt, row, name) for row in receipt.rows for name in row.variants]
    yield Table((*headings, "largest difference, %", "SRCC"), rows)
    yield from head_lines(receipt.rows)
    for label, mistakes in receipt.failures.items():
        yield f"**Failed: {label}: {'; '.join(mistakes)}.**"
    yield from left_out(receipt.left_out)


def head_lines(rows: tuple[BatchRow, ...]) -> Iterator[str]:
    """How much of the time the expert head takes."""
    for row in rows:
        for name, share in row.head_shares().items():
            yield f"The head takes {share.p50:.1%} of {name} with batch {row.batch}."


def _cells(receipt: ModelReceipt, row: BatchRow, name: str) -> tuple[str, ...]:
    label = f"{row.precision}, B{row.batch}, {name}"
    (answers,) = [check.answers for check in receipt.checks if check.label == label]
    assert answers is not None  # else it had not been timed
    agreement = receipt.reference.agreement(answers)
    times, ratio = Summary.of(row.seconds[name]), row.ratio(name)
    return (
        str(row.batch),
        f"{row.precision}, {name}",
        three_digits(1e3 * times.p50),
        three_digits(1e3 * times.p99),
        three_digits(row.batch / times.p50),
        "" if ratio is None else str(ratio),
        f"{100 * agreement.score_max:.2g}",
        f"{agreement.srcc:.5f}",
    )
