"""Check the committed receipts: their form, their arithmetic, their gates and their source.

    python benchmarks/receipts.py [FILE ...]

Without a name, all of them. What follows from a receipt's raw samples and scores is computed again.
Exit status 1 where something does not hold. A source that has changed since is shown, and is no
fault; a gate that failed is one, unless the receipt says under "known_negative" why it stands.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drexperts.bench import bundle as bench
from drexperts.bench import provenance
from drexperts.bench import training_step as bench_training
from drexperts.bench.provenance import SCHEMA, source_hash

# PYTHONSAFEPATH, which this repository asks for, leaves a script's own folder out.
from drexperts.benchmarks.receipt_arithmetic import ReceiptError, claims
from drexperts.benchmarks.receipt_gates import GATES
from drexperts.benchmarks.receipt_scores import Between
from drexperts.runtime.errors import UserError

Report = dict[str, Any]
Types = type | tuple[type, ...]

WIDTH = 140  # also where the output is no terminal, as in CI
FOLDER = Path(__file__).parent / "receipts"
FIELDS: dict[str, Types] = {
    "kind": str,
    "schema": int,
    "command": str,
    "machine.cpu": str,
    "machine.cores": int,
    "machine.threads": (int, NoneType),
    "machine.system": str,
    "machine.python": str,
    "machine.versions": dict,
    "machine.gpus": list,
    "source.modules": list,
    "source.sha256": str,
    "source.commit": (str, NoneType),
    "gates": dict,
}
OURS = re.compile(r"drexperts(\.[a-z0-9_]+)*", re.ASCII)  # modules whose source is hashed here
# What each kind of receipt must have, and not empty; [] is each entry of a list.
REQUIRED = {
    "bench": (
        "bundle.precision",
        "batches[].latency.engine.samples",
        "engine_gpu[].latency.engine.samples",
        "image.preprocess.samples",
        "image.image_e2e.samples",
        "noise_floor",
    ),
    "kernels": ("verdicts", "rows[].ours", "rows[].latency"),
    "engines": ("rows[].products",),
    "training": ("loss", "latency.ours.samples", "latency.dense.samples"),
    "drift": ("sets[].scores", "sets[].pixels", "sets[].drift", "fingerprints"),
    "precision": (
        "latency.float32.samples",
        "latency.auto.samples",
        "ways.auto.parity",
        "ways.auto.scores",
        "eager_scores",
        "searched",
    ),
    "gpu-model": ("batches[].latency", "verdicts[].scores"),
}
NUMBER = (int, float)
MAY_BE_UNKNOWN = (int, float, NoneType)
# What a kind must have, too, empty or not: without it a table or a caveat says less.
STATED: dict[str, dict[str, Types]] = {
    "bench": {
        "weights": str,
        "bundle.preset": str,
        "bundle.session": str,
        "bundle.bytes": int,
        "boundaries": dict,
        "cold_start.import_s": NUMBER,
        "cold_start.load_s": NUMBER,
        "cold_start.first_inference_s": NUMBER,
        "cold_start.resident_bytes": MAY_BE_UNKNOWN,
        "memory.host_peak_bytes": MAY_BE_UNKNOWN,
        "memory.device_peak_bytes": MAY_BE_UNKNOWN,
        "image.crops": NUMBER,
        "energy.joules_per_image": MAY_BE_UNKNOWN,
        "energy.source": str,
        "against": dict,
        "left_out": dict,
        "scenarios": dict,
        "gpus_after": list,
        "warnings": list,
    },
    "precision": {"span": NUMBER, "layers": int, "islands": list, "ways.auto.batch_drift": NUMBER},
    "gpu-model": {"complete": bool},
}
# Whose source each kind speaks of, at the least.
MODULES = {
    "bench": bench.MODULES,
    "kernels": (
        "drexperts.kernels",
        "drexperts.model.experts",
        "drexperts.model.backbones",
        "drexperts.model.config",
    ),
    "engines": (
        "drexperts.export",
        "drexperts.model.dr_experts",
        "drexperts.model.experts",
        "drexperts.model.backbones",
        "drexperts.model.config",
    ),
    "training": bench_training.MODULES,
    "drift": ("drexperts.runtime", "drexperts.export.proof.agreement"),
    "precision": (
        "drexperts.model.dr_experts",
        "drexperts.model.config",
        "drexperts.export.graph.precision",
        "drexperts.export.graph.to_onnx",
    ),
    "gpu-model": (
        "drexperts.model.dr_experts",
        "drexperts.model.config",
        "drexperts.kernels",
        "drexperts.export.graph.fold",
    ),
}


@dataclass(frozen=True)
class Finding:
    """What was found of one receipt.

    Attributes:
        name: of the file.
        report: the document, empty where it cannot be read.
        recomputed: sets of figures that were computed again.
        faults: a sentence each, which begins with the field.
    """

    name: str
    report: Report
    recomputed: int
    faults: list[str]


def check(path: Path) -> Finding:
    """Read a receipt and hold it against itself."""
    report: Report = {}
    try:
        report = read(path)
        if lacking := list(content_mistakes(report)):
            return Finding(path.name, report, 0, lacking)
        found = list(claims(report))
        faults = [fault for claim in found for fault in claim.faults()]
    except (ReceiptError, RecursionError, OverflowError) as error:
        return Finding(path.name, report, 0, [str(error)])
    recomputed = sum(not isinstance(claim.expected, Between) for claim in found)
    return Finding(path.name, report, recomputed, [*faults, *gate_faults(report)])


def read(path: Path) -> Report:
    """A receipt's document.

    Raises:
        ReceiptError: no JSON document of finite numbers with the head and the gates of a receipt.
    """
    try:
        text = path.read_text()
        report = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise ReceiptError(f"this is no receipt: {error}") from None
    mistakes = list(form_mistakes(report))
    if mistakes:
        raise ReceiptError("; ".join(mistakes))
    return report


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON, and no result")


def _finite(digits: str) -> float:
    """A number that Python reads as infinity, such as 1e999, is none."""
    return value if math.isfinite(value := float(digits)) else _refuse(digits)


def form_mistakes(report: Any) -> Iterator[str]:
    """What the head and the gates lack, or hold in another form."""
    for field, kind in FIELDS.items():
        found = _at(report, field)
        if found is ...:
            yield f"{field} is missing"
        elif not _is(found, kind) or found in ("", {}):
            yield f"{field} is {found!r}"
        elif field == "kind" and found not in GATES:
            yield f"kind is {found!r}, whose gates nothing here decides"
        elif field == "source.modules" and not found:
            yield "source.modules is [], and no source is spoken of"
        elif field == "source.modules":
            yield from (f"source.modules has {name!r}" for name in found if not _is_ours(name))
        elif field == "machine.gpus":
            yield from (f"machine.gpus has {card!r}" for card in found if not _is_card(card))
        elif field == "schema" and found != SCHEMA:
            yield f"schema is {found}, and {SCHEMA} is what is read here"
        elif field == "source.sha256" and not re.fullmatch("[0-9a-f]{64}", found):
            yield f"source.sha256 is {found!r}"
        elif field == "gates":
            odd = {name: passed for name, passed in found.items() if not isinstance(passed, bool)}
            yield from (f"gates.{name} is {passed!r}" for name, passed in odd.items())
    yield from _reasons_mistakes(report)


def _reasons_mistakes(report: Any) -> Iterator[str]:
    known = report.get("known_negative", {}) if isinstance(report, dict) else {}
    if not isinstance(known, dict):
        yield f"known_negative is {known!r}"
        return
    for name, why in known.items():
        if not isinstance(why, str) or not why.strip():
            yield f"known_negative.{name} is {why!r}, no reason"


def _is(value: Any, types: Types) -> bool:
    """Whether it is of such a type; a bool is no number here, whatever Python says."""
    return isinstance(value, types) and (types is bool or not isinstance(value, bool))


def _is_ours(name: Any) -> bool:
    return isinstance(name, str) and OURS.fullmatch(name) is not None


def _is_card(card: Any) -> bool:
    """Whether it names a GPU and its driver, as `provenance.gpu_cards` does."""
    said = card if isinstance(card, dict) else {}
    named = [said.get(key) for key in ("name", "driver_version")]
    return all(isinstance(value, str) and value for value in named)


def _at(node: Any, field: str) -> Any:
    """A field's value by its path, ... where there is none."""
    for name in field.split("."):
        node = node.get(name, ...) if isinstance(node, dict) else ...
    return node


def content_mistakes(report: Report) -> Iterator[str]:
    """What a receipt of its kind lacks: without it, rules and gates hold of nothing."""
    kind = _kind(report)
    for field in REQUIRED[kind]:
        if any(found in (..., None, "", [], {}) for found in _each(report, field)):
            yield f"{field} is missing or empty"
    for field, types in STATED.get(kind, {}).items():
        found = _at(report, field)
        if not _is(found, types):
            yield f"{field} is missing" if found is ... else f"{field} is {found!r}"
    if report["kind"] == "gpu-model" and report.get("complete") is False:
        yield "complete is False: the run was broken off"


def _each(node: Any, field: str) -> Iterator[Any]:
    """A field's values by its path, in every entry of its lists; ... where there is none."""
    first, _, rest = field.partition("[].")
    found = _at(node, first)
    if not rest:
        yield found
        return
    for entry in found if isinstance(found, list) and found else [...]:
        yield from _each(entry, rest)


def _kind(report: Report) -> str:
    """Of report; that of a trial is what it tries."""
    return str(report["kind"]).removesuffix("-trial")


def gate_faults(report: Report) -> Iterator[str]:
    """Gates that failed and are no known negative results, and the other way round."""
    known = report.get("known_negative", {})
    for name, passed in report["gates"].items():
        if not passed and name not in known:
            yield f"gates.{name} is false: it failed, and known_negative does not say why it stands"
    for name in known:
        if report["gates"].get(name) is not False:
            yield f"known_negative.{name} speaks of a gate that did not fail"


def fresh(report: Report) -> bool:
    """Whether the source that was measured is the one that is here, all of it that counts."""
    modules = report["source"]["modules"]
    try:
        same = source_hash(*modules) == report["source"]["sha256"]
    except ModuleNotFoundError:
        return False
    return same and set(MODULES[_kind(report)]) <= set(modules)


def require_this_checkout() -> None:
    """Raises UserError where an installed drexperts would be hashed in place of this checkout."""
    found, checkout = Path(provenance.__file__).resolve(), Path(__file__).resolve().parent.parent
    if not found.is_relative_to(checkout):
        raise UserError(f"{found} is not of {checkout}: pip install --editable {checkout}")


def table(findings: Sequence[Finding]) -> Table:
    """A row for each receipt."""
    headings = ("receipt", "kind", "machine", "commit", "gates", "source", "recomputed", "")
    shown = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for finding in findings:
        verdict = "DOES NOT HOLD" if finding.faults else "holds"
        cells = (finding.name, *_cells(finding), str(finding.recomputed), verdict)
        shown.add_row(*map(escape, cells))
    return shown


def _cells(finding: Finding) -> list[str]:
    report = finding.report
    if not report:
        return [""] * 5
    gpus = [card["name"] for card in report["machine"]["gpus"]]
    failed = [name for name, passed in report["gates"].items() if not passed]
    return [
        report["kind"],
        ", ".join(gpus) or report["machine"]["cpu"],
        report["source"]["commit"] or "",
        f"failed: {', '.join(failed)}" if failed else f"{len(report['gates'])} passed",
        "fresh" if fresh(report) else "stale",
    ]


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    files = parser.parse_args(given).files or sorted(FOLDER.glob("*.json"))
    try:
        require_this_checkout()
    except UserError as error:
        sys.exit(str(error))
    findings = [check(path) for path in files]
    console = Console(width=WIDTH)
    console.print(table(findings))
    for finding in findings:
        for fault in finding.faults:
            console.print(f"{finding.name}: {fault}", markup=False, highlight=False, soft_wrap=True)
    return 1 if any(finding.faults for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
