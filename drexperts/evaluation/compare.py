"""`drx eval`: checkpoints and bundles on one data set, each against the labels and the first."""

import csv
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from drexperts.data.dataset import Dataset
from drexperts.data.recipes import Protocol, Recipe
from drexperts.data.splits import Splits, check_splits, whole
from drexperts.evaluation.metrics import (
    INTERVALS,
    NAMES,
    json_ready,
    judge,
    median_metrics,
    plcc,
    srcc,
)
from drexperts.evaluation.predict import Predictions, open_model, predict
from drexperts.runtime.errors import DataError, UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.scorer import Scorer
from drexperts.ui.tables import scale_text

Part = Literal["train", "validation", "test", "all"]

_LABELS = {
    "srcc": "SRCC",
    "plcc": "PLCC, raw",
    "plcc_fitted": "PLCC, logistic fit",
    "krcc": "KRCC",
    "rmse": "RMSE, logistic fit",
}


class Evaluation(NamedTuple):
    """The report, JSON-ready, and what each model said of each image, in the models' order."""

    report: dict[str, Any]
    predictions: list[Predictions]


def evaluate_models(
    models: Sequence[Path],
    dataset: Dataset,
    *,
    splits: Splits | None,
    part: Part,
    protocol: Protocol,
    recipe: Recipe,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    skip_bad: bool = False,
    progress: Progress = SILENT,
) -> Evaluation:
    """Score each image once with each model; judge each split's part, and how the models agree.

    Args:
        models: checkpoints and bundles.
        splits: None for the whole data set, with `part` "all".
        seed: of the crops in the protocol `released`, and of the intervals.

    Raises:
        DataError: splits of other data, a part without images, or an unusable image without
            `skip_bad`.
        UserError: a part without splits; a model that cannot be opened.
    """
    parts = _parts(dataset, splits, part)
    samples = dataset.select(sorted(set().union(*parts)))
    entries, predictions = [], []
    for model in models:
        # A checkpoint that does not say its scale is taken to be on the labels'.
        with open_model(model, device, threads=threads, scale=dataset.scale) as scorer:
            said = predict(
                scorer,
                dataset,
                samples,
                protocol=protocol,
                recipe=recipe,
                seed=seed,
                skip_bad=skip_bad,
                progress=partial(progress, f"scoring with {model}"),
            )
            entry = _description(model, scorer, said)
        entries.append(entry | _judged(said, parts, seed))
        predictions.append(said)
    report = {
        "data": _data_entry(dataset, splits, part),
        "protocol": _protocol_entry(protocol, recipe, seed),
        "models": entries,
        "differences": [
            _difference(entries[0], predictions[0], entry, said)
            for entry, said in zip(entries[1:], predictions[1:], strict=True)
        ],
    }
    return Evaluation(report, predictions)


def write_predictions(evaluation: Evaluation, dataset: Dataset, path: Path) -> None:
    """A table of each image's label and each model's score, as CSV, whole or not at all.

    The labels are the data set's own, on its own scale. Raises OSError.
    """
    models = [entry["model"] for entry in evaluation.report["models"]]
    columns = [f"{kind} {model}" for model in models for kind in ("score", "std")]
    with written_whole(path) as aside, open(aside, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", *columns])
        # All models were given the same images, of which all left out the same.
        for rows in zip(*(said.rows for said in evaluation.predictions), strict=True):
            name = rows[0].name
            numbers = [number for row in rows for number in (row.score, row.std)]
            writer.writerow([name, dataset.by_name[name].label, *numbers])


def _parts(dataset: Dataset, splits: Splits | None, part: Part) -> list[tuple[str, ...]]:
    """The names that each split judges."""
    if splits is None:
        if part != "all":
            raise UserError(
                f"without splits there is no {part} part: name a split file with --splits, or "
                "take the whole data set with --part all"
            )
        return [whole(dataset).test]
    check_splits(splits, dataset)
    parts = []
    for number, split in enumerate(splits.splits):
        chosen = dataclasses.asdict(split).values() if part == "all" else [getattr(split, part)]
        names = tuple(name for each in chosen for name in each)
        if not names:
            raise DataError(f"split {number} has no {part} part: choose another with --part")
        parts.append(names)
    return parts


def _judged(said: Predictions, parts: list[tuple[str, ...]], seed: int) -> dict[str, Any]:
    """The metrics of each split, and their median."""
    by_name = {row.name: row for row in said.rows}
    metrics = []
    for number, names in enumerate(parts):
        rows = [by_name[name] for name in names if name in by_name]
        if not rows:
            raise DataError(f"none of the {len(names)} images of split {number} can be used")
        metrics.append(judge([r.label for r in rows], [r.score for r in rows], seed=seed))
    return {
        "splits": [json_ready(each) for each in metrics],
        "median": json_ready(median_metrics(metrics)),
    }


def _description(model: Path, scorer: Scorer, said: Predictions) -> dict[str, Any]:
    crops = [row.crops for row in said.rows]
    return {
        "model": str(model),
        "engine": scorer.engine.backend,
        "session": scorer.session.description,
        "fingerprint": said.fingerprint,
        "scale": dataclasses.asdict(scorer.manifest.scale),
        "preprocessing": dataclasses.asdict(scorer.manifest.preprocessing),
        "labels_mirrored": said.mirrored,
        "images": len(crops),
        "crops": sum(crops),
        "skipped": list(said.skipped),
    }


def _data_entry(dataset: Dataset, splits: Splits | None, part: Part) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "digest": dataset.digest,
        "scale": dataclasses.asdict(dataset.scale),
        "labels_skipped": list(dataset.skipped),
        "part": part,
        "splits": 1 if splits is None else len(splits.splits),
        "split_digest": whole(dataset).digest if splits is None else splits.digest,
        "split_digests": [s.digest for s in (splits.splits if splits else (whole(dataset),))],
    }


def _protocol_entry(protocol: Protocol, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What decides the crops beside the model's own preprocessing."""
    entry: dict[str, Any] = {"name": protocol, "seed": seed}
    if protocol == "released":
        entry |= {
            "crops": recipe.test_crops,
            "stretched": recipe.stretched,  # for crops of 384 px, see `recipes.stretched`
            "flips": recipe.test_flips,
        }
    return entry


def _difference(
    first: dict[str, Any], expected: Predictions, other: dict[str, Any], got: Predictions
) -> dict[str, Any]:
    """How far a model's scores are from the first model's, on the same images."""
    a, b = ([row.score for row in said.rows] for said in (expected, got))
    comparable = first["scale"] == other["scale"]
    largest = max(abs(x - y) for x, y in zip(a, b, strict=True)) if comparable else None
    correlations = {name: _none_if_nan(of(a, b)) for name, of in (("srcc", srcc), ("plcc", plcc))}
    names = {"model": other["model"], "from": first["model"]}
    return names | {"score_max": largest} | correlations


def _none_if_nan(value: float) -> float | None:
    return value if value == value else None


def print_evaluation(report: dict[str, Any], console: Console) -> None:
    """The metrics side by side, the models' differences, and what all of it is of."""
    console.print(_metrics_table(report))
    if report["differences"]:
        console.print(_differences_table(report["differences"]))
    for line in _circumstances(report):
        console.print(line)


def _metrics_table(report: dict[str, Any]) -> Table:
    models = report["models"]
    table = Table("split", "metric", title=f"scores against labels; {INTERVALS}")
    for model in models:
        table.add_column(model["model"], overflow="fold", justify="right")
    count = report["data"]["splits"]
    for number in range(count):
        judged = [model["splits"][number] for model in models]
        title = f"{number}: {judged[0]['images']} images"
        for place, name in enumerate(NAMES):
            cells = [_with_interval(m[name], m["intervals"][name]) for m in judged]
            last = place == len(NAMES) - 1
            table.add_row(title if place == 0 else "", _LABELS[name], *cells, end_section=last)
    if count > 1:
        for place, name in enumerate(NAMES):
            cells = [_with_spread(model["median"][name]) for model in models]
            title = f"median of {count}" if place == 0 else "± std, range"
            table.add_row(title if place < 2 else "", _LABELS[name], *cells)
    return table


def _differences_table(differences: list[dict[str, Any]]) -> Table:
    table = Table(title=f"against {differences[0]['from']}")
    table.add_column("model", overflow="fold")
    for header in ("largest |Δ score|", "SRCC", "PLCC"):
        table.add_column(header, justify="right")
    for each in differences:
        largest = each["score_max"]
        distance = "other scale" if largest is None else f"{largest:.3g}"
        cells = [_number(each[name], 6) for name in ("srcc", "plcc")]
        table.add_row(each["model"], distance, *cells)
    return table


def _circumstances(report: dict[str, Any]) -> list[str]:
    data, protocol = report["data"], report["protocol"]
    details = [f"{name} {value}" for name, value in protocol.items() if name != "name"]
    lines = [
        f"data {data['name']} {data['digest']}, labels {scale_text(ScoreScale(**data['scale']))}",
        f"split {', '.join(data['split_digests'])}, part {data['part']}",
        f"protocol {protocol['name']}, {', '.join(details)}",
    ]
    if left := data["labels_skipped"]:
        lines.append(f"{len(left)} ratings left out, first {left[0]}")
    for model in report["models"]:
        text = f"{model['model']}: {model['session']}, {model['fingerprint']}, "
        text += f"{model['crops']} crops of {model['images']} images"
        text += ", labels mirrored to its direction" * model["labels_mirrored"]
        text += f", {len(model['skipped'])} unusable images left out" * bool(model["skipped"])
        lines.append(text)
    return lines


def _with_interval(value: float | None, interval: dict[str, float | None]) -> str:
    return f"{_number(value)} [{_number(interval['low'])}, {_number(interval['high'])}]"


def _with_spread(spread: dict[str, float | None]) -> str:
    numbers = {name: _number(value) for name, value in spread.items()}
    return f"{numbers['median']} ± {numbers['std']} [{numbers['low']}, {numbers['high']}]"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
