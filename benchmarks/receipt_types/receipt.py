"""A receipt: what one measurement observed, on which machine, from which source.

A receipt holds raw samples. Medians, ratios, intervals, verdicts and tables are computed from them
when it is shown, so that nothing in it can contradict anything else in it.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drexperts.bench.provenance import Gpu, Machine, Source
from drexperts.runtime.errors import UserError
from drexperts.ui.markdown import Table, markdown_table, markdown_text

Part = str | Table  # a paragraph or a table of a page
Samples = tuple[float, ...]  # seconds, one per round

REASON = 80  # characters of a reason in a page; the receipt has the whole of it
WEIGHTS = {
    "random": "The weights are random: no score here is a quality.",
    "demo": "The weights are the demo's: a small model, trained on synthetic distortions alone.",
    "trained": "",
}


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What every receipt has.

    command: repeats the measurement
    """

    command: str
    machine: Machine
    source: Source


@dataclass(frozen=True)
class GpuStates:
    """The state of the GPUs before and after a part of the measurement."""

    during: str
    before: tuple[Gpu, ...]
    after: tuple[Gpu, ...]


def add_receipt_option(parser: argparse.ArgumentParser) -> None:
    """Add `--receipt FILE`, which is refused before anything is measured if it has no folder."""
    parser.add_argument("--receipt", type=_in_a_folder, metavar="FILE", help="write a receipt")


def _in_a_folder(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def machine_line(machine: Machine, *more: str) -> str:
    """The GPUs, the CPU, and what else there is to say, as a sentence."""
    gpus = [f"{gpu.name}, driver {gpu.driver or 'unknown'}" for gpu in machine.gpus or ()]
    return "; ".join([*gpus, f"{machine.cpu}, {machine.cores} cores", *more]) + "."


def require_gpu(trial: bool, device: str | None) -> None:
    """Raise UserError for a receipt that was not measured on a GPU."""
    if trial or device is None:
        raise UserError("a trial, or a receipt from a CPU, has no place in the section for GPUs")


def left_out(reasons: dict[str, str]) -> Iterator[str]:
    """What could not be measured and why, as one paragraph; nothing if there is nothing."""
    if reasons:
        shown = "; ".join(f"{name} ({shortened(why)})" for name, why in reasons.items())
        yield f"Left out. {markdown_text(shown)}."


def shortened(reason: str) -> str:
    """A reason that is cut after a word."""
    return reason if len(reason) <= REASON else reason[:REASON].rsplit(" ", 1)[0] + " ..."


def three_digits(value: float) -> str:
    """A number to three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def markdown(parts: Iterable[Part]) -> str:
    """Paragraphs and tables as Markdown, with an empty line around each."""
    texts = [part if isinstance(part, str) else "\n".join(markdown_table(part)) for part in parts]
    return "".join(f"\n{text}\n" for text in texts)
