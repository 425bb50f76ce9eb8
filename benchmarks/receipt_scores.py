"""What in a receipt follows from scores: agreement with a reference, and limits that are kept."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from drexperts.export.proof.agreement import finite, score_agreement
from drexperts.export.proof.batch_invariance import TOLERANCES
from drexperts.export.proof.parity import LIMITS
from drexperts.runtime.manifest import (
    ConfidenceInterval,
    Parity,
    SetParity,
    invariance_limits,
    within,
)

Block = dict[str, Any]
Stated = tuple[str, Any, Any]  # a field, what a receipt has there, and what its raw numbers say

PROOF = {"pairs", "cases", "batches", "limits", "tolerance"}  # what tells a proof, which has limits


class Between(NamedTuple):
    """Said in place of a figure where the rest of a receipt says only how far it can be."""

    low: float
    high: float


def agreements(block: Block) -> Iterator[Stated]:
    """Every set of scores against the first, or against the one that "reference" names.

    What else is stated beside these figures cannot be computed from scores.
    """
    if not isinstance(block.get("scores"), dict):
        return
    scores = dict(block["scores"])
    reference = scores.pop(block.get("reference", next(iter(scores))))
    kind = "parity" if "parity" in block else "drift"
    for name in {**block[kind], **scores}:
        stated, expected = block[kind].get(name), None
        if name in scores:
            expected = _figures(reference, scores[name], block["span"], stated or {})
        yield f"{kind}.{name}", stated, expected


def ways(block: Block) -> Iterator[Stated]:
    """Each way's parity, of its scores against the eager model's, and its batch invariance."""
    if "ways" not in block:
        return
    expected = block["eager_scores"]
    yield "images", block.get("images"), len(expected)
    for name, way in block["ways"].items():
        found = _figures(expected, way["scores"], block["span"], way["parity"])
        yield f"ways.{name}.parity", way["parity"], found
        steady = 0 <= way["batch_drift"] <= TOLERANCES["int8"]
        yield f"ways.{name}.invariant", way.get("invariant"), steady


def searched(block: Block) -> Iterator[Stated]:
    """What `precision.fewest_islands` tries, and takes, where mixtures pass as is said."""
    if "searched" not in block:
        return
    passed = {each["islands"] for each in block["searched"] if each["passed"]}
    fails, holds = 0, 0 if 0 in passed else block["layers"]
    tried = {0}
    while holds - fails > 1:
        tried.add(middle := (fails + holds) // 2)
        fails, holds = (fails, middle) if middle in passed else (middle, holds)
    counts = [each["islands"] for each in block["searched"]]
    yield "searched[].islands", counts, sorted(tried | {holds})
    yield "islands", len(block["islands"]), holds
    judged = _as_tried(block["ways"]["auto"]["parity"])
    for i, each in enumerate(block["searched"]):
        yield f"searched[{i}].passed", each["passed"], each["passed"] and _may_pass(each)
        if each["islands"] == holds:
            yield f"searched[{i}]", each, judged


def _may_pass(tried: Block) -> bool:
    """Of a mixture the largest difference and the low end of SRCC alone are kept."""
    limits = LIMITS["int8"]
    return tried["score_max"] <= limits["score_max"] and tried["srcc"] >= limits["srcc_low"]


def _as_tried(parity: Block) -> Block:
    """The parity of "auto", which is the mixture that was chosen, as the search notes it."""
    figures = {name: parity[name] for name in ("score_max", "passed")}
    return figures | {"srcc": parity["srcc_interval"]["low"]}


def _figures(
    reference: Sequence[float], got: Sequence[float | None], span: float, stated: Block
) -> Block:
    """Those of the stated figures that follow from scores, also of parts of the images.

    got: None is a score that is no number.
    """
    expected, found = np.array(reference, float), np.array(got, float)
    apart = np.abs(found - expected)
    figures = asdict(score_agreement(expected, found, span)) | {
        "score_mean": finite(float(apart.mean() / span)),
        "score_p99": finite(float(np.quantile(apart, 0.99) / span)),
        "score_units": finite(float(apart.max())),
    }
    kept = {name: figures[name] for name in figures.keys() & stated.keys()}
    sets, start = {}, 0
    for name, part in stated.get("sets", {}).items():
        end = start + part["images"]
        sets[name] = _figures(reference[start:end], got[start:end], span, part)
        start = end
    return kept | {"sets": sets} if sets else kept


def consistent(block: Block) -> Iterator[Stated]:
    """What no scores can give: of agreement whose scores are not there, it is all that is known."""
    if not block.keys() >= {"images", "order_flips", "pairs"}:
        return
    images, pairs, largest = (block[name] for name in ("images", "pairs", "score_max"))
    clear = block.get("clear_pairs") or 0
    bounds = {
        "pairs": Between(0, images * (images - 1) // 2),
        "order_flips": Between(0, pairs),
        "clear_pairs": Between(0, pairs),
        "clear_flips": Between(0, min(clear, block["order_flips"])),
        "score_mean": Between(0, largest),
        "score_p99": Between(0, largest),
    }
    intervals = {name: ends for name, ends in block.items() if name.endswith("_interval") and ends}
    for name, ends in intervals.items():
        bounds[name.removesuffix("_interval")] = Between(ends["low"], ends["high"])
    for name, between in bounds.items():
        if block.get(name) is not None:
            yield name, block[name], between
    yield from _in_sum(block)


def _in_sum(block: Block) -> Iterator[Stated]:
    """The sets are all the images, each once; pairs are also of images of two sets."""
    sets = list((block.get("sets") or {}).values())
    if not sets:
        return
    yield "images", block["images"], sum(part["images"] for part in sets)
    yield "score_max", block["score_max"], max(part["score_max"] for part in sets)
    for name in ("pairs", "order_flips"):
        yield name, block[name], Between(sum(part[name] for part in sets), math.inf)


def pixels(block: Block) -> Iterator[Stated]:
    """Over all pictures the largest step, and the mean of their mean steps."""
    if not isinstance(block.get("pixels"), dict):
        return
    steps, drift = block["pixels"], block["drift"]
    for name in {**drift, **steps}:
        found = None
        if name in steps:
            largest, means = max(steps[name]["max"]), float(np.mean(steps[name]["mean"]))
            found = {"pixel_max": largest, "pixel_mean": means}
        yield f"drift.{name}", drift.get(name), found


def limits(block: Block) -> Iterator[Stated]:
    """Whether a proof keeps the limits that it states: a parity, or an invariance."""
    if "passed" not in block or not block.keys() & PROOF:
        return
    if "pairs" in block:
        kept = parity_of(block).within_limits
    else:
        kept = within(block, block.get("limits") or invariance_limits(block["tolerance"]))
    yield "passed", block["passed"], kept


def parity_of(block: Block) -> Parity:
    """A parity from its JSON, whatever it says of having passed."""
    sets = {name: SetParity(**_with_intervals(part)) for name, part in block["sets"].items()}
    return Parity(**_with_intervals(block) | {"sets": sets, "passed": False})


def _with_intervals(block: Block) -> Block:
    named = {name: ends for name, ends in block.items() if name.endswith("_interval") and ends}
    return block | {name: ConfidenceInterval(**ends) for name, ends in named.items()}
