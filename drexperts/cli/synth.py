"""`drx synth`: a labelled set of distorted pictures from clean ones."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_verb

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "a labelled set from a folder of clean pictures: distortions at five levels"
    verb = add_verb(verbs, "synth", run, summary, "train")
    verb.add_argument("clean", type=Path, metavar="CLEAN_DIR")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument("--types", metavar="A,B", help="of the distortions; all 25")
    verb.add_argument("--levels", default="1-5", metavar="1-5")
    verb.add_argument("--blocks", type=int, default=0, metavar="N", help="mixed images a picture")
    verb.add_argument("--side", type=int, default=512, metavar="N", help="most of a shorter side")
    verb.add_argument("--seed", type=int, default=0, metavar="N")
    verb.add_argument("--workers", type=int, metavar="N", help="processes")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.data.synthetic_set import SCORE, SynthConfig, parse_levels, write_synthetic_set

    given = {"levels": parse_levels(arguments.levels), "blocks": arguments.blocks}
    given |= {"seed": arguments.seed, "side": arguments.side}
    if arguments.types is not None:
        given["types"] = tuple(arguments.types.split(","))
    with screen.progress() as progress:
        report = write_synthetic_set(
            arguments.clean,
            arguments.out,
            SynthConfig(**given),
            workers=arguments.workers,
            progress=progress,
        )
    for reason in report["skipped"]:
        screen.note(f"left out: {reason}")
    screen.tables.print(f"{arguments.out}: {report['images']} images; a score is {SCORE}")
    return Outcome(DONE, report)
