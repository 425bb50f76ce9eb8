"""`drx explain`: draw where the experts look in a photograph."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import (
    DONE,
    Outcome,
    add_crops_per_side,
    add_engine,
    add_scale,
    add_verb,
    check_out,
    scale_of,
)

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "draw where the experts look in a photograph"
    verb = add_verb(verbs, "explain", run, summary, "train")
    verb.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint or a bundle's folder")
    verb.add_argument("photo", type=Path, metavar="PHOTO", help="the photograph to explain")
    verb.add_argument(
        "--out", type=Path, required=True, metavar="FILE.png", help="where the picture is written"
    )
    verb.add_argument(
        "--compare",
        action="store_true",
        help="show the attention of the prior (DA-CLIP, or a small one if the model started from "
        "nothing), that of the encoder and their difference; needs a checkpoint",
    )
    add_engine(verb)
    add_scale(verb)
    add_crops_per_side(verb)


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.evaluation import explain
    from drexperts.runtime.errors import UserError
    from drexperts.runtime.files import written_whole

    if arguments.out.suffix.lower() != ".png":
        raise UserError(f"{arguments.out}: the picture is a PNG, so its name must end in .png")
    check_out(arguments.out)
    scale = None if arguments.scale is None else scale_of(arguments.scale)
    picture = explain(
        arguments.model,
        arguments.photo,
        compare=arguments.compare,
        engine=arguments.engine,
        scale=scale,
        crops_per_side=arguments.crops_per_side,
    )
    with written_whole(arguments.out) as aside:
        picture.save(aside, "PNG")
    screen.tables.print(f"wrote {arguments.out}")
    return Outcome(DONE, {"out": str(arguments.out)})
