"""`drx reproduce`: one of the paper's tables."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome, add_verb
from drexperts.cli.training_arguments import (
    add_model,
    add_optimisation,
    add_protocol,
    add_resources,
    add_selection,
    model_from,
    resources_from,
    screen_of_first_process,
    train_config_from,
)

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.cli.training_arguments import Start
    from drexperts.paper.results import Reproduction
    from drexperts.ui.screen import Screen


# The columns of every test on the screen; the page also has digests and numbers of images.
_SHOWN = ("trained", "tested on", "split", "epoch", "SRCC", "PLCC")


def add(verbs: "Verbs") -> None:
    summary = "train and test what a table of the paper compares, beside its reported numbers"
    verb = add_verb(verbs, "reproduce", run, summary, "train")
    tables = [f"table{number}" for number in range(1, 6)]
    verb.add_argument("table", choices=tables, help="the table of the paper")
    verb.add_argument(
        "--data-root",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder that holds one folder per data set, such as koniq10k",
    )
    verb.add_argument(
        "--out",
        type=Path,
        default=Path("runs/reproduce"),
        metavar="DIR",
        help="folder for trainings, splits and pages (default: runs/reproduce)",
    )
    verb.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="train only for this data set, variant or share; may be given several times",
    )
    verb.add_argument(
        "--splits", type=int, default=10, metavar="N", help="trainings per cell (default: 10)"
    )
    add_protocol(verb)
    add_selection(verb)
    add_model(verb)
    add_optimisation(verb)
    add_resources(verb)


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.cli.epochs import EpochLines
    from drexperts.paper import ReproductionOptions, reproduce

    screen = screen_of_first_process(arguments, screen)
    start = model_from(arguments, "small", screen.note)
    options = ReproductionOptions(
        new_model=start.make,
        start=_start(arguments, start),
        prior=start.prior,
        published=_is_published(arguments, start),
        fresh=arguments.init is None,
        train_config=lambda recipe: train_config_from(arguments, recipe, start.config),
        splits=arguments.splits,
        protocol=arguments.protocol,
        select_on_test=arguments.select_on_test,
    )
    with screen.progress() as progress:
        done = reproduce(
            arguments.table,
            arguments.data_root,
            arguments.out,
            options,
            only=arguments.only,
            resources=resources_from(arguments),
            watch=EpochLines(screen),
            progress=progress,
        )
    _print(done, arguments.out, screen)
    return Outcome(GATE_FAILED if done.failures else DONE, done.as_json())


def _is_published(arguments: argparse.Namespace, start: "Start") -> bool:
    """Whether the trainings start as the authors' did, from these weights at this image size."""
    from drexperts.model.config import EncoderConfig

    given = arguments.init or arguments.encoder or arguments.prior
    return not given and start.config.encoder == EncoderConfig()


def _print(done: "Reproduction", out: Path, screen: "Screen") -> None:
    from drexperts.paper.page import cells_table, failures_by_error, runs_table, standing
    from drexperts.ui.markdown import Table
    from drexperts.ui.tables import text_table

    tables = screen.tables
    title = f"Table {done.table.removeprefix('table')}: {done.title}"
    headings, rows = cells_table(done)
    # So that a narrow screen breaks between two numbers.
    apart = [(row[0], *(cell.replace("/", " ") for cell in row[1:])) for row in rows]
    caption = "SRCC and PLCC. Only the rows that say `here` were measured here."
    tables.print(text_table(Table(headings, apart), title, caption))
    tables.print(standing(done))
    if any(cell.runs for cell in done.cells):
        tables.print(text_table(runs_table(done, _SHOWN), "Measured here"))
    for error, jobs in failures_by_error(done).items():
        more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        tables.print(f"failed: {jobs[0]}{more}: {error}")
    tables.print(f"page: {out / done.table}.md", soft_wrap=True)


def _start(arguments: argparse.Namespace, start: "Start") -> str:
    """What the trainings start from, in words."""
    if arguments.init is not None:
        return f"the checkpoint {arguments.init}"
    config = start.config
    if start.prior is not None:
        return (
            f"nothing: encoder {config.encoder.name}; {config.controller.name}; preset "
            f"{config.preset}"
        )
    parts = ((name, getattr(arguments, name)) for name in ("encoder", "prior"))
    given = [f"{name} {path}" for name, path in parts if path is not None]
    weights = "published weights" + "".join(f", {text}" for text in given)
    return f"{weights}; preset {config.preset}, {config.encoder.image_size} px"
