"""The receipt of `crossings.py`, and its tables."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drexperts.benchmarks.receipt_types.receipt import Part, Receipt, machine_line
from drexperts.runtime.proof import EXPORT_LIMITS, LIMITS, distance, within
from drexperts.ui.markdown import Table

BROKEN = "broken: "  # before the name of what was done to a bfloat16 engine
DEFAULT = -1  # the division into the default photographs and the others


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """An engine that was made on one half of the photographs, and proven there and on the other.

    division: the seed of the random division; `DEFAULT` for the default photographs against others
    half: 0 or 1 (with `DEFAULT`, 0 are the default ones), where it was made
    precision: "auto" is int8 with the islands that the search left in float32; OpenVINO has such as
        "openvino-auto-int8" or "openvino-bf16"; an engine that is broken on purpose begins `BROKEN`
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
        if self.precision.startswith(BROKEN):
            return "bf16"
        return "int8" if self.precision == "auto" else self.precision.rpartition("-")[2]


@dataclass(frozen=True, kw_only=True)
class CrossingsReceipt(Receipt):
    """What `crossings.py` observed.

    photographs, images: how many were divided
    parts: how many linear layers the search can leave in float32
    """

    photographs: int
    images: int
    parts: int
    crossings: tuple[Crossing, ...]

    def passed(self, each: Crossing) -> bool:
        """Whether an engine passes where it was made."""
        return within(each.made, EXPORT_LIMITS[each.limits])

    def holds(self, each: Crossing) -> bool:
        """Whether it passes on the other half."""
        return not self.missed(each)

    def missed(self, each: Crossing) -> list[str]:
        """The measures that are beyond their limits on the other half."""
        limits = LIMITS[each.limits]
        return [name for name, limit in limits.items() if not within(each.other, {name: limit})]


def parts(receipt: CrossingsReceipt) -> Iterator[Part]:
    """A row per model and precision."""
    said = f"{receipt.photographs} photographs, {receipt.images} pictures"
    yield machine_line(receipt.machine, said)
    headings = ("", "engines", "pass where made", "of these, on the other half")
    rows = [_cells(receipt, kind) for kind in dict.fromkeys(map(_kind, receipt.crossings))]
    yield Table((*headings, "islands", "MB", "what fails there"), rows)
    alike = [
        each
        for each in receipt.crossings
        if each.division != DEFAULT and not each.precision.startswith(BROKEN)
    ]
    yield from _refused(receipt)
    if alike:
        yield _farther(alike)


def _refused(receipt: CrossingsReceipt) -> Iterator[Table]:
    """What refuses engines that are broken on purpose, and how far sound ones are from that."""
    shown = [each for each in receipt.crossings if each.limits == "bf16"]
    if not any(each.precision.startswith(BROKEN) for each in shown):
        return
    names = ("score_p99", "srcc", "clear_flips", "weights_p99", "weights_srcc", "maps_plcc_p01")
    rows = []
    for kind in dict.fromkeys(each.precision for each in shown):
        engines = [each for each in shown if each.precision == kind]
        passed = [each for each in engines if receipt.passed(each)]
        shares = [
            [
                distance(name, value) / distance(name, LIMITS["bf16"][name])
                for each in engines
                if (value := each.other.get(name)) is not None
            ]
            for name in names
        ]
        cells = (f"{max(found):.2f}" if found else "" for found in shares)
        rows.append((kind, f"{len(passed)} of {len(engines)}", *cells))
    headings = ("bf16, share of the limit at worst", "made with the margin")
    yield Table((*headings, *(name.replace("_", " ") for name in names)), rows)


def _farther(crossings: Sequence[Crossing]) -> Table:
    """How many times farther from the model engines are on the other half than on their own.

    float32, whose distances are rounding, and perfect agreement are left out.
    """
    rows = []
    for name in LIMITS["int8"]:
        pairs = [(each.made.get(name), each.other.get(name)) for each in crossings]
        ratios = [
            distance(name, there) / distance(name, here)
            for (here, there), each in zip(pairs, crossings, strict=True)
            if each.precision != "fp32" and here is not None and there is not None
            if distance(name, here) > 0
        ]
        if ratios:
            median, high = np.quantile(ratios, (0.5, 0.95))
            rows.append((name.replace("_", " "), f"{median:.2f}", f"{high:.2f}"))
    return Table(("times farther on the other half", "median", "95 % are below"), rows)


def _kind(each: Crossing) -> str:
    of_default = each.division == DEFAULT
    where = ("default to others", "others to default")[each.half] if of_default else ""
    return ", ".join(filter(None, (each.model, each.precision, where)))


def _cells(receipt: CrossingsReceipt, kind: str) -> tuple[str, ...]:
    engines = [each for each in receipt.crossings if _kind(each) == kind]
    passed = [each for each in engines if receipt.passed(each)]
    held = [each for each in passed if receipt.holds(each)]
    failures = Counter(name for each in passed for name in receipt.missed(each))
    chosen = [each.islands for each in engines]
    return (
        kind,
        str(len(engines)),
        str(len(passed)),
        f"{len(held)} ({100 * len(held) / len(passed):.0f} %)" if passed else "",
        f"{min(chosen)}-{max(chosen)} of {receipt.parts}" if "auto" in engines[0].precision else "",
        f"{float(np.median([each.weight_bytes for each in engines])) / 1e6:.2f}",
        ", ".join(f"{name} {count}" for name, count in failures.items()),
    )
