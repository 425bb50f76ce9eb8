"""Time the kernels against every other implementation, once all of them are right.

    python benchmarks/bench_kernels.py [--minutes 8] [--only WORD ...] [--without WORD ...]
        [--receipt FILE] [--json]

On a CUDA device: pooling, dense attention and the model's module, forward and training step, hot
and cold L2, with and without a CUDA graph. Elsewhere: the module's CLS row against its dense form.
Correctness is checked first, for at most half of the time; what this did not reach is not timed.
Exit status 1 if a check fails, and then nothing is timed. With --quick it is a trial on tiny sizes.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import gpus, this_machine, this_source
from drexperts.bench.timing import Summary
from drexperts.benchmarks.operations.bounds import PEAKS, bound
from drexperts.benchmarks.operations.check import checked, refusals
from drexperts.benchmarks.operations.comparisons import (
    Call,
    Comparison,
    Problem,
    comparison_of,
    forward_step,
    problems,
    training_step,
)
from drexperts.benchmarks.operations.timing import Cpu, Gpu, Mode, Run, measured
from drexperts.benchmarks.receipt_types.kernel_receipt import Check, KernelReceipt, Row
from drexperts.benchmarks.receipt_types.receipt import GpuStates, add_receipt_option

ROUNDS, QUICK_ROUNDS = 100, 3
CHECKING = 0.5  # of the time
LEAST = 2.0  # seconds per row, so that too little time leaves out the last rows
PACKAGES = (
    "drexperts.kernels",
    "drexperts.model.experts",
    "drexperts.model.backbones",
    "drexperts.model.config",
)
LATE = "no time was left to time it"
SHOWN = 160  # characters of a reason; the receipt has all of it

Save = Callable[[KernelReceipt], None]


@dataclass(frozen=True)
class Budget:
    """The time that a run may take."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    start: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", self.clock())

    def left(self, share: float = 1.0) -> float:
        """Seconds until that share of the time is over, negative after."""
        return self.start + share * self.seconds - self.clock()


@dataclass(frozen=True)
class Selection:
    """Which problems and implementations are measured.

    only: parts of the labels of problems
    without: parts of the names of implementations
    quick: tiny sizes and few rounds
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    quick: bool = False

    def command(self, minutes: float) -> str:
        """The command that repeats the measurement."""
        words = ["python", "benchmarks/bench_kernels.py", "--minutes", f"{minutes:g}"]
        words += ["--only", *self.only] if self.only else []
        words += ["--without", *self.without] if self.without else []
        return shlex.join(words + ["--quick"] * self.quick)

    def problems(self, cuda: bool) -> list[Problem]:
        """The problems, the most informative first."""
        chosen = [
            problem
            for problem in problems(cuda)
            if not self.only or any(word in problem.label for word in self.only)
        ]
        return list(dict.fromkeys(map(_shrunk, chosen))) if self.quick else chosen

    def comparison(self, problem: Problem, device: torch.device) -> Comparison:
        """The comparison of the implementations that are wanted."""
        if device.type == "cuda":
            torch.compiler.reset()  # it stops compiling a function anew after a few shapes
        found = comparison_of(problem, device)
        kept = (i for i in found.implementations if not any(w in i.name for w in self.without))
        return replace(found, implementations=tuple(kept))


def _shrunk(problem: Problem) -> Problem:
    return replace(problem, batch=min(2, problem.batch), tokens=17, width=64)


class KernelBenchmark:
    """One run: the checks, then the rows.

    `save` is called with the receipt after every problem, so that a killed run leaves one.
    """

    def __init__(self, selection: Selection, budget: Budget, save: Save = lambda _: None) -> None:
        self.selection, self.budget, self.save = selection, budget, save
        self.machine, self.source = this_machine(torch.get_num_threads()), this_source(*PACKAGES)
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.timer: Cpu | Gpu = Gpu() if self.cuda else Cpu()
        self.ceilings = self.timer.ceilings()
        self.floors = floors(self.timer, self.device)
        self.problems = selection.problems(self.cuda)
        self.rows_left = len(self.problems) * len(self.timer.modes)
        self.checks: dict[str, tuple[Check, ...]] = {}
        self.rows: list[Row] = []
        self.clocks: list[GpuStates] = []
        on_gpu = [] if self.cuda else problems(cuda=True)
        self.left_out = {problem.label: "no CUDA device" for problem in on_gpu}

    def receipt(self) -> KernelReceipt:
        """What was observed so far."""
        return KernelReceipt(
            command=self.selection.command(self.budget.seconds / 60),
            machine=self.machine,
            source=self.source,
            trial=self.selection.quick,
            device=torch.cuda.get_device_name() if self.cuda else None,
            cuda=torch.version.cuda,
            ceilings=self.ceilings,
            floors=self.floors,
            checks=self.checks,
            rows=tuple(self.rows),
            clocks=tuple(self.clocks),
            left_out=self.left_out,
        )

    def run(self) -> KernelReceipt:
        """The receipt, which has no rows if a check failed."""
        for problem in self.problems:
            self._check(problem)
        receipt = self.receipt()
        self.save(receipt)
        if receipt.is_correct:
            for problem in self.problems:
                self._time(problem)
                self.save(self.receipt())
        return self.receipt()

    def _check(self, problem: Problem) -> None:
        if self.budget.left(CHECKING) <= 0:
            self.left_out[problem.label] = "no time was left to check it"
            return
        say(f"checking {problem.label}")
        with refusals(self.left_out, problem.label):
            self.checks[problem.label] = checked(self.selection.comparison(problem, self.device))

    def _time(self, problem: Problem) -> None:
        """All rows of a problem that was checked, as far as time allows."""
        if problem.label not in self.checks or self.budget.left() <= 0:
            self.rows_left -= len(self.timer.modes)
            self.left_out.setdefault(problem.label, LATE)
            return
        with refusals(self.left_out, problem.label):
            comparison = self.selection.comparison(problem, self.device)
            reasons = {c.implementation: c.refused for c in self.checks[problem.label]}
            wanted = [i for i in comparison.implementations if "forward" not in reasons[i.name]]
            calls = {each.name: each.build() for each in wanted}
            before = gpus()
            for mode in self.timer.modes:
                refused = {n: r[mode.direction] for n, r in reasons.items() if mode.direction in r}
                self._row(comparison, calls, mode, refused)
            if before:
                self.clocks.append(GpuStates(problem.label, before, gpus()))

    def _row(
        self, comparison: Comparison, calls: dict[str, Call], mode: Mode, refused: dict[str, str]
    ) -> None:
        problem = comparison.problem
        label = f"{problem.label}, {mode.label}"
        seconds = max(LEAST, self.budget.left() / self.rows_left)
        self.rows_left -= 1
        if self.budget.left() <= 0:
            self.left_out[label] = LATE
            return
        say(f"timing {label}")
        able = {name: call for name, call in calls.items() if name not in refused}
        taken = measured(
            prepared(comparison, able, mode, self.timer, refused),
            partial(self.timer.sample, mode=mode),
            QUICK_ROUNDS if self.selection.quick else ROUNDS,
            seconds,
            partial(refusals, refused),
        )
        samples = {name: tuple(times) for name, times in taken.items()}
        self.rows.append(Row(problem.label, mode.label, samples, refused))
        print("\n".join(self._lines(self.rows[-1], problem, mode)), flush=True)

    def _lines(self, row: Row, problem: Problem, mode: Mode) -> Iterator[str]:
        """A row for the terminal."""
        peaks = PEAKS.get(torch.cuda.get_device_name(), self.ceilings) if self.cuda else None
        least = bound(problem.operation, problem.form, problem.shape, mode.training, peaks)
        limits = f"bound {_short(least)}, " if least else ""
        floor = _short(self.floors[row.mode])
        yield f"\n{row.problem}, {row.mode} ({limits}timing itself {floor})"
        headings = "".join(f"{name:>11}" for name in ("p20", "p50", "p80", "p99"))
        yield f"  {'':30}{headings} rounds  of bound  of ours"
        ratios = self.receipt().ratios(row)
        for name, taken in row.seconds.items():
            times = Summary.of(taken)
            quantiles = (times.p20, times.p50, times.p80, times.p99)
            shown = "".join(f"{_short(each):>11}" for each in quantiles)
            share = f"{least / times.p50:.1%}" if least else ""
            yield f"  {name:30}{shown}{len(taken):>7}  {share:>8}  {ratios.get(name, '')}"
        yield from (f"  {name:30} {why[:SHOWN]}" for name, why in row.refused.items())


def floors(timer: Cpu | Gpu, device: torch.device) -> dict[str, float]:
    """Seconds that timing takes by itself, in each mode: the median for the write of one number."""
    number = torch.zeros(1, device=device)
    found = {}
    for mode in timer.modes:
        timer.begin()
        run, calls = timer.prepared(lambda: [number.fill_(1)], mode)
        found[mode.label] = float(np.median([timer.sample(run, mode) for _ in range(20)])) / calls
    return found


def prepared(
    comparison: Comparison,
    calls: dict[str, Call],
    mode: Mode,
    timer: Cpu | Gpu,
    refused: dict[str, str],
) -> dict[str, tuple[Run, int]]:
    """What to time, with the calls that each makes. Notes in `refused` what fails."""
    with torch.no_grad():
        gradients = [torch.randn_like(x) for x in comparison.exact(**comparison.operands)]
    timer.begin()
    runs = {}
    for name, call in calls.items():
        forward = forward_step(call, comparison)
        step = training_step(call, comparison, gradients) if mode.training else forward
        with refusals(refused, name):
            runs[name] = timer.prepared(step, mode)
    return runs


def verdict(receipt: KernelReceipt) -> Iterator[str]:
    """The lines after the rows: what is wrong, what is missing, and where ours is slower."""
    yield f"{receipt.device or receipt.machine.cpu}; {receipt.machine.versions}"
    for problem, checks in receipt.checks.items():
        for check in checks:
            if check.mistakes:
                yield f"WRONG {problem}, {check.implementation}: {'; '.join(check.mistakes)}"
    yield from (f"not run: {label}: {why[:SHOWN]}" for label, why in receipt.left_out.items())
    for row, name in receipt.slower():
        yield f"slower than {name}: {row.problem}, {row.mode}"
    if receipt.is_correct:
        yield "all checks passed"
    else:
        yield "a check FAILED: no times" if receipt.checks else "nothing was checked: no times"


def summary(receipt: KernelReceipt) -> str:
    """The medians on one line of JSON."""
    rows = [
        [row.problem, row.mode, {n: Summary.of(times).p50 for n, times in row.seconds.items()}]
        for row in receipt.rows
    ]
    machine, gates = asdict(receipt.machine), {"correct": receipt.is_correct}
    return json.dumps({"gates": gates, "machine": machine, "p50": rows})


def _short(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} us" if seconds < 1e-2 else f"{1e3 * seconds:.1f} ms"


def say(line: str) -> None:
    """Progress, apart from the results."""
    print(line, file=sys.stderr, flush=True)


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="in all (default: 8)")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="WORD", help="problems whose label has a WORD"
    )
    parser.add_argument(
        "--without", nargs="+", default=(), metavar="WORD", help="no implementation with a WORD"
    )
    parser.add_argument("--quick", action="store_true", help="a trial of the script on tiny sizes")
    parser.add_argument("--json", action="store_true", help="the medians as JSON on the last line")
    add_receipt_option(parser)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    selection = Selection(tuple(options.only), tuple(options.without), options.quick)
    path: Path | None = options.receipt
    save: Save = partial(write_json, path=path) if path else lambda _: None
    receipt = KernelBenchmark(selection, Budget(60 * options.minutes), save).run()
    print("\n".join(verdict(receipt)))
    if options.json:
        print(summary(receipt))
    return 0 if receipt.is_correct else 1


if __name__ == "__main__":
    sys.exit(main())
