"""Time the kernels against every other way to compute the same, once all of them are right.

    python benchmarks/bench_kernels.py [--minutes 8] [--only WORD ...] [--without WORD ...]
        [--receipt FILE] [--json]

On a CUDA device: pooling, dense attention and the model's module, forward and training step, hot
and cold L2, with and without a CUDA graph. Elsewhere: the module's CLS row against its dense form.
The gate runs first, for at most half the time; what it did not reach is not timed. Exit status 1
is a red gate, and then there are no times. A receipt of `--quick` is of kind `kernels-trial`.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drexperts.bench.provenance import gpu_cards, head
from drexperts.bench.timing import ratio, ratio_text, statistics

# PYTHONSAFEPATH, which this repository asks for, leaves a script's own folder out.
from drexperts.benchmarks.kernel_baselines import (
    OURS,
    Call,
    Problem,
    Task,
    forward_step,
    problems,
    task_of,
    training_step,
)
from drexperts.benchmarks.kernel_bounds import PEAKS, bound
from drexperts.benchmarks.kernel_gate import judge, refusals
from drexperts.benchmarks.kernel_timing import Cpu, Gpu, Mode, Run, measured
from drexperts.runtime.files import written_whole

ROUNDS, QUICK_ROUNDS = 100, 3
GATE_SHARE = 0.5  # of the time
LEAST = (
    2.0  # seconds a row is given, so that with little time it is the last rows that are left out
)

MODULES = (
    "drexperts.kernels",
    "drexperts.model.experts",
    "drexperts.model.backbones",
    "drexperts.model.config",
)
LATE = "no time was left to time it"
SHOWN = 160  # characters of a reason; the receipt has it whole

Report = dict[str, Any]
Save = Callable[[Report], None]


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
class Settings:
    """What of the plan is run. Words are parts of a problem's label, or of a contender's name."""

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    quick: bool = False

    def command(self, minutes: float) -> str:
        """What makes the same report again."""
        words = ["python", "benchmarks/bench_kernels.py", "--minutes", f"{minutes:g}"]
        words += ["--only", *self.only] if self.only else []
        words += ["--without", *self.without] if self.without else []
        return shlex.join(words + ["--quick"] * self.quick)

    def plan(self, cuda: bool) -> list[Problem]:
        """The problems, the most telling first."""
        chosen = [
            problem
            for problem in problems(cuda)
            if not self.only or any(word in problem.label for word in self.only)
        ]
        return list(dict.fromkeys(map(_shrunk, chosen))) if self.quick else chosen

    def task(self, problem: Problem, device: torch.device) -> Task:
        """The problem's task without the contenders that are not wanted."""
        if device.type == "cuda":
            torch.compiler.reset()  # it stops compiling a function anew after a few shapes
        task = task_of(problem, device)
        kept = (c for c in task.contenders if not any(word in c.name for word in self.without))
        return replace(task, contenders=tuple(kept))


def _shrunk(problem: Problem) -> Problem:
    return replace(problem, batch=min(2, problem.batch), tokens=17, width=64)


class Bench:
    """One run: the gate, then the rows, noted in `report` as they come.

    `save` is called with the report after every problem, so that a killed run leaves a receipt.
    """

    def __init__(self, settings: Settings, budget: Budget, save: Save = lambda _: None) -> None:
        self.settings, self.budget, self.save = settings, budget, save
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        self.timer = Gpu() if cuda else Cpu()
        ceilings = self.timer.ceilings()
        self.peaks = PEAKS.get(torch.cuda.get_device_name(), ceilings) if cuda else None
        self.plan = settings.plan(cuda)
        self.rows_left = len(self.plan) * len(self.timer.modes)
        self.left_out = {} if cuda else {p.label: "no CUDA device" for p in problems(cuda=True)}
        command = settings.command(budget.seconds / 60)
        kind = "kernels-trial" if settings.quick else "kernels"
        self.report: Report = {
            **head(kind, command, MODULES, torch.get_num_threads()),
            "device": torch.cuda.get_device_name() if cuda else None,
            "cuda": torch.version.cuda,
            "settings": vars(settings) | {"seconds": budget.seconds},
            "peaks": vars(self.peaks) if self.peaks else None,
            "ceilings": vars(ceilings) if ceilings else None,
            "floors": floors(self.timer, self.device),
            "gates": {"correct": False},
            "verdicts": {},
            "rows": [],
            "clocks": [],
            "left_out": self.left_out,
        }

    def run(self) -> Report:
        """A JSON-ready report; times in seconds. Without rows where the gate is red."""
        for problem in self.plan:
            self._check(problem)
        verdicts = [v for found in self.report["verdicts"].values() for v in found]
        correct = bool(verdicts) and not any(v["mistakes"] for v in verdicts)
        self.report["gates"]["correct"] = correct
        self.save(self.report)
        if correct:
            for problem in self.plan:
                self._time(problem)
                self.save(self.report)
        return self.report

    def _check(self, problem: Problem) -> None:
        if self.budget.left(GATE_SHARE) <= 0:
            self.left_out[problem.label] = "no time was left to check it"
            return
        say(f"checking {problem.label}")
        with refusals(self.left_out, problem.label):
            verdicts = judge(self.settings.task(problem, self.device))
            self.report["verdicts"][problem.label] = [verdict.as_dict() for verdict in verdicts]

    def _time(self, problem: Problem) -> None:
        """All rows of a problem that was checked, as far as time goes."""
        checked = problem.label in self.report["verdicts"]
        if not checked or self.budget.left() <= 0:
            self.rows_left -= len(self.timer.modes)
            self.left_out.setdefault(problem.label, LATE)
            return
        with refusals(self.left_out, problem.label):
            task = self.settings.task(problem, self.device)
            verdicts = self.report["verdicts"][problem.label]
            reasons = {verdict["contender"]: verdict["refused"] for verdict in verdicts}
            wanted = [c for c in task.contenders if "forward" not in reasons[c.name]]
            calls = {contender.name: contender.build() for contender in wanted}
            before = gpu_cards()
            for mode in self.timer.modes:
                refused = {
                    name: why[mode.direction]
                    for name, why in reasons.items()
                    if mode.direction in why
                }
                self._row(task, calls, mode, refused)
            self.report["clocks"].append([problem.label, before, gpu_cards()])

    def _row(self, task: Task, calls: dict[str, Call], mode: Mode, refused: dict[str, str]) -> None:
        label = f"{task.problem.label}, {mode.label}"
        seconds = max(LEAST, self.budget.left() / self.rows_left)
        self.rows_left -= 1
        if self.budget.left() <= 0:
            self.left_out[label] = LATE
            return
        say(f"timing {label}")
        rounds = QUICK_ROUNDS if self.settings.quick else ROUNDS
        able = {name: call for name, call in calls.items() if name not in refused}
        runs = prepared(task, able, mode, self.timer, refused)
        sample = partial(self.timer.sample, mode=mode)
        taken = measured(runs, sample, rounds, seconds, partial(refusals, refused))
        ours = [c.name for c in task.contenders if c.role == OURS]
        self.report["rows"].append(
            {
                "problem": task.problem.label,
                "mode": mode.label,
                "ours": ours,
                "bound": self._bound(task.problem, mode),
                "latency": {name: statistics(seconds) for name, seconds in taken.items()},
                "ratio": ratios(taken, ours),
                "refused": refused,
            }
        )

    def _bound(self, problem: Problem, mode: Mode) -> float | None:
        return bound(problem.operation, problem.form, problem.shape, mode.training, self.peaks)


def floors(timer: Cpu | Gpu, device: torch.device) -> dict[str, float]:
    """What timing costs by itself: seconds for the write of one number, in each mode."""
    number = torch.zeros(1, device=device)
    found = {}
    for mode in timer.modes:
        timer.begin()
        run, calls = timer.prepared(lambda: [number.fill_(1)], mode)
        found[mode.label] = float(np.median([timer.sample(run, mode) for _ in range(20)])) / calls
    return found


def prepared(
    task: Task, calls: dict[str, Call], mode: Mode, timer: Cpu | Gpu, refused: dict[str, str]
) -> dict[str, tuple[Run, int]]:
    """What to time, with the calls each makes; whoever fails is noted in `refused`."""
    with torch.no_grad():
        gradients = [torch.randn_like(result) for result in task.exact(**task.operands)]
    timer.begin()
    runs = {}
    for name, call in calls.items():
        forward = forward_step(call, task)
        step = training_step(call, task, gradients) if mode.training else forward
        with refusals(refused, name):
            runs[name] = timer.prepared(step, mode)
    return runs


def ratios(taken: dict[str, list[float]], ours: list[str]) -> dict[str, dict[str, float]]:
    """Times over those of the first of ours, round by round: the median and the middle 60 %."""
    if not ours or ours[0] not in taken:
        return {}
    return {
        name: ratio(seconds, taken[ours[0]]) for name, seconds in taken.items() if name != ours[0]
    }


def table(report: Report) -> Iterator[str]:
    """The report's lines."""
    machine = report["machine"]
    yield f"{report['device'] or machine['cpu']}; {machine['versions']}"
    for problem, verdicts in report["verdicts"].items():
        for verdict in verdicts:
            if verdict["mistakes"]:
                yield f"WRONG {problem}, {verdict['contender']}: {verdict['mistakes']}"
    for row in report["rows"]:
        yield from _row_lines(row, report["floors"][row["mode"]])
    yield from (
        f"not run: {label}: {reason[:SHOWN]}" for label, reason in report["left_out"].items()
    )
    yield from (f"slower than {name}: {label}" for label, name in slower(report["rows"]))
    red = "the gate is RED: no times" if report["verdicts"] else "nothing was checked: no times"
    yield "the gate passed" if report["gates"]["correct"] else red


def _row_lines(row: Report, floor: float) -> Iterator[str]:
    least = row["bound"]
    limits = f"bound {_short(least)}, " if least else ""
    yield f"\n{row['problem']}, {row['mode']} ({limits}timing itself {_short(floor)})"
    yield f"  {'':30}{'p20':>11}{'p50':>11}{'p80':>11}{'p99':>11}{'rounds':>7}  of bound  of ours"
    for name, times in row["latency"].items():
        quantiles = "".join(f"{_short(times[q]):>11}" for q in ("p20", "p50", "p80", "p99"))
        share = f"{least / times['p50']:.1%}" if least else ""
        times_ours = ratio_text(row["ratio"].get(name))
        yield f"  {name:30}{quantiles}{len(times['samples']):>7}  {share:>8}  {times_ours}"
    for name, reason in row["refused"].items():
        yield f"  {name:30} {reason[:SHOWN]}"


def _short(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} us" if seconds < 1e-2 else f"{1e3 * seconds:.1f} ms"


def slower(rows: list[Report]) -> Iterator[tuple[str, str]]:
    """Where another beats ours in the median of the ratios, and which."""
    for row in rows:
        for name, found in row["ratio"].items():
            if found["p50"] < 1 and name not in row["ours"]:
                yield f"{row['problem']}, {row['mode']}", name


def summary(report: Report) -> str:
    """The report on one line, without the samples."""
    rows = [
        [
            row["problem"],
            row["mode"],
            {name: found["p50"] for name, found in row["latency"].items()},
        ]
        for row in report["rows"]
    ]
    machine = report["machine"]
    return json.dumps({"gates": report["gates"], "machine": machine, "p50": rows})


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything; 8 if not given")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="WORD", help="in a problem's label"
    )
    parser.add_argument("--without", nargs="+", default=(), metavar="WORD", help="contenders")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    parser.add_argument("--receipt", type=Path)
    parser.add_argument("--json", action="store_true", help="a summary as the last line")
    options = parser.parse_args(given)
    if options.receipt and not options.receipt.parent.is_dir():
        parser.error(f"there is no folder {options.receipt.parent}: make it, or name another")
    return options


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    settings = Settings(tuple(options.only), tuple(options.without), options.quick)

    def save(report: Report) -> None:
        if options.receipt:
            with written_whole(options.receipt) as path:
                path.write_text(json.dumps(report, allow_nan=False) + "\n")

    report = Bench(settings, Budget(60 * options.minutes), save).run()
    print("\n".join(table(report)))
    if options.json:
        print(summary(report))
    return 0 if report["gates"]["correct"] else 1


if __name__ == "__main__":
    sys.exit(main())
