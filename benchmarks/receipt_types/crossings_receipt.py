"""The receipt of `crossings.py`, and its tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drexperts.benchmarks.receipt_types.receipt import Part, Receipt, machine_line
from drexperts.runtime.proof import EXPORT_LIMITS, LIMITS, within
from drexperts.ui.markdown import Table


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """An engine that was made on one half of the photographs, and proven there and on the other.

    division: the seed of the random division
    half: 0 or 1, where it was made
    precision: "auto" is int8 with the islands that the search left in float32
    weight_bytes: size of its constants
    made: measures of its proof, each the worst of all images and of every large enough set
    other: the same on the other half
    """

    model: str
    division: int
    half: int
    precision: str
    islands: int
    weight_bytes: int
    made: dict[str, float | None]
    other: dict[str, float | None]

    @property
    def limits(self) -> str:
        """The precision whose limits it is held to."""
        return "int8" if self.precision == "auto" else self.precision


@dataclass(frozen=True, kw_only=True)
class CrossingsReceipt(Receipt):
    """What `crossings.py` observed.

    photographs, images: how many were divided
    shared: whether calibration, search and proof had the same photographs and no margin
    parts: how many linear layers the search can leave in float32
    """

    photographs: int
    images: int
    shared: bool
    parts: int
    crossings: tuple[Crossing, ...]

    def passed(self, each: Crossing) -> bool:
        """Whether an engine passes where it was made."""
        return within(each.made, (LIMITS if self.shared else EXPORT_LIMITS)[each.limits])

    def holds(self, each: Crossing) -> bool:
        """Whether it passes on the other half."""
        return within(each.other, LIMITS[each.limits])


def parts(receipt: CrossingsReceipt) -> Iterator[Part]:
    """A row per model and precision."""
    rule = "the same photographs for calibration, search and proof, and no margin (as before)"
    if not receipt.shared:
        rule = "calibration, search and proof apart, with the margin"
    said = f"{receipt.photographs} photographs, {receipt.images} pictures; {rule}"
    yield machine_line(receipt.machine, said)
    headings = ("", "engines", "pass where made", "of these, on the other half")
    rows = [_cells(receipt, *named) for named in _kinds(receipt.crossings)]
    yield Table((*headings, "islands", "MB", "what fails there"), rows)


def _kinds(crossings: Sequence[Crossing]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((each.model, each.precision) for each in crossings))


def _cells(receipt: CrossingsReceipt, model: str, precision: str) -> tuple[str, ...]:
    engines = [e for e in receipt.crossings if (e.model, e.precision) == (model, precision)]
    passed = [each for each in engines if receipt.passed(each)]
    held = [each for each in passed if receipt.holds(each)]
    failures: dict[str, int] = {}
    for each in passed:
        for name, limit in LIMITS[each.limits].items():
            if not within(each.other, {name: limit}):
                failures[name] = failures.get(name, 0) + 1
    chosen = [each.islands for each in engines]
    return (
        f"{model}, {precision}",
        str(len(engines)),
        str(len(passed)),
        f"{len(held)} ({100 * len(held) / len(passed):.0f} %)" if passed else "",
        f"{min(chosen)}-{max(chosen)} of {receipt.parts}" if precision == "auto" else "",
        f"{float(np.median([each.weight_bytes for each in engines])) / 1e6:.2f}",
        ", ".join(f"{name} {count}" for name, count in failures.items()),
    )
