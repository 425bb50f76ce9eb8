"""`drx synth`: a labelled set of distorted pictures from clean ones."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_verb

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "make a labelled set from clean pictures: 25 distortions at five levels"
    verb = add_verb(verbs, "synth", run, summary, "train")
    verb.add_argument("clean", type=Path, metavar="CLEAN_DIR", help="the folder of clean pictures")
    verb.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder of the set"
    )
    verb.add_argument("--types", metavar="A,B", help="types of distortion (default: all 25)")
    verb.add_argument(
        "--levels", default="1-5", metavar="LEVELS", help="levels such as 1,3-4 (default: 1-5)"
    )
    verb.add_argument(
        "--blocks",
        type=int,
        default=0,
        metavar="N",
        help="images per picture whose blocks have different distortions (default: 0)",
    )
    verb.add_argument(
        "--side",
        type=int,
        default=512,
        metavar="N",
        help="pixels to which the shorter side of larger pictures is reduced (default: 512)",
    )
    verb.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed for everything random (default: 0)"
    )
    verb.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per CPU that may be used)"
    )


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.data import SynthConfig, synthesise
    from drexperts.data.synthetic_set import parse_levels

    types = {} if arguments.types is None else {"types": tuple(arguments.types.split(","))}
    config = SynthConfig(
        levels=parse_levels(arguments.levels),
        blocks=arguments.blocks,
        seed=arguments.seed,
        side=arguments.side,
        **types,
    )
    with screen.progress() as progress:
        made = synthesise(
            arguments.clean, arguments.out, config, workers=arguments.workers, progress=progress
        )
    for reason in made.skipped:
        screen.note(f"left out: {reason}")
    screen.tables.print(f"{made.out}: {made.images} images; a score is {made.score}")
    return Outcome(DONE, made.as_json())
