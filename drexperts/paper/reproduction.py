"""`reproduce`: every training that a table of the paper needs, and a page of the results.

Each training has a folder of its own, which the tables share: a finished one is not repeated, and
one that was killed resumes.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drexperts.data.dataset import Dataset
from drexperts.data.layouts import open_dataset
from drexperts.data.recipes import RECIPES, Protocol, Recipe
from drexperts.data.splits import Splits, make_splits, reduced, whole, write_splits
from drexperts.evaluation.metrics import Metrics, compute_metrics, json_ready, metrics_from_json
from drexperts.evaluation.predict import open_model, predict
from drexperts.model.checkpoint import load_encoder
from drexperts.model.config import DRExpertsConfig
from drexperts.model.daclip import load_prior
from drexperts.model.dr_experts import DRExperts, new_model
from drexperts.paper.cells import (
    OWN_TEST,
    PART_OF_TARGET,
    WHOLE_TARGET,
    Cell,
    Training,
    cells_of,
    choose,
)
from drexperts.paper.page import page
from drexperts.paper.reported import SOURCE, TABLES
from drexperts.paper.results import (
    CellState,
    Failure,
    MeasuredCell,
    MeasuredRun,
    Median,
    Reproduction,
)
from drexperts.runtime.errors import ConfigError, DataError, UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.manifest import sha256_of
from drexperts.runtime.progress import SILENT, Progress
from drexperts.training.distributed import Processes
from drexperts.training.files import BEST, RESULT, read_result
from drexperts.training.from_nothing import PriorTraining
from drexperts.training.result import Criterion, TrainingResult, Watch
from drexperts.training.run import start_digest, train
from drexperts.training.settings import Resources, Run
from drexperts.training.trainer import TrainConfig

SPLITS = 10
SELECTED_BY: Criterion = "plcc"  # as the released code does; the paper does not say

_TRANSFER_TESTS = (WHOLE_TARGET, PART_OF_TARGET)


def published_model() -> DRExperts:
    """An untrained model of the preset `paper` on published DeiT-III and DA-CLIP weights."""
    model = new_model(DRExpertsConfig.paper())
    load_encoder(model)
    load_prior(model)
    return model


@dataclass(frozen=True)
class ReproductionOptions:
    """How the trainings of a table are made. The defaults are the paper's.

    new_model: makes the model that every training starts from
    start: what that model is, in words; the page says "Trained from ..."
    published: whether it has the weights that the authors started from
    fresh: whether its head is untrained
    prior: how its prior is trained before each training, if it starts from nothing
    train_config: the settings of a training, given the recipe of its data set
    splits: trainings per cell, each on a split of its own
    select_on_test: choose each epoch by the test images, as the released code does

    Raises ConfigError for fewer than one split.
    """

    new_model: Callable[[], DRExperts] = published_model
    start: str = "published weights; preset paper, 384 px"
    published: bool = True
    fresh: bool = True
    prior: PriorTraining | None = None
    train_config: Callable[[Recipe], TrainConfig] = lambda recipe: TrainConfig(recipe.batch)
    splits: int = SPLITS
    protocol: Protocol = "grid"
    select_on_test: bool = False

    def __post_init__(self) -> None:
        if self.splits < 1:
            raise ConfigError(f"a table needs at least 1 split, got {self.splits}")


_AS_PUBLISHED, _ANYWHERE = ReproductionOptions(), Resources()


def reproduce(
    table: str,
    data_root: str | Path,
    out: str | Path = "runs/reproduce",
    options: ReproductionOptions = _AS_PUBLISHED,
    *,
    only: Sequence[str] = (),
    resources: Resources = _ANYWHERE,
    watch: Watch = lambda _: None,
    progress: Progress = SILENT,
) -> Reproduction:
    """Train and test what a table lacks; write `out/<table>.md` and `.json` around every training.

    If a training fails, for example because its data set is missing, the page lists the failure and
    the other trainings continue.

    Args:
        table: "table1" to "table5".
        data_root: holds one folder per data set, such as `koniq10k`.
        out: for the trainings, their splits and the pages.
        only: data sets to train on, variants and shares ("20"), see `cells.choose`. The page shows
            earlier results of the others.
        watch: told what was found after every epoch of every training.

    Raises:
        StoppedError: a signal ended the work; the same call resumes it.
        UserError: a name that the table does not have.

    Example:
        done = reproduce("table1", "datasets", only=["livec"])
        done.failures  # empty if all went well
    """
    data_root, out = Path(data_root), Path(out)
    chosen = choose(cells_of(table), only)
    runs = _Runs(data_root, out, options, resources, watch, progress)
    failures: list[Failure] = []
    jobs = list(product(range(options.splits), chosen))
    states: dict[Cell, CellState] = dict.fromkeys(chosen, "not run yet")

    def publish() -> Reproduction:
        done = _collected(table, runs, states, failures)
        if runs.first:
            _write_json(out / f"{table}.json", done.as_json())
            _write(out / f"{table}.md", page(done))
        return done

    try:
        for number, (split, cell) in enumerate(jobs, 1):
            job = f"{cell.training.name}, split {split}, on {cell.target or 'its test part'}"
            progress.note(f"{table}, {number} of {len(jobs)}: {job}")
            before, states[cell] = states[cell], "running"
            publish()
            try:
                runs.make(cell, split)
                states[cell] = before
            except (UserError, OSError) as error:
                states[cell] = "data missing" if runs.lacks_data(cell) else "failed"
                failures.append(Failure(job, str(error)))
                progress.note(f"{job}: {error}")
    except BaseException:  # also of a signal: nothing is running any more
        running = [cell for cell, state in states.items() if state == "running"]
        states.update(dict.fromkeys(running, "not run yet"))
        publish()
        raise
    return publish()


class _Data(NamedTuple):
    dataset: Dataset
    splits: Splits


class _Transfer(NamedTuple):
    """The result of a test on another data set."""

    skipped: Sequence[str]
    tests: Mapping[str, Metrics]


class _Runs:
    """The trainings behind a table: makes them, tests them, and finds those that are finished."""

    def __init__(
        self,
        root: Path,
        out: Path,
        options: ReproductionOptions,
        resources: Resources,
        watch: Watch,
        progress: Progress,
    ) -> None:
        self.options, self.first = options, Processes(resources.device).first
        self._root, self._out, self._resources, self._progress = root, out, resources, progress
        self._watch = watch
        self._starts = cache(partial(start_digest, options.new_model))
        self._data = cache(self._read_data)
        self._noted: set[str] = set()

    def lacks_data(self, cell: Cell) -> bool:
        """Whether the folder of a data set is missing."""
        names = (cell.training.dataset, cell.target)
        return not all((self._root / name).exists() for name in names if name is not None)

    def make(self, cell: Cell, split: int) -> None:
        """Train and test, unless both are finished."""
        if self.found(cell, split) is not None:
            return  # without making a model to compare it with
        # Before the training, which would be in vain without its target.
        target = None if cell.target is None else self._data(cell.target)
        run, folder = self._run(cell.training, split), self._folder(cell.training, split)
        new_model = self.options.new_model
        train(
            run,
            new_model,
            folder,
            resources=self._resources,
            watch=self._watch,
            progress=self._progress,
        )
        if target is not None and self.first:
            self._transfer(run, folder, target, split)

    def found(self, cell: Cell, split: int) -> MeasuredRun | None:
        """What was measured on a split with these options.

        None if nothing was, or if the data cannot be read: then nothing tells whether a result is
        of these data. A damaged file is noted once.
        """
        try:
            return self._found(cell, split)
        except (UserError, OSError) as error:
            if str(error) not in self._noted:
                self._progress.note(str(error))
            self._noted.add(str(error))
            return None

    def _found(self, cell: Cell, split: int) -> MeasuredRun | None:
        folder = self._folder(cell.training, split)
        result = read_result(folder)
        if result is None or not self._is_of(result, self._run(cell.training, split)):
            return None
        tests: Mapping[str, Metrics] = {OWN_TEST: result.test}
        skipped: dict[str, Sequence[str]] = {cell.training.dataset: result.skipped}
        if cell.target is not None:
            transfer = self._transferred(folder, self._data(cell.target), split)
            if transfer is None:
                return None
            skipped[cell.target], tests = transfer
        return MeasuredRun(
            split_digest=result.split_digest,
            images=result.images,
            best_epoch=result.best_epoch,
            selected_on=result.selected_on,
            skipped=result.skipped,
            split=split,
            used={n: len(self._data(n).dataset.samples) - len(skipped[n]) for n in skipped},
            tests=tests,
        )

    def _folder(self, training: Training, split: int) -> Path:
        return self._out / "runs" / training.name / f"split-{split}"

    def _run(self, training: Training, split: int) -> Run:
        """One training. Raises UserError or OSError if its data set cannot be read."""
        dataset, splits = self._data(training.dataset)
        part = splits.splits[split]
        if training.share != "all":
            part = reduced(part, dataset, int(training.share) / 100)
        recipe = RECIPES[training.dataset]
        return Run(
            dataset=dataset,
            split=part,
            recipe=recipe,
            config=self.options.train_config(recipe),
            protocol=self.options.protocol,
            split_seed=splits.seed,
            select_by=SELECTED_BY,
            select_on_test=self.options.select_on_test,
            variant=training.variant,
            fresh=self.options.fresh,
            prior=self.options.prior,
        )

    def _is_of(self, result: TrainingResult, run: Run) -> bool:
        """Whether a result is of this run, from these weights."""
        asked = run.settings() | {"model": self._starts(run.config.seed)}
        # Without validation metrics the last epoch is taken, and images may have
        # been left out.
        del asked["images"], asked["selected_on"], asked["selected_by"]
        chosen = result.selected_on in (run.selected_on, "last epoch")
        return chosen and _as_in_json(asked).items() <= result.settings.items()

    def _read_data(self, name: str) -> _Data:
        """A data set and its splits. Raises UserError or OSError if it cannot be read."""
        dataset = open_dataset(name, self._root / name, skip_bad=self._resources.skip_bad)
        # An epoch that is not chosen by validation images needs none.
        validation = 0.0 if self.options.select_on_test else 0.1
        count = max(self.options.splits, SPLITS)
        splits = make_splits(dataset, count=count, validation=validation)
        folder = self._out / "splits"
        folder.mkdir(parents=True, exist_ok=True)
        write_splits(splits, folder / f"{name}.json")
        return _Data(dataset, splits)

    def _transfer(self, run: Run, folder: Path, target: _Data, split: int) -> None:
        """Test a model on all images of another data set, and on the test part of its split."""
        if self._transferred(folder, target, split) is not None:
            return
        dataset, splits = target
        with open_model(folder / BEST, self._resources.device) as scorer:
            found = predict(
                scorer,
                dataset,
                dataset.select(whole(dataset).test),
                protocol=run.protocol,
                recipe=RECIPES[dataset.name],
                seed=run.config.seed,
                skip_bad=self._resources.skip_bad,
                progress=lambda done, total: self._progress(f"on {dataset.name}", done, total),
            )
        tests = {}
        parts = {WHOLE_TARGET: whole(dataset).test, PART_OF_TARGET: splits.splits[split].test}
        for name, images in parts.items():
            rows = [row for row in found.rows if row.name in set(images)]
            if not rows:
                raise DataError(
                    f"none of the {len(images)} images of the {name} can be used, {dataset.name} "
                    f"at {dataset.root}: repair them"
                )
            tests[name] = compute_metrics([row.label for row in rows], [row.score for row in rows])
        content = json_ready(_Transfer(found.skipped, tests))
        _write_json(
            _transfer_path(folder, target), self._transfer_facts(folder, target, split) | content
        )

    def _transferred(self, folder: Path, target: _Data, split: int) -> _Transfer | None:
        """The tests on another data set, if they are finished and of these data."""
        try:
            there = json.loads(_transfer_path(folder, target).read_text(encoding="utf-8"))
            tests = {each: metrics_from_json(there["tests"][each]) for each in _TRANSFER_TESTS}
            same = there.items() >= self._transfer_facts(folder, target, split).items()
            return _Transfer(there["skipped"], tests) if same else None
        except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
            return None  # nothing is there, or nothing that `_transfer` wrote

    def _transfer_facts(self, folder: Path, target: _Data, split: int) -> dict[str, Any]:
        """What decides the numbers of a transfer; the result stands for its model."""
        dataset, splits = target
        return {
            "result": sha256_of(folder / RESULT),
            "recipe": _as_in_json(asdict(RECIPES[dataset.name])),
            "data_digest": dataset.digest,
            "split_digest": splits.splits[split].digest,
        }


def _collected(
    table: str, runs: _Runs, states: Mapping[Cell, CellState], failures: Sequence[Failure]
) -> Reproduction:
    """The table with everything that is finished."""
    options, cells = runs.options, cells_of(table)
    return Reproduction(
        table=table,
        title=TABLES[table].title,
        source=SOURCE,
        start=options.start,
        published=options.published,
        schedules=tuple(sorted({_schedule(options, cell.training) for cell in cells})),
        protocol=options.protocol,
        selected_on="test" if options.select_on_test else "validation",
        selected_by=SELECTED_BY,
        splits=options.splits,
        cells=tuple(_measured(cell, runs, states.get(cell, "not asked for")) for cell in cells),
        failures=tuple(failures),
    )


def _schedule(options: ReproductionOptions, training: Training) -> str:
    config = options.train_config(RECIPES[training.dataset])
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    return f"{epochs} at a learning rate of {config.schedule.rate:g}"


def _measured(cell: Cell, runs: _Runs, state: CellState) -> MeasuredCell:
    found = [runs.found(cell, split) for split in range(runs.options.splits)]
    finished = tuple(run for run in found if run is not None)
    medians = {test: _median([run.tests[test] for run in finished]) for test in cell.tests}
    if state != "running" and len(finished) == len(found):
        state = "done"
    elif state in ("not asked for", "not run yet") and finished:
        state = "partly done"
    return MeasuredCell(
        row=cell.row,
        column=cell.column,
        training=cell.training,
        target=cell.target,
        name=cell.training.name,
        state=state,
        medians=medians,
        runs=finished,
    )


def _median(tests: Sequence[Metrics]) -> Median:
    if not tests:
        return Median(0, math.nan, math.nan)
    srcc, plcc = np.median([(test.srcc, test.plcc) for test in tests], axis=0).tolist()
    return Median(len(tests), srcc, plcc)


def _transfer_path(folder: Path, target: _Data) -> Path:
    return folder / f"on-{target.dataset.name}.json"


def _as_in_json(content: Any) -> Any:
    """The content as it comes back from a JSON file."""
    return json.loads(json.dumps(content))


def _write_json(path: Path, content: object) -> None:
    _write(path, json.dumps(content, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    """Replace the file with one that is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")
