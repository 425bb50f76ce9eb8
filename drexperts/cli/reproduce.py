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
    from drexperts.model.config import DRExpertsConfig
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "one of the paper's comparisons: ours beside the reported numbers"
    verb = add_verb(verbs, "reproduce", run, summary, "train")
    verb.add_argument("table", choices=[f"table{number}" for number in range(1, 6)])
    verb.add_argument(
        "--data-root", type=Path, required=True, metavar="DIR", help="a folder a data set: koniq10k"
    )
    verb.add_argument("--out", type=Path, default=Path("runs/reproduce"), metavar="DIR")
    verb.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="data set, variant or share"
    )
    verb.add_argument("--splits", type=int, default=10, metavar="N", help="how many; 10")
    add_protocol(verb)
    add_selection(verb)
    add_model(verb)
    add_optimisation(verb)
    add_resources(verb)


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.paper.reproduce import Plan, reproduce

    screen = screen_of_first_process(arguments, screen)
    config, new_model = model_from(arguments, "small")
    plan = Plan(
        arguments.data_root,
        arguments.out,
        new_model,
        _start(arguments, config),
        lambda recipe: train_config_from(arguments, recipe, config),
        arguments.splits,
        arguments.protocol,
        arguments.select_on_test,
        fresh=arguments.init is None,
        published=not (arguments.init or arguments.encoder or arguments.prior),
    )
    resources = resources_from(arguments)
    with screen.progress() as progress:
        report = reproduce(arguments.table, plan, resources, progress, arguments.only)
    page = arguments.out / f"{arguments.table}.md"
    if page.exists():
        screen.tables.print(page.read_text(encoding="utf-8"))
    return Outcome(GATE_FAILED if report["failures"] else DONE, report)


def _start(arguments: argparse.Namespace, config: "DRExpertsConfig") -> str:
    """In words, what the models of a table start from."""
    if arguments.init is not None:
        return f"the checkpoint {arguments.init}"
    parts = ((name, getattr(arguments, name)) for name in ("encoder", "prior"))
    given = [f"{name} {path}" for name, path in parts if path is not None]
    weights = "published weights" + "".join(f", {text}" for text in given)
    return f"{weights}; preset {config.preset}, {config.encoder.image_size} px"
