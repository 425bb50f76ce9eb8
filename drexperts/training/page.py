"""A run's folder as one HTML page, while the run goes on and afterwards.

No script, nothing fetched: pictures are inside it. It needs the extra `report`.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from markupsafe import Markup

from drexperts.data.dataset import Dataset
from drexperts.evaluation.metrics import INTERVALS, Metrics
from drexperts.runtime.files import written_whole
from drexperts.runtime.training import choice, utc_now
from drexperts.training.files import LOG, PAGE, PREDICTIONS, SETTINGS, SPLIT, flat, read_result
from drexperts.training.result import Epoch, TrainingResult, best_epoch
from drexperts.ui.charts import Words, lines, scatter
from drexperts.ui.markdown import Table
from drexperts.ui.pages import render
from drexperts.ui.pictures import Picture, thumbnail

_WORST = 12  # pictures
_POINTS = 400  # of the curve of losses: the mean of neighbouring steps is one point

_LOSSES = Words("loss of training and validation by epoch", "epoch", "loss")
_CORRELATIONS = Words("correlations by epoch", "epoch", "correlation")
_RATED = Words("predicted against rated", "rated by people", "predicted")
_METRICS = {
    "srcc": "SRCC",
    "plcc": "PLCC",
    "plcc_fitted": "PLCC after the logistic fit",
    "krcc": "KRCC",
    "rmse": "RMSE after the fit",
}


class _Prediction(NamedTuple):
    """A row of `predictions.csv`."""

    name: str
    label: float
    score: float


class _Log(NamedTuple):
    """What `log.jsonl` says: losses by step from 1, epochs, how long they took, and where."""

    losses: list[float]
    epochs: list[Epoch]
    seconds: float
    machine: str


def write_page(folder: Path, dataset: Dataset) -> Path:
    """Write `index.html` into the folder of a run that has begun, and return its path.

    It shows what the folder holds, so it can be written after every epoch, and again at any time.

    dataset: that of the run, for its worst pictures

    Raises UserError if a file of the folder is damaged, and OSError.
    """
    path = folder / PAGE
    with written_whole(path) as aside:
        aside.write_text(_page(folder, dataset), encoding="utf-8")
    return path


def _page(folder: Path, dataset: Dataset) -> str:
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    log, result = _read_log(folder / LOG), read_result(folder)
    total = settings["config"]["epochs"]
    best = best_epoch(log.epochs, settings["selected_by"] or "srcc")
    predictions = [] if result is None else _read_predictions(folder / PREDICTIONS)
    return render(
        "training.html.j2",
        title=f"Training on {dataset.root.name if dataset.name == 'folder' else dataset.name}",
        done=result is not None,
        state=_state(log, result, total),
        choice=choice(settings["selected_on"], settings["selected_by"]),
        on_test=settings["selected_on"] == "test",
        tiles=_tiles(log, result, best, total),
        losses=_losses(log, total),
        correlations=_correlations(log.epochs),
        epochs=_epochs(log.epochs, best),
        test=None if result is None else _test(result.test),
        intervals=INTERVALS,
        scatter=_scatter(predictions),
        worst=[_picture(dataset, each) for each in _worst(predictions)],
        split=Table(("part", "images"), _parts(settings, result)),
        split_file=SPLIT,
        split_digest=settings["split_digest"],
        skipped=() if result is None else result.skipped,
        settings=Table((), [(name, _shown(value)) for name, value in flat(settings)]),
        machine=Table((), list(_machine(log, result))),
    )


def _read_log(path: Path) -> _Log:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    timed = [record for record in records if "seconds" in record]
    last: Mapping[str, Any] = timed[-1] if timed else {"seconds": 0.0, "machine": "-"}
    return _Log(
        [record["loss"] for record in records if "loss" in record],
        [Epoch(*map(record.get, Epoch._fields)) for record in records if "epoch" in record],
        last["seconds"],
        last["machine"],
    )


def _read_predictions(path: Path) -> list[_Prediction]:
    with open(path, encoding="utf-8", newline="") as stream:
        return [
            _Prediction(row["path"], float(row["label"]), float(row["score"]))
            for row in csv.DictReader(stream)
        ]


def _state(log: _Log, result: TrainingResult | None, total: int) -> str:
    if result is None:
        return f"After {len(log.epochs)} of {total} epochs. Written at {utc_now()}."
    return f"Done: {total} epochs in {duration(log.seconds)}, then tested."


def _tiles(
    log: _Log, result: TrainingResult | None, best: int | None, total: int
) -> dict[str, str]:
    if result is not None:
        return {
            "SRCC on the test images": _correlation(result.test.srcc),
            "PLCC on the test images": _correlation(result.test.plcc),
            "epoch that was kept": f"{result.best_epoch} of {total}",
            "images tested on": str(result.test.images),
        }
    if best is None:
        return {}
    epoch = next(each for each in log.epochs if each.epoch == best)  # an epoch may be missing
    return {
        "SRCC of the best epoch so far": _correlation(epoch.srcc),
        "PLCC of the best epoch so far": _correlation(epoch.plcc),
        "best epoch so far": f"{best} of {total}",
    }


def _losses(log: _Log, total: int) -> Markup | None:
    if not log.epochs:
        return None
    steps = len(log.losses) / len(log.epochs)  # of an epoch; the log ends with one
    size = -(-len(log.losses) // _POINTS)
    starts = range(0, len(log.losses), size)
    parts = [(start, log.losses[start : start + size]) for start in starts]
    training = [((start + (len(part) + 1) / 2) / steps, fmean(part)) for start, part in parts]
    series = {"training, by step": training}
    judged: list[tuple[float, float]] = [
        (epoch.epoch, epoch.validation_loss)
        for epoch in log.epochs
        if epoch.validation_loss is not None
    ]
    if judged:
        series["images that choose the epoch"] = judged
    return lines(series, _LOSSES, marked={"images that choose the epoch"})


def _correlations(epochs: Sequence[Epoch]) -> Markup | None:
    series = {
        name.upper(): [(e.epoch, getattr(e, name)) for e in epochs if getattr(e, name) is not None]
        for name in ("srcc", "plcc")
    }
    series = {name: points for name, points in series.items() if points}
    return lines(series, _CORRELATIONS, marked=series.keys()) if series else None


def _epochs(epochs: Sequence[Epoch], best: int | None) -> Table:
    headings = ("epoch", "SRCC", "PLCC", "validation loss", "training loss", "")
    rows = [
        (
            str(epoch.epoch),
            *map(_correlation, (epoch.srcc, epoch.plcc)),
            *map(_quantity, (epoch.validation_loss, epoch.training_loss)),
            "best" * (epoch.epoch == best),
        )
        for epoch in epochs
    ]
    return Table(headings, rows)


def _test(metrics: Metrics) -> Table:
    rows = []
    for name, heading in _METRICS.items():
        low, high = metrics.intervals[name]
        shown = _quantity if name == "rmse" else _correlation
        interval = "-" if isnan(low) else f"{shown(low)} to {shown(high)}"
        rows.append((heading, shown(getattr(metrics, name)), interval))
    return Table(("on the test images", "", "95 % interval"), rows)


def _scatter(predictions: Sequence[_Prediction]) -> Markup | None:
    if not predictions:
        return None
    return scatter({"test images": [(each.label, each.score) for each in predictions]}, _RATED)


def _worst(predictions: Sequence[_Prediction]) -> list[_Prediction]:
    """The predictions with the largest errors, the largest first."""
    return sorted(predictions, key=lambda p: (-abs(p.score - p.label), p.name))[:_WORST]


def _picture(dataset: Dataset, prediction: _Prediction) -> Picture:
    label, score = (f"{value:.4g}" for value in (prediction.label, prediction.score))
    said = f"rated {label}, predicted {score}"
    return Picture(prediction.name, said, thumbnail(dataset.root / prediction.name))


def _parts(settings: Mapping[str, Any], result: TrainingResult | None) -> list[tuple[str, ...]]:
    counts = settings["images"] if result is None else result.images
    return list(zip(("training", "validation", "test"), map(str, counts), strict=True))


def _machine(log: _Log, result: TrainingResult | None) -> Iterator[tuple[str, str]]:
    yield "machine", log.machine
    yield "training and validation took", duration(log.seconds)
    if result is not None:
        yield "processes", str(result.processes)
        yield from result.versions.items()


def duration(seconds: float) -> str:
    """Such as "5.2 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def _correlation(value: float | None) -> str:
    return "-" if value is None or isnan(value) else f"{value:.3f}"


def _quantity(value: float | None) -> str:
    return "-" if value is None or isnan(value) else f"{value:.4g}"


def _shown(value: object) -> str:
    return "-" if value is None or value == [] else str(value)
