"""The benchmark of the kernels: its bounds, its checks, its time limit, its receipt.

Nothing here compiles or needs a GPU: torch.compile takes most of a minute to come up on a CPU, and
only a run on a GPU exercises CUDA's clock and graphs.
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

from drexperts.bench.json_files import read_json
from drexperts.benchmarks import bench_kernels
from drexperts.benchmarks.bench_kernels import Budget, KernelBenchmark, Selection, verdict
from drexperts.benchmarks.operations import bounds
from drexperts.benchmarks.operations.check import checked, refusals, relative_error
from drexperts.benchmarks.operations.comparisons import (
    Comparison,
    Implementation,
    Problem,
    comparison_of,
    problems,
)
from drexperts.benchmarks.operations.timing import FEWEST, measured, require_writes
from drexperts.benchmarks.receipt_types.kernel_receipt import (
    BASELINE,
    EAGER,
    OURS,
    Check,
    KernelReceipt,
    Row,
)
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
    only = Selection(only=("attention/dense/B1/",)).problems(cuda=True)
    assert [p.label[-12:] for p in only] == [
        "N577/float16",
        "N197/float16",
        "577/bfloat16",
        "197/bfloat16",
    ]


def toy_comparison(*implementations: Implementation, problem: Problem = PROBLEM) -> Comparison:
    """sin(x w), to be computed by the implementations."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(problem.dtype).requires_grad_()

    operands = {"x": leaf(problem.batch, 8)}, {"w": leaf(8)}
    eager = Implementation("eager", lambda: toy, EAGER)
    return Comparison(problem, *operands, toy, (*implementations, eager))


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
def test_check(build: Callable[[], Any], ours: bool, baseline: bool) -> None:
    comparison = toy_comparison(
        Implementation("ours", build, OURS), Implementation("other", build, BASELINE)
    )
    passed = {check.implementation: not check.mistakes for check in checked(comparison)}
    assert passed == {"ours": ours, "other": baseline, "eager": True}


def test_without_a_backward_pass_the_forward_pass_is_checked() -> None:
    def no_backward(x: Tensor, w: Tensor) -> tuple[Tensor]:
        if torch.is_grad_enabled():
            raise BackendError("no backward pass")
        return toy(x, w)

    check, _ = checked(toy_comparison(Implementation("other", lambda: no_backward)))
    assert list(check.refused) == ["forward+backward"]
    assert list(check.errors) == ["result 0"]
    assert not check.mistakes


def test_in_16_bits_ours_is_compared_with_the_eager_form() -> None:
    problem = replace(PROBLEM, dtype=torch.float16)

    def slightly_off(x: Tensor, w: Tensor) -> tuple[Tensor]:
        return (toy(x, w)[0] * 1.01,)

    checks = checked(
        toy_comparison(
            Implementation("ours", lambda: slightly_off, OURS),
            Implementation("other", lambda: slightly_off, BASELINE),
            problem=problem,
        )
    )
    assert [bool(check.mistakes) for check in checks] == [True, False, False]


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


def test_every_implementation_that_a_cpu_can_run_is_right() -> None:
    without = ("triton", "torch.compile", "fused", "FlexAttention")
    selection = Selection(without=without, quick=True)
    chosen = Selection(quick=True).problems(cuda=True)
    for problem in (replace(p, dtype=torch.float32) for p in chosen if p.dtype == torch.float16):
        checks = checked(selection.comparison(problem, torch.device("cpu")))
        assert not any(check.mistakes for check in checks), checks
        assert any(check.errors for check in checks)


@contextmanager
def noting(dropped: list[str], name: str) -> Iterator[None]:
    try:
        yield
    except ZeroDivisionError:
        dropped.append(name)


def test_implementations_take_turns_and_a_failure_drops_one() -> None:
    turns: list[str] = []
    dropped: list[str] = []

    def sample(run: Callable[[], object]) -> float:
        run()
        return 1.0

    def fail_late() -> None:
        turns.append("c")
        _ = 1 / (3 - turns.count("c"))

    runs: dict[str, tuple[Callable[[], object], int]] = {
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
def toy_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[..., KernelBenchmark]:
    """toy_benchmark(budget, *implementations): a run over six toy problems on the CPU."""

    def make(budget: Budget, *implementations: Implementation) -> KernelBenchmark:
        chosen = [replace(PROBLEM, batch=batch) for batch in range(1, 7)]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(bench_kernels, "problems", lambda cuda: [] if cuda else chosen)
        monkeypatch.setattr(
            bench_kernels,
            "comparison_of",
            lambda problem, _: toy_comparison(*implementations, problem=problem),
        )
        return KernelBenchmark(Selection(), budget)

    return make


TOY = Implementation("ours", lambda: toy, OURS)


def test_what_time_does_not_reach_is_left_out_from_the_end(
    toy_benchmark: Callable[..., KernelBenchmark],
) -> None:
    receipt = toy_benchmark(Budget(10, Clock()), TOY).run()
    in_time = [f"toy/toy/B{batch}/N5/float32" for batch in range(1, 5)]
    assert list(receipt.checks) == in_time  # at most half of the seconds
    timed = list(dict.fromkeys(row.problem for row in receipt.rows))
    assert timed == in_time[: len(timed)]
    assert 0 < len(timed) < len(in_time)
    named = {label.split(",")[0] for label in receipt.left_out}
    assert {*in_time[len(timed) :], "toy/toy/B5/N5/float32", "toy/toy/B6/N5/float32"} <= named


def test_nothing_is_timed_if_an_implementation_is_wrong(
    toy_benchmark: Callable[..., KernelBenchmark],
) -> None:
    receipt = toy_benchmark(Budget(60), TOY, Implementation("other", lambda: scaled)).run()
    assert not receipt.is_correct
    assert receipt.rows == ()
    lines = list(verdict(receipt))
    assert "FAILED" in lines[-1]
    assert any(line.startswith("WRONG toy/toy/B1") and "other" in line for line in lines)


def test_an_implementation_that_cannot_run_is_named_with_its_reason(
    toy_benchmark: Callable[..., KernelBenchmark], capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = toy_benchmark(Budget(60), TOY, Implementation("other", lambda: crashing)).run()
    assert receipt.is_correct
    for row in receipt.rows:
        assert set(row.seconds) == {"ours", "eager"}
        assert set(receipt.ratios(row)) == {"eager"}
        assert row.refused == {"other": "ZeroDivisionError: a crash"}
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_nothing_checked_is_not_a_success(toy_benchmark: Callable[..., KernelBenchmark]) -> None:
    receipt = toy_benchmark(Budget(0)).run()
    assert not receipt.is_correct
    assert "nothing was checked" in list(verdict(receipt))[-1]


def test_where_another_implementation_is_faster(
    toy_benchmark: Callable[..., KernelBenchmark],
) -> None:
    roles = {"ours": OURS, "ours, other": OURS, "fast": BASELINE, "slow": BASELINE}
    checks = tuple(Check(name, role, {}, {}, True, {}, False) for name, role in roles.items())
    medians = {"ours": 1.0, "ours, other": 0.5, "fast": 0.9, "slow": 1.1}
    row = Row("p", "m", {name: (each,) for name, each in medians.items()}, {})
    receipt = replace(toy_benchmark(Budget(0)).receipt(), checks={"p": checks}, rows=(row,))
    assert list(receipt.slower()) == [(row, "fast")]


@pytest.mark.slow
def test_run_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "receipt.json"
    assert bench_kernels.main(["--quick", "--json", "--receipt", str(path)]) == 0
    receipt = read_json(path, KernelReceipt)
    assert receipt.is_correct
    assert receipt.trial
    assert {row.problem for row in receipt.rows} == {
        f"saliency/{form}/B{batch}/N17/float32"
        for form in ("official", "paper")
        for batch in (1, 2)
    }
    for row in receipt.rows:
        assert set(row.seconds) == {"CLS row", "dense eager"}
        assert all(len(times) == 3 for times in row.seconds.values())
    reasons = {receipt.left_out[problem.label] for problem in problems(cuda=True)}
    assert reasons == {"no CUDA device"}
    assert [file.name for file in tmp_path.iterdir()] == ["receipt.json"]
    assert receipt.command == "python benchmarks/bench_kernels.py --minutes 8 --quick"
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1])["gates"]["correct"]
    assert any("no CUDA device" in line for line in printed)


def test_a_receipt_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_kernels, "KernelBenchmark", lambda *_: pytest.fail("it measured"))
    with pytest.raises(SystemExit) as ended:
        bench_kernels.main(["--quick", "--receipt", str(tmp_path / "none" / "receipt.json")])
    assert ended.value.code == 2


def test_operands_are_the_same_every_time() -> None:
    problem = Problem("pooling", "single", 2, 17, torch.float16, 64)
    first, second = (comparison_of(problem, torch.device("cpu")).operands for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
