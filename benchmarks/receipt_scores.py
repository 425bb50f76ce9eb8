"""What in a receipt follows from scores: agreement with a reference, and limits that are kept."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from drexperts.export.agreement import score_agreement
from drexperts.runtime.manifest import Interval, Parity, SetParity, invariance_limits, within

Block = dict[str, Any]
Stated = tuple[str, Any, Any]  # a field, what a receipt has there, and what its raw numbers say

PROOF = {"pairs", "cases", "batches", "limits", "tolerance"}  # what tells a proof, which has limits


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


def _figures(reference: Sequence[float], got: Sequence[float], span: float, stated: Block) -> Block:
    """Those of the stated figures that follow from scores, also of parts of the images."""
    expected, found = np.array(reference), np.array(got)
    apart = np.abs(found - expected)
    figures = asdict(score_agreement(expected, found, span)) | {
        "score_mean": float(apart.mean() / span),
        "score_p99": float(np.quantile(apart, 0.99) / span),
        "score_units": float(apart.max()),
    }
    kept = {name: figures[name] for name in figures.keys() & stated.keys()}
    sets, start = {}, 0
    for name, part in stated.get("sets", {}).items():
        end = start + part["images"]
        sets[name] = _figures(reference[start:end], got[start:end], span, part)
        start = end
    return kept | {"sets": sets} if sets else kept


def pixels(block: Block) -> Iterator[Stated]:
    """Over all pictures the largest step, and the mean of their mean steps."""
    for name, steps in block.get("pixels", {}).items() if "drift" in block else ():
        found = {"pixel_max": max(steps["max"]), "pixel_mean": float(np.mean(steps["mean"]))}
        yield f"drift.{name}", block["drift"].get(name), found


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
    return block | {name: Interval(**ends) for name, ends in named.items()}
