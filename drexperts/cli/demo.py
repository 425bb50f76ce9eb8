"""`drx demo`: every stage on a small model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome, add_verb

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "demo", run, "every stage on a small model, on this machine", "export")
    verb.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.demo.run import run_demo

    with screen.progress() as progress:
        report = run_demo(arguments.out, screen.tables, progress)
    return Outcome(DONE if report["passed"] else GATE_FAILED, report)
