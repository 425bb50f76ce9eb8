"""Which gates a receipt's own numbers decide, a function for each kind of receipt.

Proofs are held against the limits of today, whatever limits they state.
"""

import math
from collections.abc import Callable
from typing import Any

from drexperts.bench.tables import AGAIN
from drexperts.benchmarks.receipt_scores import parity_of
from drexperts.export.proof.batch_invariance import TOLERANCES
from drexperts.export.proof.parity import LIMITS
from drexperts.runtime.manifest import invariance_limits, within

Report = dict[str, Any]

OURS = "ours"
SAME_LOSS = 1e-4  # relative, of float32 losses that were summed in another order


def kernels(report: Report) -> dict[str, bool]:
    """All keep their limits, ours repeats itself, and who was timed was judged."""
    verdicts = [verdict for found in report["verdicts"].values() for verdict in found]
    judged = all(_judged(row, report["verdicts"].get(row["problem"], [])) for row in report["rows"])
    return {"correct": bool(verdicts) and judged and all(map(_correct, verdicts))}


def _judged(row: Report, verdicts: list[Report]) -> bool:
    """Whether there is a verdict on everybody in a row, with limits, and ours is among them."""
    limited = {verdict["contender"]: verdict["role"] for verdict in verdicts if verdict["limits"]}
    ours = {name for name, role in limited.items() if role == OURS}
    return row["latency"].keys() <= limited.keys() and bool(ours) and ours >= set(row["ours"])


def _correct(verdict: Report) -> bool:
    """Of others than ours, gradients that are sums may have no limit."""
    errors, limits, ours = verdict["errors"], verdict["limits"], verdict["role"] == OURS
    limited = {name for name in errors if ours or name.startswith("result")}
    within = all(errors[name] is not None and errors[name] <= limits[name] for name in limits)
    broken = verdict["repeatable"] is False or verdict["broken"]
    return within and limited <= limits.keys() and not (broken and ours)


def engines(report: Report) -> dict[str, bool]:
    """Every plan was read back, and no attention was fused where that was kept off."""
    rows = report["rows"]
    unfused = [row["attention_kernels"] for row in rows if not row["fused_attention"]]
    return {
        "inspected": bool(rows) and all(row["inspected"] for row in rows),
        "unfused": bool(unfused) and not any(unfused),
    }


def training(report: Report) -> dict[str, bool]:
    """The reduced and the dense form of the same weights have the same first loss in float32."""
    ours = "ours, fp32" if "ours, fp32" in report["loss"] else "ours"
    losses = report["loss"][ours], report["loss"]["dense"]
    return {"losses": math.isclose(*losses, rel_tol=SAME_LOSS)}


def bench(report: Report) -> dict[str, bool]:
    """Every engine that was timed is proven, by a proof that is in the receipt."""
    engines = {"engine": report["bundle"], **report.get("against", {})}
    proofs = report.get("proofs", {})
    decided = {}
    for name, engine in engines.items():
        proof, precision = proofs.get(name, {}), engine["precision"]
        decided[f"parity of {name}"] = _at_parity(proof.get("parity"), precision)
        decided[f"invariance of {name}"] = _invariant(proof.get("invariance"), precision)
    return decided


def _at_parity(proof: Report | None, precision: str) -> bool:
    return proof is not None and parity_of(proof | {"limits": LIMITS[precision]}).within_limits


def _invariant(proof: Report | None, precision: str) -> bool:
    return proof is not None and within(proof, invariance_limits(TOLERANCES[precision]))


def drift(report: Report) -> dict[str, bool]:
    """Pixels that are given score as their file does, and a fingerprint tells the two apart."""
    sets, fingerprints = report["sets"], report["fingerprints"].values()
    return {
        "runtime_met_again": bool(sets) and all(each["met_again"] for each in sets),
        "fingerprints_apart": 1 < len(fingerprints) == len(set(fingerprints)),
    }


def precision(report: Report) -> dict[str, bool]:
    """What `--precision auto` chose keeps its parity, and is the same in any batch."""
    chosen = report["ways"]["auto"]
    same = chosen["batch_drift"] <= TOLERANCES["int8"]
    return {"auto": same and _at_parity(chosen["parity"], "int8")}


def gpu_model(report: Report) -> dict[str, bool]:
    """A contender is at parity; but for the dense form it is batch-invariant and repeats itself.

    Who was timed and never judged is not.
    """
    timed = {
        _label(row, name): False
        for row in report["batches"]
        for name in row["latency"]
        if name != AGAIN
    }
    return timed | {
        _label(found, name): _green(name, found["parity"].get(name), more, found["precision"])
        for found in report["verdicts"]
        for name, more in found["others"].items()
    }


def _label(found: Report, name: str) -> str:
    return f"{found['precision']}, B{found['batch']}, {name}"


def _green(name: str, parity: Report | None, more: Report, precision: str) -> bool:
    if not _at_parity(parity, precision):
        return False
    steady = more["repeatable"] and _invariant(more["invariance"], precision)
    return steady or name.startswith("dense")


GATES: dict[str, Callable[[Report], dict[str, bool]]] = {
    "bench": bench,
    "kernels": kernels,
    "kernels-trial": kernels,
    "engines": engines,
    "training": training,
    "drift": drift,
    "precision": precision,
    "gpu-model": gpu_model,
    "gpu-model-trial": gpu_model,
}
