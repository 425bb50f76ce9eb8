"""The receipt of `bench_kernels.py`, and its tables."""

from collections.abc import Iterator
from dataclasses import dataclass

from drexperts.bench.timing import Ratio, Summary
from drexperts.benchmarks.operations.bounds import Peaks
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
from drexperts.ui.markdown import Table

OURS, EAGER, BASELINE = "ours", "eager", "baseline"
SHOWN = "/B64/N577/float16"  # the problems that a page shows of a GPU
STEPS = {"forward": "forward", "forward+backward": "training step"}


@dataclass(frozen=True)
class Check:
    """How one implementation compares with float64 and with itself.

    role: ours; eager, whose error in 16 bits is the yardstick for ours; or baseline
    errors: relative RMS errors by name of the result or gradient; None for one that is not finite
    limits: what the errors were held to; an error without a limit is allowed anything
    repeatable: whether several runs agreed bit by bit; None if none ended
    refused: why it did not run, by direction
    broken: it raised an error that is not a refusal
    """

    implementation: str
    role: str
    errors: dict[str, float | None]
    limits: dict[str, float]
    repeatable: bool | None
    refused: dict[str, str]
    broken: bool

    @property
    def mistakes(self) -> tuple[str, ...]:
        """What is wrong. A refusal is not; what is ours must also repeat itself and not break."""
        found = [
            f"{name} is off by {_shown(self.errors[name])}, more than {limit:.1e}"
            for name, limit in self.limits.items()
            if not _within(self.errors[name], limit)
        ]
        if self.role == OURS and self.repeatable is False:
            found.append("two runs differ")
        if self.role == OURS and self.broken:
            found.append(f"it broke, {self.refused}")
        return tuple(found)


def _within(error: float | None, limit: float) -> bool:
    return error is not None and error <= limit


def _shown(error: float | None) -> str:
    return "a value that is not finite" if error is None else f"{error:.1e}"


@dataclass(frozen=True)
class Row:
    """One problem timed in one mode.

    seconds: of a call of each implementation, one per round
    refused: why the others were not timed
    """

    problem: str
    mode: str
    seconds: dict[str, Samples]
    refused: dict[str, str]

    @property
    def step(self) -> str:
        """What was timed: the forward pass or a training step."""
        return STEPS[self.mode.split(",")[0]]

    def ratios(self, to: str) -> dict[str, Ratio]:
        """The times of the others divided by those of one implementation."""
        if to not in self.seconds:
            return {}
        base = self.seconds[to]
        return {n: Ratio.of(times, base) for n, times in self.seconds.items() if n != to}


@dataclass(frozen=True, kw_only=True)
class KernelReceipt(Receipt):
    """What `bench_kernels.py` observed.

    trial: on tiny sizes, so that its times say nothing
    floors: seconds that timing itself takes, by mode
    checks: by problem
    rows: empty where any check found a mistake
    """

    trial: bool
    device: str | None
    cuda: str | None
    ceilings: Peaks | None
    floors: dict[str, float]
    checks: dict[str, tuple[Check, ...]]
    rows: tuple[Row, ...]
    clocks: tuple[GpuStates, ...]
    left_out: dict[str, str]

    @property
    def is_correct(self) -> bool:
        """Whether anything was checked, and nothing was found wrong."""
        checks = [check for found in self.checks.values() for check in found]
        return bool(checks) and not any(check.mistakes for check in checks)

    def ours(self, problem: str) -> list[str]:
        """Our implementations of a problem, the main one first."""
        return [check.implementation for check in self.checks[problem] if check.role == OURS]

    def ratios(self, row: Row) -> dict[str, Ratio]:
        """The times of a row divided by those of our main implementation, if it was measured."""
        ours = self.ours(row.problem)
        return row.ratios(ours[0]) if ours else {}

    def slower(self) -> Iterator[tuple[Row, str]]:
        """The rows in which ours is slower than another implementation, and which."""
        for row in self.rows:
            ours = self.ours(row.problem)
            for name, ratio in self.ratios(row).items():
                if ratio.p50 < 1 and name not in ours:
                    yield row, name


def cpu_parts(receipt: KernelReceipt) -> Iterator[Part]:
    """The expert head's CLS row against its dense form."""
    torch = receipt.machine.versions["torch"]
    yield machine_line(receipt.machine, f"PyTorch {torch}, float32, preset `official`")
    headings = ("images", "", "CLS row, p50 ms", "all rows, p50 ms", "ratio")
    yield Table(headings, [_cpu_cells(row) for row in receipt.rows])


def _cpu_cells(row: Row) -> tuple[str, ...]:
    images = row.problem.split("/")[2].removeprefix("B")
    ours, dense = (1e3 * Summary.of(row.seconds[n]).p50 for n in ("CLS row", "dense eager"))
    ratio = row.ratios("CLS row")["dense eager"]
    shown = f"{ratio.p50:.0f} ({ratio.p20:.0f}-{ratio.p80:.0f})"
    return images, row.step, f"{ours:.1f}", f"{dense:.0f}", shown


def gpu_parts(receipt: KernelReceipt) -> Iterator[Part]:
    """Ours against the fastest other implementation, on the largest problems."""
    require_gpu(receipt.trial, receipt.device)
    yield machine_line(receipt.machine, f"PyTorch {receipt.machine.versions['torch']}")
    if not receipt.is_correct:
        yield "**The check of correctness failed: there are no times.**"
    headings = ("problem", "", "ours, p50 us", "fastest other", "p50 us", "times ours")
    rows = [
        _gpu_cells(receipt, row)
        for row in receipt.rows
        if row.problem.endswith(SHOWN) and row.mode.endswith("hot, graph")
    ]
    yield Table(headings, rows)
    yield from left_out(receipt.left_out)


def _gpu_cells(receipt: KernelReceipt, row: Row) -> tuple[str, ...]:
    p50 = {name: 1e6 * Summary.of(times).p50 for name, times in row.seconds.items()}
    ours = receipt.ours(row.problem)
    timed = [three_digits(p50[name]) for name in ours[:1] if name in p50]
    shown = (row.problem, row.step, *(timed or ["not timed"]))
    others = sorted((time, name) for name, time in p50.items() if name not in ours)
    if not others:
        return *shown, "", "", ""
    time, name = others[0]
    return *shown, name, three_digits(time), str(receipt.ratios(row).get(name, ""))
