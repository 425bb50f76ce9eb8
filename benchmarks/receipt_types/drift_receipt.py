"""The receipt of `drift.py`, and its tables."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from drexperts.benchmarks.receipt_types.answers import agreement
from drexperts.benchmarks.receipt_types.receipt import (
    WEIGHTS,
    Part,
    Receipt,
    left_out,
    machine_line,
)
from drexperts.runtime.preprocess import Preprocessing
from drexperts.ui.markdown import Table, markdown_text


@dataclass(frozen=True)
class Read:
    """The same files, read in another way than the runtime's.

    scores: of the files
    pixel_max, pixel_mean: of each file, how far its pixels are from the runtime's, in steps of 255
    """

    scores: tuple[float, ...]
    pixel_max: tuple[int, ...]
    pixel_mean: tuple[float, ...]

    @property
    def is_identical(self) -> bool:
        """Whether all pixels are the runtime's."""
        return max(self.pixel_max) == 0


@dataclass(frozen=True)
class FileSet:
    """Files of one encoding.

    scores: the runtime's, of the files
    from_pixels: whether the runtime gives its own decoded pixels the same scores
    others: the same files by each other way
    """

    name: str
    scores: tuple[float, ...]
    from_pixels: bool
    others: dict[str, Read]


@dataclass(frozen=True, kw_only=True)
class DriftReceipt(Receipt):
    """What `drift.py` observed.

    weights: "random", "demo" or "trained"
    span: of the scores' scale
    decoders: versions by name
    pictures: their names
    fingerprints: of one picture, from its file and from its pixels
    """

    preset: str
    session: str
    weights: str
    preprocessing: Preprocessing
    span: float
    decoders: dict[str, str]
    left_out: dict[str, str]
    pictures: tuple[str, ...]
    sets: tuple[FileSet, ...]
    fingerprints: dict[str, str]

    @property
    def failures(self) -> list[str]:
        """What was asked of the runtime and does not hold."""
        found = [f"other scores from pixels: {s.name}" for s in self.sets if not s.from_pixels]
        if len(set(self.fingerprints.values())) < 2:
            found.append("a fingerprint does not tell a file from its pixels")
        return found


def parts(receipt: DriftReceipt) -> Iterator[Part]:
    """How far scores move with another decoder or resize."""
    yield machine_line(receipt.machine)
    low, median, high = np.percentile(receipt.sets[0].scores, (0, 50, 100))
    pictures = f"{len(receipt.pictures)} pictures, scores from {low:.3g} to {high:.3g}"
    model = f"preset `{receipt.preset}`, {receipt.session}"
    said = f"{pictures}, half of them below {median:.3g}; {model}. {WEIGHTS[receipt.weights]}"
    yield said.rstrip()
    versions = (f"{name}: {version}" for name, version in receipt.decoders.items())
    yield f"Decoders: {markdown_text('; '.join(versions))}."
    headings = ("", "set", "pixels, largest and mean step", "score, largest", "mean")
    more = (f"largest, % of {receipt.span:g}", "SRCC", "pairs turned round")
    yield Table((*headings, *more), list(_rows(receipt)))
    yield from left_out(receipt.left_out)
    yield from (f"**Failed: {failure}.**" for failure in receipt.failures)


def _rows(receipt: DriftReceipt) -> Iterator[tuple[str, ...]]:
    """A row per way and set; the sets in which all pixels are the same share one row."""
    for way in dict.fromkeys(name for each in receipt.sets for name in each.others):
        sets = [each for each in receipt.sets if way in each.others]
        same = [each.name for each in sets if each.others[way].is_identical]
        if same:
            yield way, ", ".join(same), "the same", *[""] * 5
        for each in sets:
            if each.name not in same:
                yield way, each.name, *_cells(each.scores, each.others[way], receipt.span)


def _cells(expected: tuple[float, ...], read: Read, span: float) -> tuple[str, ...]:
    found = agreement(expected, read.scores, span)
    interval = found.srcc_interval
    between = "" if interval is None else f" ({interval.low:.4f}-{interval.high:.4f})"
    return (
        f"{max(read.pixel_max)}, {np.mean(read.pixel_mean):.2f}",
        f"{found.score_max * span:.3g}",
        f"{np.abs(np.subtract(read.scores, expected)).mean():.2g}",
        f"{100 * found.score_max:.2g}",
        f"{found.srcc:.4f}{between}",
        f"{found.order_flips} of {found.pairs}",
    )
