"""Everything in a receipt that follows from its raw samples and scores, computed again."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from drexperts.bench.caveats import warnings
from drexperts.bench.tables import AGAIN
from drexperts.bench.timing import ratio, statistics
from drexperts.benchmarks.receipt_gates import GATES
from drexperts.benchmarks.receipt_scores import (
    Between,
    Block,
    Stated,
    agreements,
    consistent,
    limits,
    pixels,
    searched,
    ways,
)
from drexperts.runtime.errors import UserError

Rule = Callable[[Block], Iterator[Stated]]

TOLERANCE = 1e-9  # relative
ROUNDING = 1e-15  # what it leaves of a zero
RATIO = {"p20", "p50", "p80"}

# What comes of a field that is not there, or is of another type.
MALFORMED = (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError)


class ReceiptError(UserError):
    """A receipt that cannot be read, or whose raw numbers are not of the form that is known."""


class Claim(NamedTuple):
    """What a receipt states in a field, and what its raw numbers say; None is nothing.

    Of figures by name, those are compared that the raw numbers say.
    """

    field: str
    stated: Any
    expected: Any

    def faults(self) -> Iterator[str]:
        """Where the two differ, a sentence each."""
        if isinstance(self.expected, Between):
            if not _within(self.stated, self.expected):
                low, high = self.expected
                yield f"{self.field} is {self.stated!r}; what is beside it allows {low} to {high}"
        elif isinstance(self.expected, dict) and isinstance(self.stated, dict):
            for name, expected in self.expected.items():
                found = Claim(_field(self.field, name), self.stated.get(name), expected)
                yield from found.faults()
        elif self.stated is None and self.expected is not None:
            yield f"{self.field} is missing; computed again it is {_shown(self.expected)}"
        elif self.expected is None and self.stated is not None:
            yield f"{self.field} is stated, and nothing raw is there to compute it from"
        elif not _same(self.stated, self.expected):
            stated, expected = _shown(self.stated), _shown(self.expected)
            yield f"{self.field} is {stated}; computed again it is {expected}"


def _within(stated: Any, between: Between) -> bool:
    """But for rounding, as everything."""
    if not isinstance(stated, (int, float)):
        return False
    inside = between.low <= stated <= between.high
    return inside or any(_same(stated, end) for end in between)


def _same(stated: Any, expected: Any) -> bool:
    if isinstance(stated, bool) or isinstance(expected, bool):
        return stated is expected
    if isinstance(stated, (int, float)) and isinstance(expected, (int, float)):
        return math.isclose(stated, expected, rel_tol=TOLERANCE, abs_tol=ROUNDING)
    return bool(stated == expected)


def _shown(value: Any) -> str:
    return "a set of figures" if isinstance(value, dict) else repr(value)


def claims(report: Block) -> Iterator[Claim]:
    """Everything in a report that its raw numbers decide, gates last.

    Raises:
        ReceiptError: raw numbers of another form; says in which field.
    """
    for where, block in blocks(report):
        for rule in RULES:
            yield from _computed(where, rule, block)
    yield from _computed("gates", _gates, report)


def _computed(where: str, rule: Rule, block: Block) -> list[Claim]:
    try:
        return [Claim(_field(where, field), *pair) for field, *pair in rule(block)]
    except (*MALFORMED, UserError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ReceiptError(f"{where or 'it'} cannot be computed again: {why}") from None


def _gates(report: Block) -> Iterator[Stated]:
    """The gates: all that are stated, and all that the report's own numbers decide."""
    stated, decided = report["gates"], GATES[report["kind"]](report)
    for name in {**stated, **decided}:
        yield name, stated.get(name), decided.get(name)


def blocks(node: Any, where: str = "") -> Iterator[tuple[str, Block]]:
    """Every dict in a tree, and where it is, such as "batches[0].latency"."""
    if isinstance(node, dict):
        yield where, node
        for name, child in node.items():
            yield from blocks(child, _field(where, name))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from blocks(child, f"{where}[{i}]")


def _field(where: str, name: str) -> str:
    return f"{where}.{name}" if where and name else where or name


def _statistics(block: Block) -> Iterator[Stated]:
    """`timing.statistics`, from the samples. Nothing else has a median, but for a ratio."""
    if "samples" in block or ("p50" in block and block.keys() != RATIO):
        samples = block["samples"]
        if not samples or min(samples) < 0:
            raise ValueError(f"samples are {samples}, no times")
        yield "", block, statistics(samples)


def _ratios(block: Block) -> Iterator[Stated]:
    """`timing.ratio` of every contender over the first, or over the first of "ours"."""
    if not block.keys() & {"latency", "ratio"}:
        return
    latency, stated = block.get("latency", {}), block.get("ratio", {})
    times = {} if "samples" in latency else {n: found["samples"] for n, found in latency.items()}
    first = next(iter(block.get("ours") or times), None)
    expected = {
        name: _ratio(taken, times[first])
        for name, taken in times.items()
        if first in times and name != first
    }
    for name in {**stated, **expected}:
        yield f"ratio.{name}", stated.get(name), expected.get(name)


def _peaks(block: Block) -> Iterator[Stated]:
    """Peaks of memory over that of the first contender."""
    if "peak_ratio" in block:
        (_, first), *others = block["peak_bytes"].items()
        expected = {name: peak / first for name, peak in others}
        yield "peak_ratio", block["peak_ratio"], expected


def _throughput(block: Block) -> Iterator[Stated]:
    """Images over seconds, and the highest rate of a server that met its bound."""
    if "images_per_s" in block and "bound_s" not in block:
        yield "images_per_s", block["images_per_s"], block["images"] / block["seconds"]
    if "bound_s" in block:
        met = [trial["rate"] for trial in block["trials"] if trial["met"]]
        yield "images_per_s", block["images_per_s"], max(met, default=None)
    for i, trial in enumerate(block.get("trials", ())):
        answered, p99 = len(trial["latency"]["samples"]), trial["latency"]["p99"]
        # As `scenarios._verdict` has it: a trial that was stopped early met nothing.
        met_bound = answered == trial["planned"] and p99 <= block["bound_s"]
        expected = {"p99": p99, "queries": answered, "met": met_bound}
        yield f"trials[{i}]", trial, expected


def _noise_floor(block: Block) -> Iterator[Stated]:
    if "noise_floor" in block:
        (first, *_) = block["batches"]
        yield "noise_floor", block["noise_floor"], first["ratio"].get(AGAIN)


def _batches(block: Block) -> Iterator[Stated]:
    """The compute alone was timed of the same batches."""
    if "engine_gpu" in block and "batches" in block:
        stated, expected = ([each["batch"] for each in block[n]] for n in ("engine_gpu", "batches"))
        yield "engine_gpu[].batch", stated, expected


def _warnings(block: Block) -> Iterator[Stated]:
    if block.keys() & {"warnings", "gpus_after"}:
        expected = warnings(block, block["machine"]["gpus"], block["gpus_after"])
        yield "warnings", block["warnings"], expected


def _profile(block: Block) -> Iterator[Stated]:
    """The time of all parts is that of the whole."""
    if "total_s" in block:
        yield "total_s", block["total_s"], sum(part["seconds"] for part in block["parts"])


def _shares(block: Block) -> Iterator[Stated]:
    """The time of the head alone over that of the whole, round by round."""
    for name, head in block.get("head", {}).items() if "latency" in block else ():
        whole = block["latency"][name]["samples"]
        yield f"head.{name}.share", head["share"], _ratio(head["time"]["samples"], whole)


def _ratio(times: Sequence[float], over: Sequence[float]) -> dict[str, float]:
    if len(times) != len(over):
        raise ValueError("contenders of one run have different numbers of rounds")
    return ratio(times, over)


# Each yields nothing for a block that it does not speak of.
RULES: tuple[Rule, ...] = (
    _statistics,
    _ratios,
    _shares,
    _peaks,
    _throughput,
    _noise_floor,
    _batches,
    _profile,
    _warnings,
    agreements,
    ways,
    searched,
    consistent,
    pixels,
    limits,
)
