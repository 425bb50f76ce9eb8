"""`drx train`: train a model on rated images."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_verb
from drexperts.cli.training_arguments import (
    add_data,
    add_model,
    add_optimisation,
    add_resources,
    add_selection,
    dataset_from,
    model_from,
    recipe_from,
    resources_from,
    screen_of_first_process,
    start_from,
    train_config_from,
)

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.data.dataset import Dataset
    from drexperts.data.splits import Splits
    from drexperts.training.result import TrainingResult
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "train a model on rated images; the same command continues a stopped run"
    verb = add_verb(verbs, "train", run, summary, "train")
    add_data(verb)
    verb.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder of the run"
    )
    verb.add_argument(
        "--splits",
        type=Path,
        metavar="FILE",
        help="take the splits from this file (default: ten random splits, 80 %% for training)",
    )
    chosen = verb.add_mutually_exclusive_group()
    chosen.add_argument(
        "--split", type=int, default=0, metavar="N", help="split to train on (default: 0)"
    )
    chosen.add_argument(
        "--all-splits",
        dest="split",
        action="store_const",
        const=None,
        help="train on all splits, one after the other, each in its own folder below --out",
    )
    verb.add_argument(
        "--select-by",
        choices=("srcc", "plcc"),
        default="srcc",
        help="the correlation that chooses the epoch: of ranks, or linear (default: srcc)",
    )
    add_selection(verb)
    add_model(verb)
    add_optimisation(verb)
    verb.add_argument(
        "--batch", type=int, metavar="N", help="crops per step (default: the data set's recipe)"
    )
    verb.add_argument(
        "--crops",
        type=int,
        metavar="N",
        help="crops per image and epoch (default: the data set's recipe)",
    )
    add_resources(verb)


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.cli.epochs import EpochLines
    from drexperts.runtime.errors import UserError
    from drexperts.training import Run, train

    screen = screen_of_first_process(arguments, screen)
    dataset = dataset_from(arguments)
    screen.note(f"{len(dataset.samples)} images of {dataset.name}, data {dataset.digest}")
    for reason in dataset.skipped:
        screen.note(f"left out: {reason}")
    recipe = recipe_from(arguments)
    splits = _splits(arguments, dataset)
    count, one = len(splits.splits), arguments.split
    if one is not None and not 0 <= one < count:
        raise UserError(f"--split {one} does not exist: there are splits 0 to {count - 1}")
    start = model_from(arguments, recipe.size, screen.note)
    results = {}
    for number in range(count) if one is None else [one]:
        asked = Run(
            dataset=dataset,
            split=splits.splits[number],
            recipe=recipe,
            config=train_config_from(arguments, recipe, start.config),
            protocol=arguments.protocol,
            split_seed=splits.seed,
            select_by=arguments.select_by,
            select_on_test=arguments.select_on_test,
            fresh=arguments.init is None,
            prior=start.prior,
        )
        out = arguments.out if one is not None else arguments.out / f"split-{number}"
        with screen.progress() as progress:
            results[out] = train(
                asked,
                start.make,
                out,
                start=start_from(arguments, start.config),
                resources=resources_from(arguments),
                watch=EpochLines(screen),
                progress=progress,
            )
    return _trained(results, screen)


def _splits(arguments: argparse.Namespace, dataset: "Dataset") -> "Splits":
    from drexperts.data.splits import check_splits, make_splits, read_splits

    if arguments.splits is None:
        validation = 0.0 if arguments.select_on_test else 0.1
        return make_splits(dataset, seed=arguments.seed, validation=validation)
    splits = read_splits(arguments.splits)
    check_splits(splits, dataset)
    return splits


def _trained(results: "dict[Path, TrainingResult]", screen: "Screen") -> Outcome:
    from drexperts.training.run_folder import BEST
    from drexperts.ui.tables import metrics_table

    screen.tables.print(metrics_table([result.test for result in results.values()]))
    for folder, result in results.items():
        screen.tables.print(
            f"split {result.split_digest}: tested on {result.test.images} images, epoch "
            f"{result.best_epoch}, chosen by {result.selection}; {folder / BEST}"
        )
    documents = [result.as_json() for result in results.values()]
    return Outcome(DONE, {"out": [str(folder) for folder in results], "results": documents})
