"""`drx compare`: what changes from one set of scores to another."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome, add_verb, check_out

if TYPE_CHECKING:
    from rich.table import Table

    from drexperts.cli.arguments import Verbs
    from drexperts.evaluation import ResultComparison
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "compare two result files, or two bundles on images, such as before an upgrade"
    verb = add_verb(verbs, "compare", run, summary, "report")
    for name in ("a", "b"):
        verb.add_argument(
            name,
            metavar=name.upper(),
            help="a .jsonl, .csv or .parquet file of scores, the URL of one, or a bundle's folder",
        )
    verb.add_argument(
        "images",
        nargs="*",
        metavar="path",
        help="what bundles score: an image, a folder, an archive, a pattern or a URL, as for "
        "`drx score`",
    )
    verb.add_argument(
        "--across",
        action="store_true",
        help="compare also scores on other scales, of other crop grids or, of two bundles, of "
        "another preprocessing; B is mapped to the scale of A",
    )
    verb.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="how large a change matters, in units of the score of A (default: 1 %% of its scale)",
    )
    verb.add_argument(
        "--device",
        default="auto",
        help="where bundles run: auto, cpu, cuda, or a GPU such as cuda:1 (default: auto)",
    )
    verb.add_argument(
        "--page",
        type=Path,
        metavar="FILE.html",
        help="write a page with the pictures that moved most (default: none)",
    )
    verb.add_argument(
        "--min-srcc",
        type=float,
        metavar="X",
        help="exit with status 1 if the rank correlation is lower (default: any will do)",
    )
    verb.add_argument(
        "--max-change",
        type=float,
        metavar="X",
        help="exit with status 1 if the score of an image changed by more (default: any will do)",
    )


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.evaluation import compare_results

    if arguments.page is not None:
        from drexperts.evaluation import write_comparison_page  # a library may be missing

        _check_page(arguments.page)
    with screen.progress() as progress:
        found = compare_results(
            arguments.a,
            arguments.b,
            arguments.images,
            across=arguments.across,
            threshold=arguments.threshold,
            device=arguments.device,
            progress=progress,
        )
    for line in found.differing:
        screen.note(f"the scores do not mean the same: {line}")
    for table in comparison_tables(found):
        screen.tables.print(table)
    if arguments.page is not None:
        write_comparison_page(found, arguments.page)
        screen.tables.print(f"page: {arguments.page}")
    failed = list(_failed_gates(arguments, found))
    for line in failed:
        screen.tables.print(f"FAILS: {line}")
    document = found.as_json() | {"failed": failed}
    return Outcome(GATE_FAILED if failed else DONE, document)


def _check_page(path: Path) -> None:
    from drexperts.runtime.errors import UserError

    if path.suffix.lower() not in (".html", ".htm"):  # such as a result file, which would be lost
        raise UserError(f"--page {path}: name a .html file")
    check_out(path, "--page")


def _failed_gates(arguments: argparse.Namespace, found: "ResultComparison") -> Iterator[str]:
    least, most = arguments.min_srcc, arguments.max_change
    if least is not None and not found.srcc >= least:
        shown = "not defined" if found.srcc != found.srcc else f"{found.srcc:.7g}"
        yield f"the rank correlation is {shown}, and --min-srcc asks for {least:g}"
    if most is not None and not found.largest <= most:
        yield f"an image changed by {found.largest:.7g}, and --max-change allows {most:g}"


def comparison_tables(found: "ResultComparison") -> "list[Table]":
    """The tables of a comparison."""
    from drexperts.evaluation import upgrade_tables as tables
    from drexperts.ui.tables import text_table

    shown = [
        text_table(tables.sides_table(found), "what is compared", whole=(1, 2)),
        text_table(tables.agreement_table(found), "how far B agrees with A"),
        text_table(tables.distribution_table(found), "scores and their changes"),
    ]
    if found.most_moved:
        shown.append(text_table(tables.moved_table(found), "what moved most", whole=(0,)))
    if found.newly_failed:
        title = "errors that A does not have"
        shown.append(text_table(tables.failed_table(found), title, whole=(0,)))
    return shown
