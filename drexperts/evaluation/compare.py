"""Checkpoints and bundles on one data set: each against the labels, and against the first model."""

import csv
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from drexperts.data.dataset import Dataset
from drexperts.data.recipes import RECIPES, Protocol, Recipe
from drexperts.data.splits import Splits, check_splits, whole
from drexperts.evaluation.metrics import (
    Change,
    Metrics,
    MetricsSummary,
    compute_metrics,
    correlation_changes,
    json_ready,
    median_metrics,
    plcc,
    srcc,
)
from drexperts.evaluation.predict import ScoredImages, open_model, predict
from drexperts.runtime.errors import DataError, UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.wording import remedy

Part = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True)
class EvaluatedData:
    """Which images were scored.

    digest: see `Dataset.digest`
    labels_skipped: ratings that were left out on request, one line each
    splits: how many splits were evaluated
    split_digest, split_digests: of the split file, and of each split in it
    """

    name: str
    digest: str
    scale: ScoreScale
    labels_skipped: tuple[str, ...]
    part: Part
    splits: int
    split_digest: str
    split_digests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """One model against the labels.

    model: the path of the checkpoint or bundle
    weights: digest of its weights; None for a bundle of an earlier version
    crops_per_side: the most crops along each axis, if it is not the model's own; None if it is
    labels_mirrored: whether the labels were mirrored, so that higher means the same in both
    crops: crops that were scored, of all images together
    skipped: why each unusable image was left out, one line each
    splits: the metrics of each split; `median` summarises them
    """

    model: str
    weights: str | None
    engine: str
    session: str
    fingerprint: str
    scale: ScoreScale
    preprocessing: Preprocessing
    crops_per_side: int | None
    labels_mirrored: bool
    images: int
    crops: int
    skipped: tuple[str, ...]
    splits: tuple[Metrics, ...]
    median: MetricsSummary

    @property
    def label(self) -> str:
        """The model, and its grid if that is not its own."""
        if self.crops_per_side is None:
            return self.model
        return f"{self.model}, {self.crops_per_side} per side"


@dataclass(frozen=True)
class Difference:
    """How far a model's scores are from those of the first model, on the same images.

    model, reference: see `EvaluatedModel.label`
    same_weights: whether both have the same weights; None where one does not say which it has
    score_max: the largest absolute difference; None where the two have different scales
    srcc, plcc: correlations of the two models' scores
    changes: by how much its correlations with the labels exceed those of the first model, "srcc"
        and "plcc" for each split
    """

    model: str
    reference: str
    same_weights: bool | None
    score_max: float | None
    srcc: float
    plcc: float
    changes: tuple[dict[str, Change], ...]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    models, predictions: in the order in which the models were given, each with one grid after
        another
    differences: of each model but the first
    """

    data: EvaluatedData
    protocol: Protocol
    recipe: Recipe
    seed: int
    models: tuple[EvaluatedModel, ...]
    differences: tuple[Difference, ...]
    predictions: tuple[ScoredImages, ...]

    def as_json(self) -> dict[str, Any]:
        """The document that `drx eval --json` prints; undefined numbers are None."""
        protocol: dict[str, Any] = {"name": self.protocol, "seed": self.seed}
        if self.protocol == "released":
            protocol |= {
                "crops": self.recipe.test_crops,
                "stretched": self.recipe.stretched,  # for crops of 384 px, see `recipes.stretched`
                "flips": self.recipe.test_flips,
            }
        differences = [json_ready(each) for each in self.differences]
        return {
            "data": json_ready(self.data),
            "protocol": protocol,
            "models": json_ready(self.models),
            "differences": [
                {"model": each.pop("model"), "from": each.pop("reference")} | each
                for each in differences
            ],
        }


def evaluate(
    models: Sequence[str | Path],
    dataset: Dataset,
    *,
    splits: Splits | None = None,
    part: Part | None = None,
    protocol: Protocol = "grid",
    recipe: Recipe | None = None,
    crops_per_side: Sequence[int | None] = (None,),
    seed: int = 0,
    device: str = "auto",
    engine: str | None = None,
    threads: int | None = None,
    skip_bad: bool = False,
    progress: Progress = SILENT,
) -> Evaluation:
    """Score each image once with each model, and compare the scores with labels and each other.

    Args:
        models: checkpoints and bundles.
        splits: evaluates each split by itself; None takes the whole data set as one.
        part: the part of each split; None means "test", or "all" without splits.
        recipe: how images are cropped; None takes the data set's own.
        engine: which engine of the bundles is used, as `runtime.load` takes it.
        crops_per_side: the crop grids to score with, one after another, see `runtime.load`; None is
            a model's own. The protocol `released` has no grid.
        seed: for the crops of the protocol `released`, and for the intervals.
        skip_bad: leave out unusable images.

    Example:
        found = evaluate(["best.safetensors", "bundle"], dataset)
        print(found.models[0].median.srcc.median, found.differences[0].score_max)

        grids = evaluate(["bundle"], dataset, crops_per_side=(None, 2, 1))
        print([each.changes[0]["srcc"] for each in grids.differences])  # what fewer crops cost

    Raises DataError for splits of other data, an empty part or an unusable image; UserError for a
    part without splits, a grid that cannot be, or a model that cannot be opened.
    """
    _check_grids(crops_per_side, protocol)
    part = part or ("all" if splits is None else "test")
    recipe = recipe or RECIPES[dataset.name]
    parts = _parts(dataset, splits, part)
    samples = dataset.select(sorted(set().union(*parts)))
    found, predictions = [], []
    for model, grid in itertools.product(models, crops_per_side):
        # A checkpoint that does not state its scale is assumed to be on the scale of the labels.
        options: dict[str, Any] = {"engine": engine, "threads": threads, "scale": dataset.scale}
        with open_model(model, device, **options, crops_per_side=grid) as scorer:
            predicted = predict(
                scorer,
                dataset,
                samples,
                protocol=protocol,
                recipe=recipe,
                seed=seed,
                skip_bad=skip_bad,
                progress=partial(progress, f"scoring with {model}"),
            )
            found.append(_evaluated(model, scorer, predicted, _metrics(predicted, parts, seed)))
        predictions.append(predicted)
    others = zip(found[1:], predictions[1:], strict=True)
    return Evaluation(
        data=_data(dataset, splits, part),
        protocol=protocol,
        recipe=recipe,
        seed=seed,
        models=tuple(found),
        differences=tuple(
            _difference(found[0], predictions[0], *other, parts, seed) for other in others
        ),
        predictions=tuple(predictions),
    )


def write_predictions(evaluation: Evaluation, dataset: Dataset, path: str | Path) -> None:
    """Write each image's label and each model's score as CSV, atomically. Raises OSError.

    The labels are the data set's own, on its own scale.
    """
    models = [each.label for each in evaluation.models]
    columns = [f"{kind} {model}" for model in models for kind in ("score", "std")]
    with (
        written_whole(Path(path)) as aside,
        open(aside, "w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(["image", "label", *columns])
        # All models were given the same images and left out the same ones.
        for rows in zip(*(predicted.rows for predicted in evaluation.predictions), strict=True):
            name = rows[0].name
            numbers = [number for row in rows for number in (row.score, row.std)]
            writer.writerow([name, dataset.by_name[name].label, *numbers])


def _check_grids(crops_per_side: Sequence[int | None], protocol: Protocol) -> None:
    """Raises UserError before anything is scored that is in vain."""
    name = remedy("--crops-per-side", "crops_per_side")
    if not crops_per_side:
        raise UserError(f"{name} names no grid: give at least one")
    if protocol != "grid" and any(grid is not None for grid in crops_per_side):
        raise UserError(f"the protocol {protocol} cuts random crops and has no grid: omit {name}")


def _parts(dataset: Dataset, splits: Splits | None, part: Part) -> list[tuple[str, ...]]:
    """The names of the images that belong to the part in each split."""
    if splits is None:
        if part != "all":
            raise UserError(
                f"without splits there is no {part} part: name a split file with --splits, or "
                "evaluate the whole data set with --part all"
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


def _metrics(
    predicted: ScoredImages, parts: list[tuple[str, ...]], seed: int
) -> tuple[Metrics, ...]:
    metrics = []
    for number, (labels, scores) in enumerate(_by_part(predicted, parts)):
        if not labels:
            raise DataError(
                f"none of the {len(parts[number])} images of split {number} can be used"
            )
        metrics.append(compute_metrics(labels, scores, seed=seed))
    return tuple(metrics)


def _by_part(
    predicted: ScoredImages, parts: list[tuple[str, ...]]
) -> list[tuple[list[float], list[float]]]:
    """Labels and scores of each part's images."""
    by_name = {row.name: row for row in predicted.rows}
    chosen = ([by_name[name] for name in names if name in by_name] for names in parts)
    return [([row.label for row in rows], [row.score for row in rows]) for rows in chosen]


def _evaluated(
    model: str | Path, scorer: Scorer, predicted: ScoredImages, metrics: tuple[Metrics, ...]
) -> EvaluatedModel:
    return EvaluatedModel(
        model=str(model),
        weights=scorer.manifest.weights,
        engine=scorer.engine.backend,
        session=scorer.session.description,
        fingerprint=predicted.fingerprint,
        scale=scorer.manifest.scale,
        preprocessing=scorer.preprocessing,
        crops_per_side=scorer.other_crops_per_side,
        labels_mirrored=predicted.mirrored,
        images=len(predicted.rows),
        crops=sum(row.crops for row in predicted.rows),
        skipped=predicted.skipped,
        splits=metrics,
        median=median_metrics(metrics),
    )


def _data(dataset: Dataset, splits: Splits | None, part: Part) -> EvaluatedData:
    chosen = (whole(dataset),) if splits is None else splits.splits
    return EvaluatedData(
        name=dataset.name,
        digest=dataset.digest,
        scale=dataset.scale,
        labels_skipped=dataset.skipped,
        part=part,
        splits=len(chosen),
        split_digest=chosen[0].digest if splits is None else splits.digest,
        split_digests=tuple(split.digest for split in chosen),
    )


def _difference(
    first: EvaluatedModel,
    expected: ScoredImages,
    other: EvaluatedModel,
    got: ScoredImages,
    parts: list[tuple[str, ...]],
    seed: int,
) -> Difference:
    a, b = ([row.score for row in predicted.rows] for predicted in (expected, got))
    comparable = first.scale == other.scale
    largest = max(abs(x - y) for x, y in zip(a, b, strict=True)) if comparable else None
    known = None not in (first.weights, other.weights)
    same = first.weights == other.weights if known else None
    pairs = zip(_by_part(expected, parts), _by_part(got, parts), strict=True)
    return Difference(
        model=other.label,
        reference=first.label,
        same_weights=same,
        score_max=largest,
        srcc=srcc(a, b),
        plcc=plcc(a, b),
        changes=tuple(correlation_changes(*pair, seed=seed) for pair in pairs),
    )
