"""Several models on one data set: metrics, agreement, the report and what is printed of it."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from support.miniature import write

from drexperts.data.dataset import Dataset
from drexperts.data.layouts import open_dataset
from drexperts.data.recipes import RECIPES
from drexperts.data.splits import make_splits, whole
from drexperts.evaluation.compare import (
    Evaluation,
    evaluate_models,
    print_evaluation,
    write_predictions,
)
from drexperts.evaluation.metrics import json_ready, judge
from drexperts.export.bundle import export_bundle
from drexperts.export.proof.parity import LIMITS
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.runtime.errors import DataError, UserError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing

SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)
PREPROCESSING = Preprocessing(crop=64, short_side_min=64, short_side_max=64, crops_per_side=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def models(
    tiny: Callable[..., Any],
    random_model: Callable[..., Any],
    photo: Callable[..., Image.Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Path]:
    """A checkpoint, the bundle exported from it, and another model's checkpoint."""
    folder, pictures = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("pictures")
    for seed in range(4):
        photo(90, 70, seed).save(pictures / f"{seed}.png")
    paths = [folder / name for name in ("a.safetensors", "bundle", "b.safetensors")]
    for path, seed in ((paths[0], 0), (paths[2], 1)):
        save_checkpoint(Checkpoint(random_model(tiny(), seed), SCALE, PREPROCESSING), path)
    export_bundle(
        paths[0],
        paths[1],
        images=pictures,
        maps=False,
        max_batch=4,
    )
    return paths


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset("folder", write("folder", tmp_path / "data", contents=4), scale=SCALE)


def evaluated(models: list[Path], dataset: Dataset, **changes: Any) -> Evaluation:
    settings: dict[str, Any] = {
        "splits": None,
        "part": "all",
        "protocol": "grid",
        "recipe": replace(RECIPES["folder"], test_crops=2),
        "device": "cpu",
    }
    return evaluate_models(models, dataset, **(settings | changes))


def printed(report: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_evaluation(report, Console(file=stream, width=200, markup=False))
    return stream.getvalue()


@pytest.mark.parametrize("protocol", ["grid", "released"])
def test_a_checkpoint_and_its_bundle_agree_side_by_side(
    protocol: str, models: list[Path], dataset: Dataset
) -> None:
    evaluation = evaluated(models, dataset, protocol=protocol)
    report = json.loads(json.dumps(evaluation.report, allow_nan=False))
    same, other = report["differences"]
    assert (same["model"], same["from"]) == (str(models[1]), str(models[0]))
    limits = LIMITS["fp32"]
    assert same["score_max"] <= limits["score_max"] * SCALE.span
    assert same["srcc"] >= limits["srcc"]
    assert same["plcc"] >= limits["plcc"]
    assert other["score_max"] > 0.1
    first, bundle, third = report["models"]
    for name in ("srcc", "plcc", "plcc_fitted", "krcc", "rmse"):
        assert bundle["splits"][0][name] == pytest.approx(first["splits"][0][name], abs=1e-3)
    assert third["splits"][0]["srcc"] != first["splits"][0]["srcc"]
    assert [model["engine"] for model in report["models"]] == ["torch", "onnx", "torch"]
    assert len({model["fingerprint"] for model in report["models"]}) == 3
    rows = evaluation.predictions[0].rows
    expected = judge([row.label for row in rows], [row.score for row in rows])
    assert first["splits"][0] == json_ready(expected)
    assert report["data"]["digest"] == dataset.digest
    assert report["data"]["split_digest"] == whole(dataset).digest
    text = printed(evaluation.report)
    for part in ("PLCC, raw", "PLCC, logistic fit", "against", dataset.digest, " crops of 36"):
        assert part in text


def test_each_split_and_their_median(models: list[Path], dataset: Dataset) -> None:
    splits = make_splits(dataset, count=3)
    evaluation = evaluated(models[:1], dataset, splits=splits, part="test", protocol="released")
    (model,) = evaluation.report["models"]
    by_name = {row.name: row for row in evaluation.predictions[0].rows}
    assert set(by_name) == {name for split in splits.splits for name in split.test}
    for split, metrics in zip(splits.splits, model["splits"], strict=True):
        rows = [by_name[name] for name in split.test]
        expected = judge([row.label for row in rows], [row.score for row in rows])
        assert metrics == json_ready(expected)
    values = sorted(metrics["srcc"] for metrics in model["splits"])
    assert model["median"]["srcc"]["median"] == values[1]
    assert evaluation.report["data"]["split_digest"] == splits.digest
    assert evaluation.report["protocol"]["crops"] == 2
    assert evaluation.report["differences"] == []
    text = printed(evaluation.report)
    assert "median of 3" in text
    assert all(split.digest in text for split in splits.splits)
    assert "protocol released, seed 0, crops 2" in text


@pytest.mark.parametrize("part", ["train", "validation", "all"])
def test_the_other_parts(part: Any, models: list[Path], dataset: Dataset) -> None:
    splits = make_splits(dataset, count=1)
    split = splits.splits[0]
    found = evaluated(models[:1], dataset, splits=splits, part=part).predictions[0].rows
    wanted = dataset.by_name if part == "all" else getattr(split, part)
    assert [row.name for row in found] == sorted(wanted)


def test_parts_that_are_not_there(models: list[Path], dataset: Dataset) -> None:
    with pytest.raises(UserError, match="--part all"):
        evaluated(models, dataset, part="test")
    splits = make_splits(dataset, validation=0)
    with pytest.raises(DataError, match="split 0 has no validation part"):
        evaluated(models, dataset, splits=splits, part="validation")
    with pytest.raises(DataError, match="of folder, not of live"):
        evaluated(models, replace(dataset, name="live"), splits=splits, part="test")


def test_unreadable_images_are_counted(models: list[Path], dataset: Dataset) -> None:
    bad = dataset.samples[3]
    dataset.path(bad).write_bytes(b"no image")
    with pytest.raises(DataError, match=bad.name):
        evaluated(models[:2], dataset)
    report = evaluated(models[:2], dataset, skip_bad=True).report
    for model in report["models"]:
        assert len(model["skipped"]) == 1
        assert bad.name in model["skipped"][0]
        assert model["splits"][0]["images"] == len(dataset.samples) - 1
    assert "1 unusable images left out" in printed(report)


def test_a_split_of_bad_images_only(models: list[Path], dataset: Dataset) -> None:
    splits = make_splits(dataset, count=2)
    for name in splits.splits[1].validation:
        (dataset.root / name).write_bytes(b"no image")
    with pytest.raises(DataError, match="images of split 1 can be used"):
        evaluated(models[:1], dataset, splits=splits, part="validation", skip_bad=True)


def test_models_of_other_directions(
    models: list[Path], dataset: Dataset, tiny: Any, random_model: Any, tmp_path: Path
) -> None:
    path, worse = tmp_path / "worse.safetensors", ScoreScale(0.0, 100.0, higher_is_better=False)
    save_checkpoint(Checkpoint(random_model(tiny()), worse, PREPROCESSING), path)
    report = evaluated([models[0], path], dataset).report
    first, second = report["models"]
    assert (first["labels_mirrored"], second["labels_mirrored"]) == (False, True)
    assert second["splits"][0]["srcc"] == pytest.approx(-first["splits"][0]["srcc"])
    assert report["differences"][0]["score_max"] is None
    assert "other scale" in printed(report)
    assert "mirrored" in printed(report)


def test_the_table_of_scores(models: list[Path], dataset: Dataset, tmp_path: Path) -> None:
    evaluation = evaluated(models[:2], dataset)
    path = tmp_path / "scores.csv"
    write_predictions(evaluation, dataset, path)
    with open(path, newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header[:2] == ["image", "label"]
    assert header[2:] == [f"{kind} {model}" for model in models[:2] for kind in ("score", "std")]
    assert [row[0] for row in rows] == [sample.name for sample in dataset.samples]
    assert [float(row[1]) for row in rows] == [sample.label for sample in dataset.samples]
    assert [float(row[4]) for row in rows] == [r.score for r in evaluation.predictions[1].rows]
