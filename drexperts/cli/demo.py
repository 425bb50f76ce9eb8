"""`drx demo`: run every stage on a small model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome, add_verb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from drexperts.cli.arguments import Verbs
    from drexperts.demo.run import ScoredVersion
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "demo", run, "run every stage on a small model", "export")
    verb.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="folder to write the bundle and the page to (default: runs/demo)",
    )


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.bench.report import print_report
    from drexperts.demo import run_demo
    from drexperts.demo.run import AIM
    from drexperts.ui.tables import proof_table

    with screen.progress() as progress:
        report = run_demo(arguments.out, progress)
    screen.tables.print(proof_table(report.engine))
    if report.bench is not None:  # the engine is proven
        screen.tables.print(_score_table(report.held_out))
        screen.tables.print(
            f"{len(report.held_out)} images of photographs that were not trained on: SRCC "
            f"{report.srcc:.3f} (aim {AIM}), PLCC {report.plcc:.3f}"
        )
        print_report(report.bench, screen.tables)
        screen.tables.print(f"a bundle in {report.bundle}, a page with pictures: {report.page}")
    return Outcome(DONE if report.passed else GATE_FAILED, report.as_json())


def _score_table(held_out: "Sequence[ScoredVersion]") -> "Table":
    """The mean label and score of each distortion and level."""
    from statistics import fmean

    from rich.table import Table

    table = Table("distortion", "level", "label", "score", title="held-out photographs, means")
    table.columns[0].no_wrap = True
    for distortion, level in dict.fromkeys((each.distortion, each.level) for each in held_out):
        same = [each for each in held_out if (each.distortion, each.level) == (distortion, level)]
        means = (fmean(each.label for each in same), fmean(each.score for each in same))
        table.add_row(distortion, str(level), *(f"{mean:.0f}" for mean in means))
    return table
