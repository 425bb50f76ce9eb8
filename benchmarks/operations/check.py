"""The check before any time: each implementation against float64, and against itself bit by bit.

Results and gradients are compared on a few images. The gradients put in are zero for all others,
so the operands' gradients must be zero there too, and those of shared operands come from the
compared images alone, which are all that is computed in float64.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from drexperts.benchmarks.operations.comparisons import (
    Call,
    Comparison,
    Implementation,
    forward_step,
    training_step,
)
from drexperts.benchmarks.operations.timing import Mode
from drexperts.benchmarks.receipt_types.kernel_receipt import EAGER, OURS, Check
from drexperts.runtime.errors import BackendError

Values = Sequence[Tensor | None]

# Relative RMS errors that a correct computation stays below and a wrong one exceeds. In 16 bits an
# eager form rounds every intermediate result: on a CPU at full size it was off by up to 6e-3 in
# float16 and 4e-2 in bfloat16.
LIMITS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
# Ours may have twice the error of the eager form, or this if that form has almost none: four units
# in 16 bits, since operands of products and results are rounded; in float32 what another order of
# summation may cost.
FINE = {torch.float32: 1e-5, torch.float16: 2**-8, torch.bfloat16: 2**-5}
# Gradients of shared operands are sums over images and tokens that may almost cancel, and then only
# the eager form's own error is a measure. For an operand of few numbers that error may be tiny by
# luck, so that ours has the rough limit, too.
FEW = 64
ZERO = 1e-12  # of the largest gradient
REPEATS = 3
LONGEST = 2000  # characters of a reason
SEVERAL = 3  # images


@dataclass
class Findings:
    """What has been found of an implementation so far; see `kernel_receipt.Check`."""

    errors: dict[str, float] = field(default_factory=dict)
    repeatable: bool | None = None
    refused: dict[str, str] = field(default_factory=dict)
    broken: bool = False


@dataclass(frozen=True)
class Truth:
    """The definition in float64 on the chosen images.

    operands: leaves; of those that differ from image to image, the chosen images alone
    given: the gradients of the results for the whole batch, zero except for the chosen images
    """

    chosen: list[int]
    operands: list[Tensor]
    results: list[Tensor]
    given: list[Tensor]

    def gradients(self, results: int) -> Values:
        """The gradients of the operands, from the first results if there are no more."""
        given = [gradient[self.chosen].double() for gradient in self.given[:results]]
        kept = self.results[:results]
        return list(
            torch.autograd.grad(kept, self.operands, given, retain_graph=True, allow_unused=True)
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


def checked(comparison: Comparison) -> tuple[Check, ...]:
    """A check of every implementation."""
    truth = truth_of(comparison)
    found = [(each, _findings(each, comparison, truth)) for each in comparison.implementations]
    yardstick = next((f.errors for each, f in found if each.role == EAGER), {})
    return tuple(
        Check(
            implementation=each.name,
            role=each.role,
            errors={n: e if math.isfinite(e) else None for n, e in findings.errors.items()},
            limits=_limits(each.role, findings.errors, yardstick, comparison),
            repeatable=findings.repeatable,
            refused=findings.refused,
            broken=findings.broken,
        )
        for each, findings in found
    )


def _limits(
    role: str, errors: dict[str, float], yardstick: dict[str, float], comparison: Comparison
) -> dict[str, float]:
    """What the errors may be. The yardstick has no limit on gradients that are sums."""
    sums = {f"gradient of {name}" for name in comparison.shared}
    few = {f"gradient of {name}" for name, x in comparison.shared.items() if x.numel() < FEW}
    rough = LIMITS[comparison.problem.dtype]
    fine = FINE[comparison.problem.dtype] if yardstick else rough
    if role == EAGER:
        return dict.fromkeys(errors.keys() - sums, rough)
    return {
        name: max(
            fine if role == OURS and name not in few else rough,
            2 * yardstick.get(name, 0.0),
        )
        for name in errors
    }


def _findings(implementation: Implementation, comparison: Comparison, truth: Truth) -> Findings:
    """What a training step shows, or the forward pass if there is no backward pass."""
    found = Findings()
    for mode in (Mode(training=True), Mode(training=False)):
        with refusals(found.refused, mode.direction):
            try:
                _examine(found, implementation.build(), comparison, truth, mode)
            except Exception as error:
                found.broken |= not isinstance(error, (BackendError, torch.OutOfMemoryError))
                raise
            break
    return found


def _examine(found: Findings, call: Call, comparison: Comparison, truth: Truth, mode: Mode) -> None:
    step = forward_step(call, comparison)
    if mode.training:
        step = training_step(call, comparison, truth.given)
    again = first = step()
    found.repeatable = True
    for _ in range(REPEATS - 1):
        _poison(first)
        again = step()
        found.repeatable &= all(map(_identical, first, again))
    results = len(again) - (len(comparison.operands) if mode.training else 0)
    found.errors = dict(_result_errors(truth, again[:results]))
    if mode.training:
        found.errors |= _gradient_errors(comparison, truth, results, again[results:])


def _poison(values: Values) -> None:
    """Leave NaN in the allocator's free blocks, of the sizes that the results will take."""
    _ = [torch.full_like(x, math.nan) for x in values if x is not None]


def _identical(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def truth_of(comparison: Comparison) -> Truth:
    """The truth on the first, the last and a middle image."""
    batch, dtype = comparison.problem.batch, comparison.problem.dtype
    chosen = sorted({round(i * (batch - 1) / (SEVERAL - 1)) for i in range(SEVERAL)})
    operands = {
        name: (x[chosen] if name in comparison.images else x).detach().double().requires_grad_()
        for name, x in comparison.operands.items()
    }
    results = list(comparison.exact(**operands))
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
    comparison: Comparison, truth: Truth, results: int, gradients: Values
) -> Iterator[tuple[str, float]]:
    exact_gradients = truth.gradients(results)
    largest = max(float(exact.abs().max()) for exact in exact_gradients if exact is not None)
    for name, gradient, exact in zip(comparison.operands, gradients, exact_gradients, strict=True):
        if name in comparison.images and gradient is not None:
            others = gradient.clone()
            others[truth.chosen] = 0
            gradient = gradient[truth.chosen]
            yield f"gradient of {name}, other images", math.inf if others.any() else 0.0
        # A bias of the keys shifts all logits of a row alike: its gradient is zero, and what is
        # computed for it is rounding noise, in float64 too.
        if exact is not None and exact.abs().max() > ZERO * largest:
            yield f"gradient of {name}", relative_error(gradient, exact)


def relative_error(found: Tensor | None, exact: Tensor) -> float:
    """The RMS of the error over that of the exact values; a missing gradient counts as zero."""
    if found is None:
        return 1.0
    return float((found.detach().double() - exact).norm() / exact.norm())
