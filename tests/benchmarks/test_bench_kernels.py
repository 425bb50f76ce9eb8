"""The kernels' benchmark: its bounds, its gate, its time box, its receipt. No test asserts a time.

Nothing here compiles or needs a GPU: torch.compile takes most of a minute to come up on a CPU, and
the CUDA clock and graphs are exercised by a run on one.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drexperts.benchmarks import bench_kernels, receipts
from drexperts.benchmarks import kernel_bounds as bounds
from drexperts.benchmarks.bench_kernels import Bench, Budget, Settings
from drexperts.benchmarks.kernel_baselines import (
    BASELINE,
    EAGER,
    OURS,
    Contender,
    Problem,
    Task,
    problems,
    task_of,
)
from drexperts.benchmarks.kernel_gate import judge, refusals, relative_error
from drexperts.benchmarks.kernel_timing import FEWEST, measured, require_writes
from drexperts.runtime.errors import BackendError

H200, RTX4090 = (bounds.PEAKS[name] for name in ("NVIDIA H200", "NVIDIA GeForce RTX 4090"))
PROBLEM = Problem("toy", "toy", 4, 5, torch.float32, 8)


def shape(batch: int, tokens: int) -> bounds.Shape:
    return bounds.Shape(batch, experts=10, tokens=tokens, width=384, itemsize=2)


# Microseconds worked out by hand in the design notes, to two to four digits; hence 1.5 %.
@pytest.mark.parametrize(
    ("work", "peaks", "microseconds"),
    [
        (bounds.attention_forward(shape(1, 577)), H200, 12.9),
        (bounds.attention_forward(shape(64, 577)), H200, 829),
        (bounds.attention_forward(shape(64, 577), products=3), H200, 621),
        (bounds.attention_forward(shape(64, 197)), H200, 135),  # its memory's
        (bounds.attention_forward(shape(64, 577)), RTX4090, 3967),
        (bounds.attention_forward(shape(64, 197)), RTX4090, 581),
        (bounds.attention_backward(shape(64, 577)), H200, 1657),
        (bounds.attention_backward(shape(64, 577), products=11), H200, 2279),
        (bounds.attention_backward(shape(64, 197)), H200, 248),  # its memory's
        (bounds.attention_backward(shape(64, 197), products=11), RTX4090, 1272),
        (bounds.cls_head(shape(1, 577)), H200, 0.53),
        (bounds.cls_head(shape(8, 577)), H200, 1.35),
        (bounds.cls_head(shape(64, 577)), H200, 7.9),
        (bounds.cls_head(shape(64, 577)), RTX4090, 34),
        (bounds.cls_head(shape(1, 197)), H200, 0.46),
        (bounds.cls_head(shape(64, 197)), RTX4090, 15.3),
        (bounds.Work(0, 0, bounds.normalisation(shape(64, 577), 11)), H200, 23.3),
        (bounds.Work(0, 0, bounds.normalisation(shape(64, 577), 11)), RTX4090, 19.0),
        # 64 * (577 * 384 + 2 * 10 * 384 + 2 * 10 * 577) elements of 2 bytes; twice the operands.
        (bounds.pooling_forward(shape(64, 577), iterated=False), H200, 7.17),
        (bounds.pooling_backward(shape(64, 577), iterated=False), H200, 14.05),
        (bounds.pooling_forward(shape(64, 577), iterated=True), H200, 10.6),
    ],
)
def test_bounds(work: bounds.Work, peaks: bounds.Peaks, microseconds: float) -> None:
    assert 1e6 * work.seconds(peaks) == pytest.approx(microseconds, rel=0.015)


def test_a_training_step_is_bound_by_both_passes() -> None:
    bound = partial(bounds.bound, shape=shape(64, 577), peaks=H200)
    assert bound("attention", "dense", training=True) == pytest.approx(
        (829 + 1657) * 1e-6, rel=0.01
    )
    assert bound("saliency", "official", training=False) == pytest.approx(7.9e-6, rel=0.01)
    assert bound("saliency", "official", training=True) is None
    assert bounds.bound("pooling", "single", shape(1, 577), False, None) is None


def test_plan() -> None:
    plan = list(problems(cuda=True))
    assert plan[0].label == "pooling/single/B64/N577/float16"
    assert len({problem.label for problem in plan}) == 5 * 4 * 2 * 2  # forms, B, N, dtypes
    assert {(p.batch, p.tokens) for p in problems(cuda=False)} == {(1, 577), (4, 577)}
    only = Settings(only=("attention/dense/B1/",)).plan(cuda=True)
    assert [p.label[-12:] for p in only] == [
        "N577/float16",
        "N197/float16",
        "577/bfloat16",
        "197/bfloat16",
    ]


def toy_task(*contenders: Contender, problem: Problem = PROBLEM) -> Task:
    """sin(x w), to be computed by the contenders."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(problem.dtype).requires_grad_()

    operands = {"x": leaf(problem.batch, 8)}, {"w": leaf(8)}
    eager = Contender("eager", lambda: toy, EAGER)
    return Task(problem, *operands, toy, (*contenders, eager))


def toy(x: Tensor, w: Tensor) -> tuple[Tensor]:
    return ((x * w).sin(),)


def scaled(x: Tensor, w: Tensor) -> tuple[Tensor]:
    return ((x * w).sin() * 1.01,)


def wrong_gradient(x: Tensor, w: Tensor) -> tuple[Tensor]:
    return ((x * w).sin() + (x - x.detach()),)


def leaking(x: Tensor, w: Tensor) -> tuple[Tensor]:
    """Right values, but each image's gradient reaches its neighbour too."""
    return ((x * w).sin() + 1e-3 * (x - x.detach()).roll(1, 0),)


def not_a_number(x: Tensor, w: Tensor) -> tuple[Tensor]:
    return ((x * w).sin() * float("nan"),)


def crashing(x: Tensor, w: Tensor) -> tuple[Tensor]:
    raise ZeroDivisionError("a crash")


def refusing(x: Tensor, w: Tensor) -> tuple[Tensor]:
    raise BackendError("no such device")


def unsteady() -> Callable[..., tuple[Tensor]]:
    calls: list[int] = []

    def call(x: Tensor, w: Tensor) -> tuple[Tensor]:
        calls.append(1)
        return ((x * w).sin() * (1 + 1e-7 * len(calls)),)

    return call


@pytest.mark.parametrize(
    ("build", "ours", "baseline"),
    [
        (lambda: toy, True, True),
        (lambda: scaled, False, False),
        (lambda: wrong_gradient, False, False),
        (lambda: leaking, False, False),
        (lambda: not_a_number, False, False),
        (lambda: crashing, False, True),
        (lambda: refusing, True, True),
        (unsteady, False, True),
    ],
)
def test_gate(build: Callable[[], Any], ours: bool, baseline: bool) -> None:
    task = toy_task(Contender("ours", build, OURS), Contender("other", build, BASELINE))
    passed = {verdict.contender: not verdict.mistakes for verdict in judge(task)}
    assert passed == {"ours": ours, "other": baseline, "eager": True}


def test_a_contender_without_a_backward_pass_is_judged_on_its_forward_pass() -> None:
    def no_backward(x: Tensor, w: Tensor) -> tuple[Tensor]:
        if torch.is_grad_enabled():
            raise BackendError("no backward pass")
        return toy(x, w)

    verdict, _ = judge(toy_task(Contender("other", lambda: no_backward)))
    assert verdict.refused == {"forward+backward": "BackendError: no backward pass"}
    assert list(verdict.errors) == ["result 0"]
    assert not verdict.mistakes


def test_in_16_bits_ours_is_held_to_the_eager_form() -> None:
    problem = replace(PROBLEM, dtype=torch.float16)

    def slightly_off(x: Tensor, w: Tensor) -> tuple[Tensor]:
        return (toy(x, w)[0] * 1.01,)

    verdicts = judge(
        toy_task(
            Contender("ours", lambda: slightly_off, OURS),
            Contender("other", lambda: slightly_off, BASELINE),
            problem=problem,
        )
    )
    assert [bool(verdict.mistakes) for verdict in verdicts] == [True, False, False]


def test_a_refusal_is_noted_with_the_warnings_that_explain_it() -> None:
    reasons: dict[str, str] = {}
    with refusals(reasons, "flash"):
        warnings.warn("the head is too wide", stacklevel=1)
        raise RuntimeError("No available\nkernel")
    assert reasons == {"flash": "RuntimeError: No available kernel; the head is too wide"}


def test_relative_error_of_a_missing_gradient_is_one() -> None:
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(None, exact) == 1
    assert relative_error(torch.tensor([3.0, 4.5]), exact) == pytest.approx(0.1)


def test_every_contender_that_a_cpu_can_run_is_right() -> None:
    settings = Settings(without=("triton", "torch.compile", "fused", "FlexAttention"), quick=True)
    plan = Settings(quick=True).plan(cuda=True)
    for problem in (replace(p, dtype=torch.float32) for p in plan if p.dtype == torch.float16):
        verdicts = judge(settings.task(problem, torch.device("cpu")))
        assert not any(verdict.mistakes for verdict in verdicts), verdicts
        assert any(verdict.errors for verdict in verdicts)


@contextmanager
def noting(dropped: list[str], name: str) -> Iterator[None]:
    try:
        yield
    except ZeroDivisionError:
        dropped.append(name)


def test_contenders_take_turns_and_a_failure_drops_one() -> None:
    turns: list[str] = []
    dropped: list[str] = []

    def sample(run: Callable[[], object]) -> float:
        run()
        return 1.0

    def fail_late() -> None:
        turns.append("c")
        _ = 1 / (3 - turns.count("c"))

    runs = {
        "a": (partial(turns.append, "a"), 1),
        "b": (partial(turns.append, "b"), 4),
        "c": (fail_late, 1),
    }
    taken = measured(runs, sample, 10, 60, partial(noting, dropped))
    assert taken == {"a": [1.0] * 10, "b": [0.25] * 10}
    assert dropped == ["c"]
    rounds = [set(turns[3 * i : 3 * i + 3]) for i in range(3)]
    assert rounds == [{"a", "b", "c"}] * 3


def test_rounds_end_with_their_time_but_not_before_a_few() -> None:
    taken = measured({"a": (lambda: None, 1)}, lambda run: 1.0, 10, 0, partial(noting, []))
    assert len(taken["a"]) == FEWEST


def test_a_replay_must_write_its_results() -> None:
    results = [torch.ones(3), torch.ones(3)]
    require_writes(lambda: [x.fill_(1) for x in results], results)
    with pytest.raises(RuntimeError, match="unwritten"):
        require_writes(lambda: results[0].fill_(1), results)


class Clock:
    """A second passes with each look."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def toy_bench(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """toy_bench(budget, *contenders): a run over six toy problems on the CPU."""

    def make(budget: Budget, *contenders: Contender) -> Bench:
        plan = [replace(PROBLEM, batch=batch) for batch in range(1, 7)]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(bench_kernels, "problems", lambda cuda: [] if cuda else plan)
        monkeypatch.setattr(
            bench_kernels, "task_of", lambda problem, _: toy_task(*contenders, problem=problem)
        )
        return Bench(Settings(), budget)

    return make


def test_what_time_does_not_reach_is_left_out_from_the_end(
    toy_bench: Callable[..., Bench],
) -> None:
    report = toy_bench(Budget(10, Clock()), Contender("ours", lambda: toy, OURS)).run()
    checked = [f"toy/toy/B{batch}/N5/float32" for batch in range(1, 5)]
    assert list(report["verdicts"]) == checked  # at most half of the seconds
    timed = list(dict.fromkeys(row["problem"] for row in report["rows"]))
    assert timed == checked[: len(timed)]
    assert 0 < len(timed) < len(checked)
    named = {label.split(",")[0] for label in report["left_out"]}
    assert {*checked[len(timed) :], "toy/toy/B5/N5/float32", "toy/toy/B6/N5/float32"} <= named


def test_a_wrong_contender_means_no_times(
    toy_bench: Callable[..., Bench],
) -> None:
    wrong = Contender("other", lambda: scaled)
    report = toy_bench(Budget(60), Contender("ours", lambda: toy, OURS), wrong).run()
    assert not report["gates"]["correct"]
    assert report["rows"] == []
    lines = list(bench_kernels.table(report))
    assert lines[-1] == "the gate is RED: no times"
    assert any(line.startswith("WRONG toy/toy/B1") and "other" in line for line in lines)


def test_a_contender_that_cannot_run_is_a_row_with_its_reason(
    toy_bench: Callable[..., Bench],
) -> None:
    absent = Contender("other", lambda: crashing)
    report = toy_bench(Budget(60), Contender("ours", lambda: toy, OURS), absent).run()
    assert report["gates"]["correct"]
    for row in report["rows"]:
        assert set(row["latency"]) == {"ours", "eager"}
        assert set(row["ratio"]) == {"eager"}
        assert row["refused"] == {"other": "ZeroDivisionError: a crash"}
    assert any("ZeroDivisionError" in line for line in bench_kernels.table(report))


def test_nothing_checked_is_no_success(toy_bench: Callable[..., Bench]) -> None:
    report = toy_bench(Budget(0)).run()
    assert not report["gates"]["correct"]
    assert list(bench_kernels.table(report))[-1] == "nothing was checked: no times"


def test_where_another_is_faster_is_said() -> None:
    row = {"problem": "p", "mode": "m", "ours": ["ours", "ours, other"]}
    ratio = {"ours, other": {"p50": 0.5}, "fast": {"p50": 0.9}, "slow": {"p50": 1.1}}
    assert list(bench_kernels.slower([row | {"ratio": ratio}])) == [("p, m", "fast")]


def test_run_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    receipt = tmp_path / "receipt.json"
    assert bench_kernels.main(["--quick", "--json", "--receipt", str(receipt)]) == 0
    report = json.loads(receipt.read_text())
    assert report["gates"]["correct"]
    assert {row["problem"] for row in report["rows"]} == {
        f"saliency/{form}/B{batch}/N17/float32"
        for form in ("official", "paper")
        for batch in (1, 2)
    }
    for row in report["rows"]:
        assert set(row["latency"]) == {"CLS row", "dense eager"}
        assert all(len(times["samples"]) == 3 for times in row["latency"].values())
        assert set(row["ratio"]["dense eager"]) == {"p20", "p50", "p80"}
    reasons = {report["left_out"][problem.label] for problem in problems(cuda=True)}
    assert reasons == {"no CUDA device"}
    assert report["kind"] == "kernels-trial"
    assert [path.name for path in tmp_path.iterdir()] == ["receipt.json"]
    assert report["command"] == "python benchmarks/bench_kernels.py --minutes 8 --quick"
    assert set(receipts.MODULES["kernels"]) <= set(report["source"]["modules"])
    assert receipts.check(receipt).faults == []
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1])["gates"]["correct"]
    assert any("no CUDA device" in line for line in printed)


def test_a_receipt_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_kernels, "Bench", lambda *_: pytest.fail("it measured"))
    with pytest.raises(SystemExit) as ended:
        bench_kernels.main(["--quick", "--receipt", str(tmp_path / "none" / "receipt.json")])
    assert ended.value.code == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_killed_run_leaves_the_receipt_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = tmp_path / "receipt.json"
    receipt.write_text("before")

    class Unwritable:
        def __init__(self, *given: Any) -> None:
            self.save = given[-1]

        def run(self) -> None:
            self.save({"p50": float("nan")})

    monkeypatch.setattr(bench_kernels, "Bench", Unwritable)
    with pytest.raises(ValueError, match="JSON"):
        bench_kernels.main(["--quick", "--receipt", str(receipt)])
    assert receipt.read_text() == "before"


def test_tasks_are_the_same_every_time() -> None:
    problem = Problem("pooling", "single", 2, 17, torch.float16, 64)
    first, second = (task_of(problem, torch.device("cpu")).operands for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
