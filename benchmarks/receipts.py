"""Check the committed receipts: their form, their arithmetic, their gates and their source.

    python benchmarks/receipts.py [FILE ...]

Without a name, all of them. What follows from a receipt's raw samples and scores is computed again.
Exit status 1 where something does not hold. A source that has changed since is shown, and is no
fault; a gate that failed is one, unless the receipt says under "known_negative" why it stands.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

# PYTHONSAFEPATH, which this repository asks for, leaves a script's own folder out.
sys.path.append(str(Path(__file__).parent))

from receipt_arithmetic import ReceiptError, claims

from drexperts.provenance import SCHEMA, source_hash

Report = dict[str, Any]

WIDTH = 140  # also where the output is no terminal, as in CI
FOLDER = Path(__file__).parent / "receipts"
FIELDS: dict[str, type | tuple[type, ...]] = {
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
        found = list(claims(report))
    except ReceiptError as error:
        return Finding(path.name, report, 0, [str(error)])
    faults = [fault for claim in found for fault in claim.faults()]
    return Finding(path.name, report, len(found), [*faults, *gate_faults(report)])


def read(path: Path) -> Report:
    """A receipt's document.

    Raises:
        ReceiptError: no JSON document of finite numbers with the head and the gates of a receipt.
    """
    try:
        report = json.loads(path.read_text(), parse_constant=_refuse)
    except (OSError, ValueError) as error:
        raise ReceiptError(f"this is no receipt: {error}") from None
    mistakes = list(form_mistakes(report))
    if mistakes:
        raise ReceiptError("; ".join(mistakes))
    return report


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON, and no result")


def form_mistakes(report: Any) -> Iterator[str]:
    """What the head and the gates lack, or hold in another form."""
    for field, kind in FIELDS.items():
        found = _at(report, field)
        if found is ...:
            yield f"{field} is missing"
        elif not isinstance(found, kind) or found in ("", {}):
            yield f"{field} is {found!r}"
        elif field == "schema" and found != SCHEMA:
            yield f"schema is {found}, and {SCHEMA} is what is read here"
        elif field == "source.sha256" and not re.fullmatch("[0-9a-f]{64}", found):
            yield f"source.sha256 is {found!r}"
        elif field == "gates":
            odd = {name: passed for name, passed in found.items() if not isinstance(passed, bool)}
            yield from (f"gates.{name} is {passed!r}" for name, passed in odd.items())


def _at(node: Any, field: str) -> Any:
    """A field's value by its path, ... where there is none."""
    for name in field.split("."):
        node = node.get(name, ...) if isinstance(node, dict) else ...
    return node


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
    """Whether the source that was measured is the one that is here."""
    try:
        return source_hash(*report["source"]["modules"]) == report["source"]["sha256"]
    except ModuleNotFoundError:
        return False


def table(findings: Sequence[Finding]) -> Table:
    """A row for each receipt."""
    headings = ("receipt", "kind", "machine", "commit", "gates", "source", "recomputed", "")
    shown = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for finding in findings:
        verdict = "DOES NOT HOLD" if finding.faults else "holds"
        shown.add_row(finding.name, *_cells(finding), str(finding.recomputed), verdict)
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
    findings = [check(path) for path in files]
    console = Console(width=WIDTH)
    console.print(table(findings))
    for finding in findings:
        for fault in finding.faults:
            console.print(f"{finding.name}: {fault}", markup=False, highlight=False, soft_wrap=True)
    return 1 if any(finding.faults for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
