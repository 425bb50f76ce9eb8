"""The gate of a whole-model contender: parity with float32, repeatability, batch invariance."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drexperts.benchmarks.gpu_contenders import DENSE, Contender, Program
from drexperts.export.proof.batch_invariance import (
    CASES,
    TOLERANCES,
    batch_drifts,
    batch_sizes,
    worst_drift,
)
from drexperts.export.proof.parity import LIMITS, Outputs, compare
from drexperts.runtime.manifest import OUTPUTS, ScoreScale, invariance_limits, within

REPEATS = 3
REFERENCE = "float32, eager"

Rows = dict[str, NDArray[np.float64]]


@dataclass
class Gate:
    """Judges contenders of one precision.

    Args:
        pixels: uint8 crops [n, 3, H, W] on the device.
        sizes: how many of them each set has, in their order.
        expected: what the float32 model says of them.
        scale: of the score.
        alone: outputs of crops in batches of one, by contender, as far as it has run in those.
    """

    precision: str
    pixels: Tensor
    sizes: dict[str, int]
    expected: Outputs
    scale: ScoreScale
    largest: int
    alone: dict[str, Rows] = field(default_factory=dict)

    def judge(self, contender: Contender, program: Program, batch: int) -> dict[str, Any]:
        """The verdict on a program for batches of `batch`, JSON-ready; "mistakes" is what is wrong.

        Of a baseline, the dense form, parity is asked alone.
        """
        got = outputs_of(program, self.pixels, batch)
        if not all(np.isfinite(values).all() for values in got[:3]):
            return {"mistakes": ["its outputs are no finite numbers"]}
        parity = compare(self.expected, got, self.scale, LIMITS[self.precision], self.sizes)
        repeatable = repeats(program, self._taken(batch))
        invariance = self._invariance(contender, program, batch)
        ours = contender.form != DENSE
        mistakes = {
            "parity with float32": not parity.passed,
            "two runs differ": ours and not repeatable,
            "batch invariance": ours and not invariance["passed"],
        }
        return {
            "mistakes": [what for what, wrong in mistakes.items() if wrong],
            "scores": got.scores.tolist(),
            "parity": asdict(parity),
            "repeatable": repeatable,
            "invariance": invariance,
        }

    def _taken(self, batch: int) -> Tensor:
        return self.pixels[torch.arange(batch) % len(self.pixels)]

    def _invariance(self, contender: Contender, program: Program, batch: int) -> dict[str, Any]:
        """The same crops in batches, against each alone.

        A program that takes every size is tried on all of them when it is judged first.
        """
        crops = self.pixels[: self.largest]
        everywhere = contender.any_batch and contender.name not in self.alone
        sizes = batch_sizes(self.largest) if everywhere else [batch]
        if 1 in sizes:
            self.alone[contender.name] = _rows(program, crops, 1)
        alone = self.alone.get(contender.name)
        expected = alone or _rows(program, crops, batch)
        engine, arrays = Engine(program, crops.device), crops.cpu().numpy()
        drifts = [each for n in sizes for each in batch_drifts(engine, arrays, expected, n)]
        worst = worst_drift(drifts, expected, self.scale)
        limits = invariance_limits(TOLERANCES[self.precision])
        return {
            "against": "each alone" if alone else "the same batch in order",
            "batches": sizes,
            "cases": list(CASES),
            "limits": limits,
            "passed": within(worst, limits),
            **worst,
        }


@dataclass(frozen=True)
class Engine:
    """A program as a session of arrays in host memory, which is what `verify` tries."""

    program: Program
    device: torch.device

    def run(self, pixels: NDArray[np.uint8]) -> Rows:
        return _named(self.program(torch.from_numpy(pixels).to(self.device)))


def outputs_of(program: Program, pixels: Tensor, batch: int) -> Outputs:
    """What a program for batches of `batch` says of crops."""
    rows = _rows(program, pixels, batch)
    return Outputs(rows["score"], rows["weights"], rows["maps"], len(pixels))


def repeats(program: Program, pixels: Tensor) -> bool:
    """Whether several runs agree bit by bit, on memory that holds NaN before each."""
    first = [result.clone() for result in program(pixels)]
    for _ in range(REPEATS - 1):
        _ = [torch.full_like(result, float("nan")) for result in first]
        if not all(map(torch.equal, first, program(pixels))):
            return False
    return True


def _rows(program: Program, pixels: Tensor, batch: int) -> Rows:
    """The outputs for all crops, in batches; the last is filled up with the first crops."""
    count = len(pixels)
    indices = torch.arange(-(-count // batch) * batch) % count
    parts = [_named(program(pixels[some])) for some in indices.split(batch)]
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in OUTPUTS}


def _named(results: tuple[Tensor, ...]) -> Rows:
    """Copies in float64: a captured program writes over its results."""
    arrays = [result.double().cpu().numpy() for result in results]
    return {name: array.copy() for name, array in zip(OUTPUTS, arrays, strict=True)}
