"""The receipt of `crop_grids.py`, and its table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from drexperts.benchmarks.receipt_types.learning_receipt import half_interval
from drexperts.benchmarks.receipt_types.receipt import Part, Receipt, machine_line
from drexperts.evaluation.metrics import correlation_changes, correlation_intervals, plcc, srcc
from drexperts.runtime.errors import UserError
from drexperts.ui.markdown import Table

CORRELATIONS = {"srcc": srcc, "plcc": plcc}


@dataclass(frozen=True, kw_only=True)
class GridScores:
    """What one grid gives.

    scores: of the images, in the order of their labels
    crops: that were scored, of all images together
    """

    scores: tuple[float, ...]
    crops: int


@dataclass(frozen=True, kw_only=True)
class ScoredPart:
    """Images that one model has not seen.

    labels: of the images
    learnt_from: images of the same set that the model learnt from; 0 if none
    grids: the scores by the most crops per side
    """

    labels: tuple[float, ...]
    learnt_from: int
    grids: dict[str, GridScores]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of training on one set of images.

    model, images: what they are, in a few words
    crop: the side of a crop, px
    own: the crops per side that the model states
    parts: the whole set; or one for each split, with a model trained on the rest; or one for each
        photograph of which the images were made
    """

    model: str
    images: str
    crop: int
    own: str
    parts: tuple[ScoredPart, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if self.own not in part.grids:
                raise UserError(f"{self.model} was not scored with its own grid, {self.own}")
            if {len(each.scores) for each in part.grids.values()} != {len(part.labels)}:
                raise UserError(f"the scores of {self.model} are not those of the labels")

    def crops_per_image(self, grid: str) -> float:
        """How many crops an image has, on average."""
        crops = sum(part.grids[grid].crops for part in self.parts)
        return crops / sum(len(part.labels) for part in self.parts)

    def same_crops(self, grid: str) -> bool:
        """Whether the grid is no other than the model's own for these images."""
        return all(part.grids[grid] == part.grids[self.own] for part in self.parts)

    def correlation(self, name: str, grid: str) -> "Estimate":
        """ "srcc" or "plcc" with the labels."""
        if len(self.parts) > 1:
            found = [CORRELATIONS[name](p.labels, p.grids[grid].scores) for p in self.parts]
            return self._over_parts(found)
        (part,) = self.parts
        scores = part.grids[grid].scores
        interval = correlation_intervals(part.labels, scores)[name]
        return Estimate(CORRELATIONS[name](part.labels, scores), *interval)

    def change(self, name: str, grid: str) -> "Estimate":
        """By how much a correlation exceeds that with the model's own grid, on the same images."""
        pairs = [
            [(part.labels, part.grids[each].scores) for each in (self.own, grid)]
            for part in self.parts
        ]
        changes = [correlation_changes(*pair)[name] for pair in pairs]
        if len(changes) > 1:
            return self._over_parts([change.value for change in changes])
        return Estimate(changes[0].value, *changes[0].interval)

    def _over_parts(self, values: Sequence[float]) -> "Estimate":
        # Splits share what they learn from. Photographs do not: the interval is Student's.
        share = fmean(len(p.labels) / p.learnt_from if p.learnt_from else 0.0 for p in self.parts)
        mean, half = fmean(values), half_interval(values, share)
        return Estimate(mean, mean - half, mean + half)


class Estimate(NamedTuple):
    """A number, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, sign: str = "") -> str:
        """Such as "0.536 (0.480 to 0.590)"."""
        return f"{self.value:{sign}.3f} ({self.low:{sign}.3f} to {self.high:{sign}.3f})"


@dataclass(frozen=True, kw_only=True)
class GridReceipt(Receipt):
    """What `crop_grids.py` observed.

    data: a sentence on each set of images
    digests: of their names and labels
    """

    data: dict[str, str]
    digests: dict[str, str]
    cases: tuple[Case, ...]


def parts(receipt: GridReceipt) -> Iterator[Part]:
    """A row per grid of each case, and what the intervals are."""
    yield machine_line(receipt.machine)
    for name, told in receipt.data.items():
        yield f"{name}: {told} Digest of names and labels: `{receipt.digests[name]}`."
    headings = ("model", "images", "per side", "crops", "SRCC", "PLCC", "Δ SRCC", "Δ PLCC")
    yield Table(headings, [row for case in receipt.cases for row in _rows(case)])
    yield (
        "`crops` is the mean per image, and so the cost. Δ is against the model's own grid on the "
        "same images. In brackets are 95 % intervals. Where one model scores one set, they come "
        "from resampling the images, the same ones for both grids. Where a model was trained for "
        "each of several splits, means over the splits are shown, with intervals corrected for the "
        "images that the splits share (Nadeau and Bengio, 2003). Of synthetic images, correlations "
        "are those of the versions of one photograph, and means over the photographs are shown, "
        "with Student's intervals."
    )
    yield from _by_part(receipt)


def _by_part(receipt: GridReceipt) -> Iterator[Part]:
    """The SRCC of each part with each grid, of the cases that have several."""
    for case in receipt.cases:
        if len(case.parts) > 1:
            numbers = tuple(str(number) for number in range(len(case.parts)))
            rows = [
                (grid, *(f"{srcc(p.labels, p.grids[grid].scores):.3f}" for p in case.parts))
                for grid in case.parts[0].grids
            ]
            yield Table((f"SRCC, {case.model}, {case.crop} px, {case.images}", *numbers), rows)


def _rows(case: Case) -> Iterator[tuple[str, ...]]:
    for number, grid in enumerate(case.parts[0].grids):
        own = grid == case.own
        changes = ("", "") if own else tuple(_change(case, name, grid) for name in CORRELATIONS)
        yield (
            "" if number else f"{case.model}, {case.crop} px",
            "" if number else case.images,
            f"{grid}, its own" if own else grid,
            f"{case.crops_per_image(grid):.2f}",
            *(case.correlation(name, grid).text() for name in CORRELATIONS),
            *changes,
        )


def _change(case: Case, name: str, grid: str) -> str:
    return "same crops" if case.same_crops(grid) else case.change(name, grid).text("+")
