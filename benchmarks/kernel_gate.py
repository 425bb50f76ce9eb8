"""The gate before any time: every contender against float64, and against itself bit by bit.

Results and gradients are compared on a few images. The gradients put in are zero for all others,
so the operands' gradients must be zero there too, and those of shared operands come from the
compared images alone, which are all that is computed in float64.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drexperts.benchmarks.kernel_baselines import (
    EAGER,
    OURS,
    Call,
    Contender,
    Task,
    forward_step,
    training_step,
)
from drexperts.benchmarks.kernel_timing import Mode
from drexperts.runtime.errors import BackendError

Values = Sequence[Tensor | None]

# Relative rms error that no right computation exceeds and a wrong one does: in 16 bits an eager
# form rounds every intermediate result; on a CPU at full size 6e-3 and 4e-2 were the most seen.
LIMITS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
# Ours keeps to twice the error of the eager form, or to this where that form has next to none:
# in 16 bits four units, since operands of products and results are rounded; in float32 what
# another order of summation may cost.
FINE = {torch.float32: 1e-5, torch.float16: 2**-8, torch.bfloat16: 2**-5}
# Gradients of shared operands are sums over images and tokens that may cancel almost wholly, and
# then the eager form's own error is the only measure. Of a few numbers that error may be next to
# nothing by luck; there the rough limit holds for ours too.
FEW = 64
ZERO = 1e-12  # of the largest gradient
REPEATS = 3
LONGEST = 2000  # characters of a reason
SEVERAL = 3  # images


@dataclass
class Verdict:
    """What the gate found of one contender: errors by name of the result or gradient.

    A refusal is no mistake. Ours must also repeat itself bit by bit, and not break.
    """

    contender: str
    role: str
    errors: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    repeatable: bool | None = None
    refused: dict[str, str] = field(default_factory=dict)  # the reason by direction
    broken: bool = False

    @property
    def mistakes(self) -> str:
        """What is wrong, on one line; empty if nothing is."""
        beyond = [
            f"{name} is off by {self.errors[name]:.1e}, more than {limit:.1e}"
            for name, limit in self.limits.items()
            if not self.errors[name] <= limit
        ]
        if self.role == OURS and self.repeatable is False:
            beyond.append("two runs differ")
        if self.role == OURS and self.broken:
            beyond.append(f"it broke, {self.refused}")
        return "; ".join(beyond)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: an error that is no finite number is None."""
        errors = {name: e if math.isfinite(e) else None for name, e in self.errors.items()}
        return vars(self) | {"errors": errors, "mistakes": self.mistakes}


@dataclass(frozen=True)
class Truth:
    """The definition in float64 on the chosen images.

    Args:
        operands: leaves, those per image of the chosen images only.
        given: the results' gradients for the whole batch, zero but for the chosen images.
    """

    chosen: list[int]
    operands: list[Tensor]
    results: list[Tensor]
    given: list[Tensor]

    def gradients(self, results: int) -> Values:
        """Of the operands, from the first results alone where a contender returns no more."""
        given = [g[self.chosen].double() for g in self.given[:results]]
        return list(
            torch.autograd.grad(
                self.results[:results],
                self.operands,
                given,
                retain_graph=True,
                allow_unused=True,
            )
        )


@contextmanager
def refusals(reasons: dict[str, str], name: str) -> Iterator[None]:
    """Note under `name` why the block failed, with the warnings that explain it; never raise."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except Exception as error:
            said = dict.fromkeys([str(error), *(str(w.message) for w in caught)])
            explained = " ".join("; ".join(said).split())[:LONGEST]
            reasons[name] = f"{type(error).__name__}: {explained}"


def judge(task: Task) -> list[Verdict]:
    """Verdicts on all contenders of a task."""
    truth = truth_of(task)
    verdicts = [_verdict(contender, task, truth) for contender in task.contenders]
    yardstick = next((v.errors for v in verdicts if v.role == EAGER), {})
    for verdict in verdicts:
        verdict.limits = _limits(verdict, yardstick, task)
    return verdicts


def _limits(verdict: Verdict, yardstick: dict[str, float], task: Task) -> dict[str, float]:
    """What the errors may be, by name. No limit for the yardstick on gradients that are sums."""
    sums = {f"gradient of {name}" for name in task.shared}
    few = {f"gradient of {name}" for name, x in task.shared.items() if x.numel() < FEW}
    rough = LIMITS[task.problem.dtype]
    fine = FINE[task.problem.dtype] if yardstick else rough
    if verdict.role == EAGER:
        return dict.fromkeys(verdict.errors.keys() - sums, rough)
    return {
        name: max(
            fine if verdict.role == OURS and name not in few else rough,
            2 * yardstick.get(name, 0.0),
        )
        for name in verdict.errors
    }


def _verdict(contender: Contender, task: Task, truth: Truth) -> Verdict:
    """Judged on a training step, or on the forward pass where it has no backward pass."""
    verdict = Verdict(contender.name, contender.role)
    for mode in (Mode(training=True), Mode(training=False)):
        with refusals(verdict.refused, mode.direction):
            try:
                _examine(verdict, contender.build(), task, truth, mode)
            except Exception as error:
                verdict.broken |= not isinstance(error, (BackendError, torch.OutOfMemoryError))
                raise
            break
    return verdict


def _examine(verdict: Verdict, call: Call, task: Task, truth: Truth, mode: Mode) -> None:
    step = training_step(call, task, truth.given) if mode.training else forward_step(call, task)
    again = first = step()
    verdict.repeatable = True
    for _ in range(REPEATS - 1):
        _poison(first)
        again = step()
        verdict.repeatable &= all(map(_identical, first, again))
    results = len(again) - (len(task.operands) if mode.training else 0)
    verdict.errors = dict(_result_errors(truth, again[:results]))
    if mode.training:
        verdict.errors |= _gradient_errors(task, truth, results, again[results:])


def _poison(values: Values) -> None:
    """Leave NaN in the allocator's free blocks, of the sizes that the results will take."""
    _ = [torch.full_like(x, math.nan) for x in values if x is not None]


def _identical(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def truth_of(task: Task) -> Truth:
    """The truth on the first, the last and a middle image."""
    batch, dtype = task.problem.batch, task.problem.dtype
    chosen = sorted({round(i * (batch - 1) / (SEVERAL - 1)) for i in range(SEVERAL)})
    operands = {
        name: (x[chosen] if name in task.images else x).detach().double().requires_grad_()
        for name, x in task.operands.items()
    }
    results = list(task.exact(**operands))
    generator = torch.Generator(results[0].device).manual_seed(1)
    given = []
    for result in results:
        values = torch.randn(result.shape, generator=generator, device=result.device).to(dtype)
        given.append(values.new_zeros(batch, *result.shape[1:]))
        given[-1][chosen] = values
    return Truth(chosen, list(operands.values()), results, given)


def _result_errors(truth: Truth, results: Values) -> Iterator[tuple[str, float]]:
    for i, result in enumerate(results):
        chosen = None if result is None else result[truth.chosen]
        yield f"result {i}", relative_error(chosen, truth.results[i])


def _gradient_errors(
    task: Task, truth: Truth, results: int, gradients: Values
) -> Iterator[tuple[str, float]]:
    exact_gradients = truth.gradients(results)
    largest = max(float(exact.abs().max()) for exact in exact_gradients if exact is not None)
    for name, gradient, exact in zip(task.operands, gradients, exact_gradients, strict=True):
        if name in task.images and gradient is not None:
            others = gradient.clone()
            others[truth.chosen] = 0
            gradient = gradient[truth.chosen]
            yield f"gradient of {name}, other images", math.inf if others.any() else 0.0
        # A bias of the keys moves all logits of a row alike: its gradient is zero, and what is
        # computed for it is rounding noise, in float64 too.
        if exact is not None and exact.abs().max() > ZERO * largest:
            yield f"gradient of {name}", relative_error(gradient, exact)


def relative_error(found: Tensor | None, exact: Tensor) -> float:
    """Root mean square of the error over that of the exact values; no gradient is a zero one."""
    if found is None:
        return 1.0
    return float((found.detach().double() - exact).norm() / exact.norm())
