"""`drx convert-prior`: the published DA-CLIP reduced to the weights that are read."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_verb

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "the published DA-CLIP to a slim file, once"
    verb = add_verb(verbs, "convert-prior", run, summary, "train")
    verb.add_argument("source", type=Path, metavar="SOURCE.pt")
    verb.add_argument("target", type=Path, metavar="TARGET.safetensors")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.model.daclip import convert_daclip

    convert_daclip(arguments.source, arguments.target)
    screen.tables.print(f"wrote {arguments.target}")
    return Outcome(DONE, {"target": str(arguments.target)})
