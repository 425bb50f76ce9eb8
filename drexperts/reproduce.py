"""The paper's five tables: every training they need, and ours beside the reported numbers.

Each training has a folder of its own, which the tables share: what is done there is not done
again, and what was killed goes on.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from drexperts.data import Dataset
from drexperts.evaluate import json_ready, judge
from drexperts.files import written_whole
from drexperts.layouts import open_dataset
from drexperts.model import DRExperts
from drexperts.predict import open_model, predict
from drexperts.processes import Processes
from drexperts.recipes import RECIPES, Protocol, Recipe
from drexperts.report import PhaseScreen
from drexperts.reported import (
    OURS,
    PERCENTS,
    SOURCE,
    TABLES,
    TRANSFERS,
    reduced_column,
    transfer_column,
)
from drexperts.reproduce_page import page
from drexperts.run_folder import BEST
from drexperts.run_settings import Resources, Run
from drexperts.runtime.errors import ConfigError, UserError
from drexperts.runtime.manifest import sha256_of
from drexperts.splits import Splits, make_splits, reduced, whole, write_splits
from drexperts.train import TrainConfig
from drexperts.training_run import train_run

SPLITS = 10

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
    variant: of `drexperts.ablation`
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
    start: that in words, for the pages
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
    table: str, plan: Plan, resources: Resources, screen: PhaseScreen, only: Sequence[str] = ()
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
    runs = _Runs(plan, resources, screen)
    failures: list[dict[str, str]] = []
    jobs = list(product(range(plan.splits), chosen))
    report = _report(table, runs, failures)
    for number, (split, cell) in enumerate(jobs, 1):
        job = f"{cell.training.name}, split {split}, on {cell.target or 'its test part'}"
        screen.note(f"{table}, {number} of {len(jobs)}: {job}")
        try:
            runs.make(cell, split)
        except (UserError, OSError) as error:
            failures.append({"job": job, "error": str(error)})
            screen.note(f"{job}: {error}")
        report = _report(table, runs, failures)
        if runs.first:
            _write(plan.out / f"{table}.json", json.dumps(report, indent=2) + "\n")
            _write(plan.out / f"{table}.md", page(report))
    return report


class _Runs:
    """The trainings of a plan: made, tested, and found again."""

    def __init__(self, plan: Plan, resources: Resources, screen: PhaseScreen) -> None:
        self.plan, self.resources, self.screen = plan, resources, screen
        self.first = Processes(resources.device).first
        self.data = cache(self._data)

    def make(self, cell: Cell, split: int) -> None:
        """Train and test, if that is not done."""
        # Before the training: it is to no avail without its target.
        target = None if cell.target is None else self.data(cell.target)
        run, folder = self.run(cell.training, split), self.plan.folder(cell.training, split)
        train_run(run, self.plan.new_model, folder, self.resources, self.screen)
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
            dataset,
            part,
            part.digest,
            recipe,
            self.plan.config(recipe),
            self.plan.protocol,
            self.plan.select_on_test,
            training.variant,
            self.plan.fresh,
        )

    def found(self, cell: Cell, split: int) -> dict[str, Any] | None:
        """What a training of this plan came to, under `tests` by what it was tested on."""
        folder = self.plan.folder(cell.training, split)
        result = _read(folder / "result.json")
        recipe = RECIPES[cell.training.dataset]
        asked = (_plain(asdict(self.plan.config(recipe))), self.plan.protocol)
        if result is None or (result["config"], result["protocol"]) != asked:
            return None
        if (result["selected_on"] == "test") != self.plan.select_on_test:
            return None
        tests = {_OWN: result["test"]}
        if cell.target is not None:
            tests = (_read(folder / f"on-{cell.target}.json") or {}).get("tests", {})
        kept = ("split_digest", "images", "best_epoch", "selected_on")
        return {name: result[name] for name in kept} | {"split": split, "tests": tests}

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
        part = splits.splits[split]
        path, best = folder / f"on-{dataset.name}.json", folder / BEST
        facts = {
            "model": sha256_of(best),
            "data_digest": dataset.digest,
            "split_digest": part.digest,
            "protocol": run.protocol,
        }
        there = _read(path)
        if there is not None and there.items() >= facts.items():
            return
        found = predict(
            open_model(best, self.resources.device),
            dataset,
            dataset.select(whole(dataset).test),
            protocol=run.protocol,
            recipe=RECIPES[dataset.name],
            seed=run.config.seed,
            skip_bad=self.resources.skip_bad,
            progress=lambda done, total: self.screen.phase(f"on {dataset.name}", done, total),
        )
        tests = {}
        for name, names in ((_WHOLE, dataset.by_name.keys()), (_PART, set(part.test))):
            rows = [row for row in found.rows if row.name in names]
            metrics = judge([row.label for row in rows], [row.score for row in rows])
            tests[name] = json_ready(metrics)
        content = facts | {"skipped": found.skipped, "tests": tests}
        _write(path, json.dumps(content, indent=2) + "\n")


def _report(table: str, runs: _Runs, failures: Sequence[dict[str, str]]) -> dict[str, Any]:
    """A table as JSON: every cell with what was measured here and what is reported."""
    plan = runs.plan
    return {
        "table": table,
        "title": TABLES[table].title,
        "source": SOURCE,
        "start": plan.start,
        "protocol": plan.protocol,
        "selected_on": "test" if plan.select_on_test else "validation",
        "splits": plan.splits,
        "cells": [_measured(cell, runs) for cell in cells_of(table)],
        "failures": list(failures),
    }


def _measured(cell: Cell, runs: _Runs) -> dict[str, Any]:
    found = [one for i in range(runs.plan.splits) if (one := runs.found(cell, i)) is not None]
    return asdict(cell) | {
        "name": cell.training.name,
        "medians": {
            test: _median([one["tests"].get(test) for one in found]) for test in cell.tests
        },
        "runs": found,
    }


def _median(tests: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Of SRCC and PLCC over the splits that are done, and how many those are.

    None where one is None: scores that are all the same follow no labels.
    """
    done = [test for test in tests if test is not None]
    medians: dict[str, Any] = {"splits": len(done)}
    for name in ("srcc", "plcc"):
        values = [test[name] for test in done]
        medians[name] = median(values) if values and None not in values else None
    return medians


def _plain(content: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(content))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged: remove its folder") from error
    return content


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")
