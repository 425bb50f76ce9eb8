"""Which gates a receipt's own numbers decide, a function for each kind of receipt."""

import math
from collections.abc import Callable
from typing import Any

Report = dict[str, Any]

SAME_IN_A_BATCH = 1e-5  # of the span, for int8: as `export.verify.INVARIANCE`
SAME_LOSS = 1e-4  # relative, of float32 losses that were summed in another order


def kernels(report: Report) -> dict[str, bool]:
    """Every contender keeps its limits; ours repeats itself, too."""
    verdicts = [verdict for found in report["verdicts"].values() for verdict in found]
    return {"correct": bool(verdicts) and all(map(_correct, verdicts))}


def _correct(verdict: Report) -> bool:
    errors = [(verdict["errors"][name], limit) for name, limit in verdict["limits"].items()]
    within = all(error is not None and error <= limit for error, limit in errors)
    broken = verdict["repeatable"] is False or verdict["broken"]
    return within and not (broken and verdict["role"] == "ours")


def engines(report: Report) -> dict[str, bool]:
    """Every plan was read back, and no attention was fused where that was kept off."""
    rows = report["rows"]
    unfused = [row["attention_kernels"] for row in rows if not row["fused_attention"]]
    return {"inspected": all(row["inspected"] for row in rows), "unfused": not any(unfused)}


def training(report: Report) -> dict[str, bool]:
    """The reduced and the dense form of the same weights have the same first loss in float32."""
    ours = "ours, fp32" if "ours, fp32" in report["loss"] else "ours"
    losses = report["loss"][ours], report["loss"]["dense"]
    return {"losses": math.isclose(*losses, rel_tol=SAME_LOSS)}


def bench(report: Report) -> dict[str, bool]:
    """Every bundle that was timed is proven, as far as its proofs are in the receipt."""
    return {
        f"{kind} of {name}": proof is not None and proof["passed"]
        for name, proofs in report.get("proofs", {}).items()
        for kind, proof in proofs.items()
    }


def drift(report: Report) -> dict[str, bool]:
    """Pixels that are given score as their file does, and a fingerprint tells the two apart."""
    fingerprints = report["fingerprints"].values()
    return {
        "runtime_met_again": all(each["met_again"] for each in report["sets"]),
        "fingerprints_apart": len(set(fingerprints)) == len(fingerprints),
    }


def precision(report: Report) -> dict[str, bool]:
    """What `--precision auto` chose keeps its parity, and is the same in any batch."""
    chosen = report["ways"]["auto"]
    return {"auto": chosen["parity"]["passed"] and chosen["batch_drift"] <= SAME_IN_A_BATCH}


def gpu_model(report: Report) -> dict[str, bool]:
    """A contender is at parity and batch-invariant; but for the dense form it repeats itself."""
    return {
        f"{found['precision']}, B{found['batch']}, {name}": _green(found["parity"].get(name), more)
        and (more["repeatable"] or name.startswith("dense"))
        for found in report["verdicts"]
        for name, more in found["others"].items()
    }


def _green(parity: Report | None, more: Report) -> bool:
    return parity is not None and parity["passed"] and more["invariance"]["passed"]


GATES: dict[str, Callable[[Report], dict[str, bool]]] = {
    "bench": bench,
    "kernels": kernels,
    "engines": engines,
    "training": training,
    "drift": drift,
    "precision": precision,
    "gpu-model": gpu_model,
}
