"""The paper's five tables: every training they need, and ours beside the reported numbers.

Each training has a folder of its own, which the tables share: what is done there is not done
again, and what was killed goes on.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from drexperts.data.dataset import Dataset
from drexperts.data.layouts import open_dataset
from drexperts.data.recipes import RECIPES, Protocol, Recipe
from drexperts.data.splits import Splits, make_splits, reduced, whole, write_splits
from drexperts.evaluation.metrics import json_ready, judge
from drexperts.evaluation.predict import open_model, predict
from drexperts.model.dr_experts import DRExperts
from drexperts.paper.page import page
from drexperts.paper.reported import (
    OURS,
    PERCENTS,
    SOURCE,
    TABLES,
    TRANSFERS,
    reduced_column,
    transfer_column,
)
from drexperts.runtime.errors import ConfigError, DataError, UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.manifest import sha256_of
from drexperts.runtime.progress import Progress
from drexperts.training.distributed import Processes
from drexperts.training.run import start_digest, train
from drexperts.training.run_folder import BEST
from drexperts.training.settings import Resources, Run
from drexperts.training.trainer import TrainConfig

SPLITS = 10

_RESULT = "result.json"
_SHOWN = (
    "split_digest",
    "images",
    "best_epoch",
    "selected_on",
    "skipped",
)  # of a result, on a page

_MODULES = {"Image encoder": "encoder", "DA-CLIP": "daclip", "DSDM": "dsdm", "Full": "full"}
_GROUPS = {
    "Only Dis": "only_dis",
    "Only Sem": "only_sem",
    "Only Bri": "only_bri",
    "w/o Dis": "no_dis",
    "w/o Sem": "no_sem",
    "w/o Bri": "no_bri",
    "Full": "full",
}
# On which images of which data set a training is tested, as the page calls it.
_OWN, _WHOLE, _PART = "test part", "whole target set", "20 % of the target set"


@dataclass(frozen=True)
class Training:
    """What is trained, but for the split.

    share: percent of the data set to learn from, "all" for all of a split's training part
    variant: of `drexperts.model.ablations`
    """

    dataset: str
    share: str = "all"
    variant: str = "full"

    @property
    def name(self) -> str:
        """Of its folder."""
        share = "" if self.share == "all" else f"-{self.share}-percent"
        return f"{self.dataset}-{self.variant}{share}"


@dataclass(frozen=True)
class Cell:
    """One of the paper's cells: what is trained for it, and another data set it is tested on."""

    row: str
    column: str
    training: Training
    target: str | None = None

    @property
    def tests(self) -> tuple[str, ...]:
        """What it is tested on; the released code tests a transfer on a part of its target."""
        return (_OWN,) if self.target is None else (_WHOLE, _PART)


@dataclass(frozen=True)
class Plan:
    """How the trainings are made.

    root: one folder a data set, by our names
    out: for runs, splits and pages
    new_model: what every training starts from
    start: that in words, for the pages: "Trained from ..."
    published: whether those are the weights that the authors started from
    config: of a training, from its data set's recipe
    splits: how many of each training
    fresh: the head is untrained, see `Run`
    """

    root: Path
    out: Path
    new_model: Callable[[], DRExperts]
    start: str
    config: Callable[[Recipe], TrainConfig]
    splits: int = SPLITS
    protocol: Protocol = "grid"
    select_on_test: bool = False
    fresh: bool = False
    published: bool = False

    def __post_init__(self) -> None:
        if self.splits < 1:
            raise ConfigError(f"a table needs one split at least, not {self.splits}")

    def folder(self, training: Training, split: int) -> Path:
        """Where a training is."""
        return self.out / "runs" / training.name / f"split-{split}"


def cells_of(table: str) -> tuple[Cell, ...]:
    """What a table compares, column by column."""
    if table == "table1":
        return tuple(Cell(OURS, name, Training(name)) for name in TABLES[table].columns)
    if table == "table2":
        return tuple(
            Cell(OURS, transfer_column(training, target), Training(training), target)
            for training, target in TRANSFERS
        )
    both = TABLES["table4"].columns
    if table == "table3":
        return tuple(
            Cell(OURS, reduced_column(name, percent), Training(name, str(percent)))
            for percent, name in product(PERCENTS, both)
        )
    rows = _MODULES if table == "table4" else _GROUPS
    return tuple(
        Cell(row, name, Training(name, variant=variant))
        for name, (row, variant) in product(both, rows.items())
    )


def choose(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells of these data sets, variants and shares; where none of a kind is named, of all.

    Raises UserError for a name that is none in these cells.
    """
    named = {
        kind: {getattr(cell.training, kind) for cell in cells}
        for kind in ("dataset", "variant", "share")
    }
    known = set().union(*named.values())
    if strange := [name for name in only if name not in known]:
        raise UserError(f"--only {strange[0]} is not in this table: {', '.join(sorted(known))}")
    wanted = {kind: names & set(only) or names for kind, names in named.items()}
    return [
        cell
        for cell in cells
        if all(getattr(cell.training, kind) in names for kind, names in wanted.items())
    ]


def reproduce(
    table: str, plan: Plan, resources: Resources, progress: Progress, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Make what a table lacks, and its pages `out/<table>.md` and `.json` after every training.

    A training that fails, for want of its data set, say, is on the page and the others go on.

    Args:
        only: data sets to train on, variants and shares ("20"), see `choose`; pages show the others
            as far as they are there.

    Returns:
        What is in the JSON; `failures` is empty if all went well.

    Raises StoppedError after a signal, UserError for an unknown name.
    """
    chosen = choose(cells_of(table), only)
    runs = _Runs(plan, resources, progress)
    failures: list[dict[str, str]] = []
    jobs = list(product(range(plan.splits), chosen))
    report = _report(table, runs, failures)
    for number, (split, cell) in enumerate(jobs, 1):
        job = f"{cell.training.name}, split {split}, on {cell.target or 'its test part'}"
        progress.note(f"{table}, {number} of {len(jobs)}: {job}")
        try:
            runs.make(cell, split)
        except (UserError, OSError) as error:
            failures.append({"job": job, "error": str(error)})
            progress.note(f"{job}: {error}")
        report = _report(table, runs, failures)
        if runs.first:
            _write(plan.out / f"{table}.json", json.dumps(report, indent=2) + "\n")
            _write(plan.out / f"{table}.md", page(report))
    return report


class _Runs:
    """The trainings of a plan: made, tested, and found again."""

    def __init__(self, plan: Plan, resources: Resources, progress: Progress) -> None:
        self.plan, self.resources, self.progress = plan, resources, progress
        self.first = Processes(resources.device).first
        self.starts = cache(partial(start_digest, plan.new_model))
        self._opened: dict[str, tuple[Dataset, Splits] | UserError | OSError] = {}
        self._noted: set[str] = set()

    def make(self, cell: Cell, split: int) -> None:
        """Train and test, if that is not done."""
        # Before the training: it is to no avail without its target.
        target = None if cell.target is None else self.data(cell.target)
        run, folder = self.run(cell.training, split), self.plan.folder(cell.training, split)
        train(run, self.plan.new_model, folder, resources=self.resources, progress=self.progress)
        if target is not None and self.first:
            self._transfer(run, folder, target, split)

    def run(self, training: Training, split: int) -> Run:
        """One training. Raises DataError if its data set cannot be read."""
        dataset, splits = self.data(training.dataset)
        part = splits.splits[split]
        if training.share != "all":
            part = reduced(part, dataset, int(training.share) / 100)
        recipe = RECIPES[training.dataset]
        return Run(
            dataset=dataset,
            split=part,
            recipe=recipe,
            config=self.plan.config(recipe),
            protocol=self.plan.protocol,
            select_on_test=self.plan.select_on_test,
            variant=training.variant,
            fresh=self.plan.fresh,
        )

    def found(self, cell: Cell, split: int) -> dict[str, Any] | None:
        """What a training of this plan came to, under `tests` by what it was tested on.

        None where there is none, and where its data cannot be read: nothing says then that it is
        of this plan. What is damaged is noted, once.
        """
        try:
            result = self._result(cell.training, split)
            return None if result is None else self._shown(cell, split, result)
        except (UserError, OSError) as error:
            if str(error) not in self._noted:
                self.progress.note(str(error))
            self._noted.add(str(error))
            return None

    def _result(self, training: Training, split: int) -> dict[str, Any] | None:
        """What a training of this plan has written, if it is done."""
        path = self.plan.folder(training, split) / _RESULT
        result = _read(path)
        if result is None:
            return None
        _check_result(result, path)
        return result if self._is_of(result, self.run(training, split)) else None

    def _shown(self, cell: Cell, split: int, result: dict[str, Any]) -> dict[str, Any] | None:
        tests, trained_on = {_OWN: result["test"]}, cell.training.dataset
        used = {trained_on: len(self.data(trained_on)[0].samples) - len(result["skipped"])}
        if cell.target is not None:
            target = self.data(cell.target)
            transfer = self._transferred(self.plan.folder(cell.training, split), target, split)
            if transfer is None:
                return None
            tests = transfer["tests"]
            used[cell.target] = len(target[0].samples) - len(transfer["skipped"])
        kept = {name: result[name] for name in _SHOWN}
        return kept | {"split": split, "used": used, "tests": tests}

    def _is_of(self, result: dict[str, Any], run: Run) -> bool:
        """Whether a result is of this run, from these weights."""
        asked = run.settings() | {"model": self.starts(run.config.seed)}
        # Where no epoch could be judged the last is taken; of the images, some may be left out.
        del asked["images"], asked["selected_on"]
        chosen = result["selected_on"] in (run.selected_on, "last epoch")
        return chosen and _plain(asked).items() <= result.items()

    def data(self, name: str) -> tuple[Dataset, Splits]:
        """A data set and its splits, opened once. Raises UserError or OSError, each time."""
        if name not in self._opened:
            try:
                self._opened[name] = self._data(name)
            except (UserError, OSError) as error:
                self._opened[name] = error
        found = self._opened[name]
        if isinstance(found, Exception):
            raise found
        return found

    def _data(self, name: str) -> tuple[Dataset, Splits]:
        dataset = open_dataset(name, self.plan.root / name, skip_bad=self.resources.skip_bad)
        # Without a choice by validation nothing is held back from the training.
        validation = 0.0 if self.plan.select_on_test else 0.1
        count = max(self.plan.splits, SPLITS)
        splits = make_splits(dataset, count=count, validation=validation)
        folder = self.plan.out / "splits"
        folder.mkdir(parents=True, exist_ok=True)
        write_splits(splits, folder / f"{name}.json")
        return dataset, splits

    def _transfer(self, run: Run, folder: Path, target: tuple[Dataset, Splits], split: int) -> None:
        """Test a model on all of another data set, and on the test part of its split."""
        dataset, splits = target
        if self._transferred(folder, target, split) is not None:
            return
        with open_model(folder / BEST, self.resources.device) as scorer:
            found = predict(
                scorer,
                dataset,
                dataset.select(whole(dataset).test),
                protocol=run.protocol,
                recipe=RECIPES[dataset.name],
                seed=run.config.seed,
                skip_bad=self.resources.skip_bad,
                progress=lambda done, total: self.progress(f"on {dataset.name}", done, total),
            )
        parts = {_WHOLE: whole(dataset), _PART: splits.splits[split]}
        tests = {}
        for name, part in parts.items():
            chosen = set(part.test)
            rows = [row for row in found.rows if row.name in chosen]
            if not rows:
                raise DataError(
                    f"none of the {len(part.test)} images can be used that are the {name}, "
                    f"{dataset.name} at {dataset.root}: repair them"
                )
            tests[name] = json_ready(judge([r.label for r in rows], [r.score for r in rows]))
        content = self._transfer_facts(folder, target, split)
        content |= {"skipped": found.skipped, "tests": tests}
        _write(_on(folder, dataset), json.dumps(content, indent=2) + "\n")

    def _transferred(
        self, folder: Path, target: tuple[Dataset, Splits], split: int
    ) -> dict[str, Any] | None:
        """What a transfer came to, if it is done with these data."""
        there = _read(_on(folder, target[0]))
        facts = self._transfer_facts(folder, target, split)
        same = there is not None and there.items() >= facts.items() and _is_transfer(there)
        return there if same else None

    def _transfer_facts(
        self, folder: Path, target: tuple[Dataset, Splits], split: int
    ) -> dict[str, Any]:
        """What decides the numbers of a transfer; the result stands for the model it is of."""
        dataset, splits = target
        return {
            "result": sha256_of(folder / _RESULT),
            "recipe": _plain(asdict(RECIPES[dataset.name])),
            "data_digest": dataset.digest,
            "split_digest": splits.splits[split].digest,
        }


def _report(table: str, runs: _Runs, failures: Sequence[dict[str, str]]) -> dict[str, Any]:
    """A table as JSON: every cell with what was measured here and what is reported."""
    plan = runs.plan
    return {
        "table": table,
        "title": TABLES[table].title,
        "source": SOURCE,
        "start": plan.start,
        "published": plan.published,
        "schedules": sorted({_schedule(plan, cell.training) for cell in cells_of(table)}),
        "protocol": plan.protocol,
        "selected_on": "test" if plan.select_on_test else "validation",
        "splits": plan.splits,
        "cells": [_measured(cell, runs) for cell in cells_of(table)],
        "failures": list(failures),
    }


def _schedule(plan: Plan, training: Training) -> str:
    config = plan.config(RECIPES[training.dataset])
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    return f"{epochs} at a learning rate of {config.schedule.rate:g}"


def _measured(cell: Cell, runs: _Runs) -> dict[str, Any]:
    found = [one for i in range(runs.plan.splits) if (one := runs.found(cell, i)) is not None]
    return asdict(cell) | {
        "name": cell.training.name,
        "medians": {test: _median([one["tests"][test] for one in found]) for test in cell.tests},
        "runs": found,
    }


def _median(tests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of SRCC and PLCC over the splits that are done, and how many those are.

    None where one is None: scores that are all the same follow no labels.
    """
    medians: dict[str, Any] = {"splits": len(tests)}
    for name in ("srcc", "plcc"):
        values = [test[name] for test in tests]
        medians[name] = median(values) if values and None not in values else None
    return medians


def _on(folder: Path, target: Dataset) -> Path:
    """Where the tests of a training on another data set are."""
    return folder / f"on-{target.name}.json"


def _plain(content: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(content))


def _read(path: Path) -> dict[str, Any] | None:
    """Raises UserError for what is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: remove it, and it is made again")
    return content


def _check_result(result: dict[str, Any], path: Path) -> None:
    """Raises UserError for what no training wrote."""
    lists = all(isinstance(result.get(name), list) for name in ("images", "skipped"))
    there = result.keys() >= set(_SHOWN) and lists
    if not (there and _is_judged(result.get("test"))):
        raise UserError(f"{path} is no result of a training: remove it, and it is made again")


def _is_transfer(content: dict[str, Any]) -> bool:
    tests = content.get("tests")
    if not isinstance(tests, dict) or not isinstance(content.get("skipped"), list):
        return False
    return tests.keys() == {_WHOLE, _PART} and all(map(_is_judged, tests.values()))


def _is_judged(test: Any) -> bool:
    if not isinstance(test, dict):
        return False
    return all(isinstance(test.get(name, ""), float | int | None) for name in ("srcc", "plcc"))


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")
