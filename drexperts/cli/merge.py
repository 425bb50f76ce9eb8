"""`drx merge`: one file of results from those of all shards."""

import argparse
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_verb

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "merge", run, "merge the results of all shards into one file")
    verb.add_argument("folder", help="the folder that all shards were scored into")
    verb.add_argument(
        "--out",
        metavar="FILE",
        help="a .jsonl, .csv or .parquet file, with its rows sorted by source (default: "
        "scores.jsonl in the folder)",
    )
    verb.add_argument("--overwrite", action="store_true", help="replace --out if it exists")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts import runtime

    with screen.progress() as progress:
        summary = runtime.merge_shards(
            arguments.folder, arguments.out, overwrite=arguments.overwrite, progress=progress
        )
    videos = f", {summary.videos} videos" * (summary.videos > 0)
    counts = f"{summary.images} images of {summary.shards} shards{videos}, {summary.failed} failed"
    screen.tables.print(f"{counts}: {summary.out}")
    return Outcome(DONE, summary.as_json())
