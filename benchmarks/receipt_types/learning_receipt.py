"""The receipt of `learn_from_scores.py`, and its tables."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median, variance

from scipy.stats import t as student

from drexperts.benchmarks.receipt_types.receipt import Part, Receipt, machine_line, three_digits
from drexperts.evaluation.metrics import plcc, srcc
from drexperts.runtime.errors import UserError
from drexperts.ui.markdown import Table


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What one contestant made of one split.

    scores: of the test images, in the order of the split's labels
    cpu_seconds: of the process, for everything that this split needed
    """

    scores: tuple[float, ...]
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to learn from the scores.

    seen: what it sees of an image
    before: CPU seconds that were spent once, before the first split
    learnt: one per split
    """

    seen: str
    before: float = 0.0
    learnt: tuple[Learnt, ...]


@dataclass(frozen=True, kw_only=True)
class RatedPart:
    """The test images of a split: their labels, and how many images there were to learn from."""

    labels: tuple[float, ...]
    learnt_from: int


@dataclass(frozen=True, kw_only=True)
class LearningReceipt(Receipt):
    """What `learn_from_scores.py` observed.

    data, data_digest: a sentence on the rated images, and the digest of their names and labels
    baseline: the name of the contestant that the others are compared with
    """

    data: str
    data_digest: str
    baseline: str
    splits: tuple[RatedPart, ...]
    contestants: dict[str, Contestant]

    def __post_init__(self) -> None:
        counts = [len(split.labels) for split in self.splits]
        for name, each in self.contestants.items():
            if [len(learnt.scores) for learnt in each.learnt] != counts:
                raise UserError(f"the scores of {name} are not those of the splits")
        if self.baseline not in self.contestants:
            raise UserError(f"there is no contestant {self.baseline}")

    def correlations(self, name: str) -> "Correlations":
        """SRCC and PLCC of a contestant on each split."""
        learnt = self.contestants[name].learnt
        pairs = [(s.labels, each.scores) for s, each in zip(self.splits, learnt, strict=True)]
        return Correlations([srcc(*pair) for pair in pairs], [plcc(*pair) for pair in pairs])

    @cached_property
    def test_share(self) -> float:
        """Test images per image that was learnt from, as a mean over the splits."""
        return fmean(len(split.labels) / split.learnt_from for split in self.splits)

    def ahead(self, name: str) -> tuple[float, float]:
        """The mean difference of a contestant's SRCC to the baseline's, and half its interval."""
        pairs = zip(
            self.correlations(name).srcc, self.correlations(self.baseline).srcc, strict=True
        )
        differences = [ours - theirs for ours, theirs in pairs]
        return fmean(differences), half_interval(differences, self.test_share)


@dataclass(frozen=True)
class Correlations:
    """A contestant's correlations with the labels, one per split."""

    srcc: list[float]
    plcc: list[float]


def half_interval(values: Sequence[float], test_share: float) -> float:
    """Half the width of a 95 % interval for the mean over random splits of the same images.

    The splits share images, so their values are not independent: the variance of the mean is
    corrected as by Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning
    52, 2003: (1/k + test images per training image) times the variance between the k splits.
    """
    k = len(values)
    if k < 2:
        return math.nan
    return float(student.ppf(0.975, k - 1)) * math.sqrt((1 / k + test_share) * variance(values))


def parts(receipt: LearningReceipt) -> Iterator[Part]:
    """A row per contestant with its medians, and one with the SRCC of each split."""
    counts = sorted({(split.learnt_from, len(split.labels)) for split in receipt.splits})
    told = " or ".join(f"{learnt} to learn from and {test} to test on" for learnt, test in counts)
    yield machine_line(receipt.machine, f"{len(receipt.splits)} splits, {told}")
    yield f"{receipt.data} Digest of names and labels: `{receipt.data_digest}`."
    headings = ("", "sees", "SRCC", "least-most", "PLCC", "SRCC against the baseline", "CPU s")
    yield Table(headings, [_cells(receipt, name) for name in receipt.contestants])
    yield (
        f"Ridge and SVR are on BRISQUE's features; the baseline is {receipt.baseline}. SRCC and "
        "PLCC are medians over the splits. The differences are means over the splits, with 95 % "
        "intervals corrected for the images that the splits share (Nadeau and Bengio, 2003). CPU "
        "seconds are medians per split, and those of what is made once for all splits are added."
    )
    numbers = tuple(str(number) for number in range(len(receipt.splits)))
    yield Table(
        ("SRCC of split", *numbers),
        [
            (name, *(f"{value:.3f}" for value in receipt.correlations(name).srcc))
            for name in receipt.contestants
        ],
    )


def _cells(receipt: LearningReceipt, name: str) -> tuple[str, ...]:
    each, found = receipt.contestants[name], receipt.correlations(name)
    mean, half = receipt.ahead(name)
    seconds = three_digits(median(learnt.cpu_seconds for learnt in each.learnt))
    return (
        name,
        each.seen,
        f"{median(found.srcc):.3f}",
        f"{min(found.srcc):.3f}-{max(found.srcc):.3f}",
        f"{median(found.plcc):.3f}",
        ""
        if name == receipt.baseline
        else f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})",
        f"{seconds} + {three_digits(each.before)}" if each.before else seconds,
    )
