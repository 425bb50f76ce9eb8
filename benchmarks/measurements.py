"""Write the measured tables into the documentation and README.md from the committed receipts.

    python benchmarks/measurements.py [--check]

With --check nothing is written: exit status 1 if a file differs from what the receipts give, with
the difference. Each receipt is listed with its commit, and whether its source has changed since.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from drexperts.bench.json_files import read_json
from drexperts.bench.provenance import staleness
from drexperts.bench.reports import TrainingReport
from drexperts.benchmarks.receipt_types import (
    crossings_receipt,
    drift_receipt,
    engine_receipt,
    full_size_receipt,
    grid_receipt,
    kernel_receipt,
    learning_receipt,
    model_receipt,
    precision_receipt,
    scale_receipt,
    serve_receipt,
    training_receipt,
)
from drexperts.benchmarks.receipt_types.full_size_receipt import FullSizeReceipt
from drexperts.benchmarks.receipt_types.receipt import Part, Receipt, markdown
from drexperts.runtime.errors import UserError

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "receipts"
DOCS, README = HERE.parent / "docs", HERE.parent / "README.md"
PAGE, CAPACITY = DOCS / "measurements.md", DOCS / "capacity.md"
NO_GPU = """
No measurement on a GPU is committed yet: `bash benchmarks/gpu_suite.sh OUT` makes one.

"""


@dataclass(frozen=True)
class Kind:
    """A kind of receipt, and what a page shows of one.

    files: a pattern of their names
    """

    files: str
    receipt: type[Any]
    parts: Callable[[Any], Iterator[Part]]


FULL_SIZE = Kind("full-size-*.json", full_size_receipt.FullSizeReceipt, full_size_receipt.parts)
# What the page has between <!-- name --> and <!-- end of name -->.
SECTIONS = {
    "measured": (FULL_SIZE,),
    "head": (Kind("kernels-cpu.json", kernel_receipt.KernelReceipt, kernel_receipt.cpu_parts),),
    "training": (Kind("training-*.json", TrainingReport, training_receipt.parts),),
    "precision": (
        Kind("precision*.json", precision_receipt.PrecisionReceipt, precision_receipt.parts),
    ),
    "crossings": (
        Kind("crossings-*.json", crossings_receipt.CrossingsReceipt, crossings_receipt.parts),
    ),
    "learning": (Kind("learning*.json", learning_receipt.LearningReceipt, learning_receipt.parts),),
    "grids": (Kind("grids*.json", grid_receipt.GridReceipt, grid_receipt.parts),),
    "serving": (Kind("serve-*.json", serve_receipt.ServeReceipt, serve_receipt.parts),),
    "scale": (Kind("scale-*.json", scale_receipt.ScaleReceipt, scale_receipt.parts),),
    "drift": (Kind("drift*.json", drift_receipt.DriftReceipt, drift_receipt.parts),),
    "engines": (Kind("engines-*.json", engine_receipt.EngineReceipt, engine_receipt.parts),),
    "gpu": (
        Kind("kernels-gpu.json", kernel_receipt.KernelReceipt, kernel_receipt.gpu_parts),
        Kind("model-*-gpu.json", model_receipt.ModelReceipt, model_receipt.parts),
    ),
}
# The same of the page on capacity.
CAPACITIES = {
    "capacity": (Kind("scale-*.json", scale_receipt.ScaleReceipt, scale_receipt.capacity),)
}
WITHOUT = {"gpu": NO_GPU}  # what a section says that has no receipt


def receipts(kinds: Iterable[Kind], folder: Path | None = None) -> Iterator[tuple[Path, Any, Kind]]:
    """The receipts of some kinds. Raises UserError for a file that is not one."""
    for kind in kinds:
        for path in sorted((folder or FOLDER).glob(kind.files)):
            yield path, read_json(path, kind.receipt), kind


def section(
    name: str, folder: Path | None = None, sections: Mapping[str, tuple[Kind, ...]] = SECTIONS
) -> str:
    """What a section of a page shows of its receipts."""
    found = [
        markdown([measured_by(receipt), *kind.parts(receipt)])
        for _, receipt, kind in receipts(sections[name], folder)
    ]
    return "".join(found) + "\n" if found else WITHOUT.get(name, "\n")


def measured_by(receipt: Receipt | FullSizeReceipt | TrainingReport) -> str:
    """The command that measured, and the commit that it ran at."""
    commit = receipt.source.commit
    at = "outside a checkout" if commit is None else f"at commit `{commit[:7]}`"
    changed = ", with changes" if receipt.source.dirty else ""
    return f"Measured {at}{changed} by `{receipt.command}`."


def page(
    text: str, folder: Path | None = None, sections: Mapping[str, tuple[Kind, ...]] = SECTIONS
) -> str:
    """A page with every section as its receipts give it.

    Raises UserError if the page lacks a section, or for a file that is not a receipt.
    """
    for name in sections:
        text, found = filled(text, name, section(name, folder, sections))
        if found != 1:
            raise UserError(f"the page needs one <!-- {name} --> with its <!-- end of {name} -->")
    return text


def readme(text: str, folder: Path | None = None) -> str:
    """The README with its one table; unchanged if it has no place for it."""
    for _, receipt, _ in receipts([FULL_SIZE], folder):
        text, _ = filled(text, "measured", markdown(full_size_receipt.summary(receipt)) + "\n")
    return text


def filled(text: str, name: str, content: str) -> tuple[str, int]:
    """A text with new content between a section's markers, and how often it has them."""
    marked = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)
    return marked.subn(lambda _: content, text)


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, show what differs")
    only_check = parser.parse_args(given).check
    differs = False
    try:
        capacity = partial(page, sections=CAPACITIES)
        for path, make in ((PAGE, page), (CAPACITY, capacity), (README, readme)):
            before = path.read_text(encoding="utf-8")
            after = make(before)
            differs |= before != after
            if only_check:
                sys.stdout.writelines(difference(path.name, before, after))
            else:
                path.write_text(after, encoding="utf-8")
        sys.stdout.writelines(state())
    except UserError as error:
        sys.exit(str(error))
    return int(only_check and differs)


def difference(name: str, before: str, after: str) -> Iterator[str]:
    """How a file differs from what the receipts give, as a unified diff."""
    old, new = (text.splitlines(keepends=True) for text in (before, after))
    return difflib.unified_diff(old, new, name, "from the receipts")


def state() -> Iterator[str]:
    """A line per receipt: its commit, and whether the source it depends on is still the same."""
    for kinds in SECTIONS.values():
        for path, receipt, _ in receipts(kinds):
            commit = (receipt.source.commit or "no commit")[:9]
            yield f"{path.name}: {commit}, {staleness(receipt.source)}\n"


if __name__ == "__main__":
    sys.exit(main())
