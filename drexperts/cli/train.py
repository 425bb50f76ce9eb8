"""`drx train`: fine-tune a model on rated images."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    train_config_from,
)

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.data.dataset import Dataset
    from drexperts.data.splits import Splits
    from drexperts.evaluation.metrics import Metrics
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "fine-tune on rated images; killed or stopped, the same command goes on"
    verb = add_verb(verbs, "train", run, summary, "train")
    add_data(verb)
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument(
        "--splits", type=Path, metavar="FILE", help="of an earlier run; by default 80/20, ten times"
    )
    chosen = verb.add_mutually_exclusive_group()
    chosen.add_argument("--split", type=int, default=0, metavar="N", help="which; 0")
    chosen.add_argument(
        "--all-splits", dest="split", action="store_const", const=None, help="one after the other"
    )
    add_selection(verb)
    add_model(verb)
    add_optimisation(verb)
    verb.add_argument("--batch", type=int, metavar="N", help="crops a step; the data set's")
    verb.add_argument("--crops", type=int, metavar="N", help="of an image and epoch; the set's")
    add_resources(verb)


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.training.run import train_run
    from drexperts.training.settings import Run
    from drexperts.training.torchrun import speaks

    screen = screen_of_first_process(arguments, screen)
    dataset = dataset_from(arguments)
    screen.note(f"{len(dataset.samples)} images of {dataset.name}, data {dataset.digest}")
    for reason in dataset.skipped:
        screen.note(f"left out: {reason}")
    recipe = recipe_from(arguments)
    splits = _splits(arguments, dataset)
    chosen = range(len(splits.splits)) if arguments.split is None else [arguments.split]
    config, new_model = model_from(arguments, recipe.size)
    results, folders = [], []
    for number in chosen:
        split = _numbered(splits, number)
        run = Run(
            dataset,
            split,
            split.digest,
            recipe,
            train_config_from(arguments, recipe, config),
            arguments.protocol,
            arguments.select_on_test,
            fresh=arguments.init is None,
        )
        out = arguments.out if arguments.split is not None else arguments.out / f"split-{number}"
        folders.append(out)
        with screen.progress() as progress:
            results.append(train_run(run, new_model, out, resources_from(arguments), progress))
        # Of this split only: on the test part of another, this model would know the images.
        if speaks():
            _write_split(replace(splits, splits=(split,)), out / "splits.json", arguments.splits)
    return _trained(folders, results, screen)


def _write_split(splits: "Splits", path: Path, given: Path | None) -> None:
    """Unless it is the file that the split is from, which may hold others."""
    from drexperts.data.splits import write_splits

    if given is None or not (path.exists() and path.samefile(given)):
        write_splits(splits, path)


def _splits(arguments: argparse.Namespace, dataset: "Dataset") -> "Splits":
    from drexperts.data.splits import check_splits, make_splits, read_splits

    if arguments.splits is None:
        validation = 0.0 if arguments.select_on_test else 0.1
        return make_splits(dataset, seed=arguments.seed, validation=validation)
    splits = read_splits(arguments.splits)
    check_splits(splits, dataset)
    return splits


def _numbered(splits: "Splits", number: int) -> Any:
    from drexperts.runtime.errors import UserError

    if not 0 <= number < len(splits.splits):
        raise UserError(f"--split {number}: there are splits 0 to {len(splits.splits) - 1}")
    return splits.splits[number]


def _trained(folders: list[Path], results: list[dict[str, Any]], screen: "Screen") -> Outcome:
    from drexperts.training.run_folder import BEST
    from drexperts.ui.tables import metrics_table

    screen.tables.print(metrics_table([_metrics(result["test"]) for result in results]))
    for folder, result in zip(folders, results, strict=True):
        screen.tables.print(
            f"split {result['split_digest']}: tested on {result['test']['images']} images, epoch "
            f"{result['best_epoch']}, chosen on: {result['selected_on']}; {folder / BEST}"
        )
    document = {"out": [str(folder) for folder in folders], "results": results}
    return Outcome(DONE, document)


def _metrics(document: dict[str, Any]) -> "Metrics":
    """The metrics that `json_ready` made a document of."""
    from math import nan

    from drexperts.evaluation.metrics import NAMES, Interval, Metrics

    numbers = {name: nan if document[name] is None else document[name] for name in NAMES}
    intervals = {
        name: Interval(*(nan if end is None else end for end in ends.values()))
        for name, ends in document["intervals"].items()
    }
    return Metrics(document["images"], **numbers, intervals=intervals)
