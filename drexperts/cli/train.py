"""`drx train`: train a model on rated images."""

import argparse
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
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
    train_config_from,
)

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.cli.training_arguments import Start
    from drexperts.data.dataset import Dataset
    from drexperts.data.recipes import Recipe
    from drexperts.data.splits import Splits
    from drexperts.runtime.progress import Progress
    from drexperts.training.result import TrainingResult, Watch
    from drexperts.ui.screen import Screen


# Options that change no result, and what is no option.
_NO_MATTER = {"out", "split", "workers", "cache", "save_minutes", "tensorboard", "json"}
_NO_MATTER |= {"verb", "run", "extra"}


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
    from drexperts.runtime.errors import UserError

    screen = screen_of_first_process(arguments, screen)
    dataset = dataset_from(arguments)
    screen.note(f"{len(dataset.samples)} images of {dataset.name}, data {dataset.digest}")
    for reason in dataset.skipped:
        screen.note(f"left out: {reason}")
    splits = _splits(arguments, dataset)
    count, one = len(splits.splits), arguments.split
    if one is not None and not 0 <= one < count:
        raise UserError(f"--split {one} does not exist: there are splits 0 to {count - 1}")
    trainings = _Trainings(arguments, dataset, splits, screen)
    if one is not None:
        results = {arguments.out: trainings.result(one, arguments.out)}
    else:
        folders = {number: arguments.out / f"split-{number}" for number in range(count)}
        results = {out: trainings.result(number, out) for number, out in folders.items()}
    return _trained(results, screen)


@dataclass
class _Trainings:
    """The trainings that a command asks for, one per split."""

    arguments: argparse.Namespace
    dataset: "Dataset"
    splits: "Splits"
    screen: "Screen"

    def result(self, number: int, out: Path) -> "TrainingResult":
        """Train on a split; of one that is done, read the result, which needs no torch."""
        from drexperts.cli.epochs import EpochLines
        from drexperts.training.files import finished, show_again
        from drexperts.training.place import speaks

        asked, watch = _asked(self.arguments, self.dataset, number), EpochLines(self.screen)
        with self.screen.progress() as progress:
            if (result := finished(out, asked)) is None:
                return self._train(number, out, asked, watch, progress)
            if speaks():
                show_again(result, out, self.dataset, watch, progress)
            return result

    def _train(
        self, number: int, out: Path, asked: str, watch: "Watch", progress: "Progress"
    ) -> "TrainingResult":
        from drexperts.training import Run, train

        arguments, start = self.arguments, self._start
        run = Run(
            dataset=self.dataset,
            split=self.splits.splits[number],
            recipe=self._recipe,
            config=train_config_from(arguments, self._recipe, start.config),
            protocol=arguments.protocol,
            split_seed=self.splits.seed,
            select_by=arguments.select_by,
            select_on_test=arguments.select_on_test,
            fresh=arguments.init is None,
            prior=start.prior,
        )
        return train(
            run,
            start.make,
            out,
            asked=asked,
            resources=resources_from(arguments),
            watch=watch,
            progress=progress,
        )

    @cached_property
    def _recipe(self) -> "Recipe":
        return recipe_from(self.arguments)

    @cached_property
    def _start(self) -> "Start":
        return model_from(self.arguments, self._recipe.size, self.screen.note)


def _asked(arguments: argparse.Namespace, dataset: "Dataset", number: int) -> str:
    """16 hex digits of what a command asks of one split: options, labels, the content of files.

    Two commands with the same digits ask for the same run; of others `train` finds out.
    """
    from drexperts import __version__
    from drexperts.runtime.manifest import sha256_of

    decides = {name: value for name, value in vars(arguments).items() if name not in _NO_MATTER}
    for name, value in decides.items():
        if isinstance(value, Path) and value.is_file():
            decides[name] = sha256_of(value)
    facts = [__version__, dataset.digest, dataset.skipped, number, sorted(decides.items())]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]


def _splits(arguments: argparse.Namespace, dataset: "Dataset") -> "Splits":
    from drexperts.data.splits import check_splits, make_splits, read_splits

    if arguments.splits is None:
        validation = 0.0 if arguments.select_on_test else 0.1
        return make_splits(dataset, seed=arguments.seed, validation=validation)
    splits = read_splits(arguments.splits)
    check_splits(splits, dataset)
    return splits


def _trained(results: "dict[Path, TrainingResult]", screen: "Screen") -> Outcome:
    from drexperts.training.files import BEST, PAGE
    from drexperts.ui.tables import metrics_table

    screen.tables.print(metrics_table([result.test for result in results.values()]))
    for folder, result in results.items():
        screen.tables.print(
            f"split {result.split_digest}: tested on {result.test.images} images, epoch "
            f"{result.best_epoch}, {result.choice}; {folder / BEST}"
        )
    pages = [folder / PAGE if (folder / PAGE).exists() else None for folder in results]
    for page in filter(None, pages):
        screen.tables.print(f"page: {page}", soft_wrap=True)
    document = {
        "out": [str(folder) for folder in results],
        "pages": [page and str(page) for page in pages],
        "results": [result.as_json() for result in results.values()],
    }
    return Outcome(DONE, document)
