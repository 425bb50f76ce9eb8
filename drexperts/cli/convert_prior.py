"""`drx convert-prior`: reduce the published DA-CLIP to the weights that DR.Experts reads."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_verb

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "reduce the published DA-CLIP to a slim file"
    verb = add_verb(verbs, "convert-prior", run, summary, "train")
    verb.add_argument("source", type=Path, metavar="SOURCE.pt", help="the published file")
    verb.add_argument("target", type=Path, metavar="TARGET.safetensors", help="the file to write")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.model import convert_daclip

    convert_daclip(arguments.source, arguments.target)
    screen.tables.print(f"wrote {arguments.target}")
    return Outcome(DONE, {"target": str(arguments.target)})
