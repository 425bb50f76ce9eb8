"""The check of a variant of the model: parity with float32, repeatability, batch invariance."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drexperts.benchmarks.gpu_variants import Program, Variant
from drexperts.benchmarks.receipt_types.answers import Answers, Reference
from drexperts.benchmarks.receipt_types.model_receipt import BatchDrift, VariantCheck
from drexperts.export.proof.batch_invariance import batch_drifts, batch_sizes, worst_drift
from drexperts.export.proof.parity import Outputs, compare
from drexperts.runtime.manifest import OUTPUTS, ScoreScale
from drexperts.runtime.proof import LIMITS

REPEATS = 3

Rows = dict[str, NDArray[np.float64]]


@dataclass
class Checker:
    """Checks variants in one precision.

    pixels: uint8 crops [n, 3, H, W] on the device
    sizes: how many of them each set has, in their order
    expected: the outputs of the float32 model for them
    largest: batch
    alone: outputs of crops in batches of one, of each variant that has run in those
    """

    precision: str
    pixels: Tensor
    sizes: dict[str, int]
    expected: Outputs
    scale: ScoreScale
    largest: int
    alone: dict[str, Rows] = field(default_factory=dict)

    @property
    def reference(self) -> Reference:
        """What the receipt has of the float32 model."""
        return Reference(tuple(self.expected.scores.tolist()), self.scale.span, self.sizes)

    def check(self, variant: Variant, program: Program, batch: int) -> VariantCheck:
        """What a program for batches of `batch` does."""
        made = partial(VariantCheck, precision=self.precision, batch=batch, variant=variant.name)
        got = outputs_of(program, self.pixels, batch)
        if not all(np.isfinite(values).all() for values in got[:3] if values is not None):
            return made()
        parity = compare(self.expected, got, self.scale, LIMITS[self.precision], self.sizes)
        return made(
            answers=Answers.of(got, parity),
            repeatable=repeats(program, first_crops(self.pixels, batch)),
            drift=self._drift(variant, program, batch),
        )

    def _drift(self, variant: Variant, program: Program, batch: int) -> BatchDrift:
        """The same crops in batches, compared with each alone.

        A program that takes every batch size is tried on all of them in its first check.
        """
        crops = self.pixels[: self.largest]
        everywhere = variant.any_batch and variant.name not in self.alone
        sizes = batch_sizes(self.largest) if everywhere else [batch]
        if 1 in sizes:
            self.alone[variant.name] = _rows(program, crops, 1)
        alone = self.alone.get(variant.name)
        expected = alone or _rows(program, crops, batch)
        runs, arrays = Runs(program, crops.device), crops.cpu().numpy()
        drifts = [each for n in sizes for each in batch_drifts(runs, arrays, expected, n)]
        against = "each alone" if alone else "the same batch in order"
        return BatchDrift(against, tuple(sizes), worst_drift(drifts, expected, self.scale))


@dataclass(frozen=True)
class Runs:
    """A program that takes and gives arrays in host memory."""

    program: Program
    device: torch.device

    def run(self, pixels: NDArray[np.uint8]) -> Rows:
        """The outputs by name."""
        return _named(self.program(torch.from_numpy(pixels).to(self.device)))


def outputs_of(program: Program, pixels: Tensor, batch: int) -> Outputs:
    """The outputs of a program for batches of `batch` on all crops."""
    rows = _rows(program, pixels, batch)
    return Outputs(rows["score"], rows["weights"], rows["maps"], len(pixels))


def first_crops(pixels: Tensor, batch: int) -> Tensor:
    """The first crops, from the front again if there are not enough: [batch, 3, H, W]."""
    return pixels[torch.arange(batch) % len(pixels)]


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
