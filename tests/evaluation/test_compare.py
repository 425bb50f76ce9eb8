"""Several models on one data set: metrics, agreement, and the report."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.miniature import write

from drexperts.data.dataset import Dataset
from drexperts.data.layouts import open_dataset
from drexperts.data.recipes import RECIPES
from drexperts.data.splits import make_splits, whole
from drexperts.evaluation import (
    Evaluation,
    Metrics,
    compute_metrics,
    evaluate,
    write_predictions,
)
from drexperts.evaluation.metrics import NAMES
from drexperts.evaluation.predict import ScoredImage
from drexperts.export.bundle import export_bundle
from drexperts.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from drexperts.runtime.errors import DataError, UserError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.proof import LIMITS

pytestmark = pytest.mark.slow  # what they share takes seconds to make

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
    defaults: dict[str, Any] = {"recipe": replace(RECIPES["folder"], test_crops=2)}
    return evaluate(
        [str(model) for model in models], dataset, **(defaults | {"device": "cpu"} | changes)
    )


def metrics_of(rows: Sequence[ScoredImage]) -> Metrics:
    return compute_metrics([row.label for row in rows], [row.score for row in rows])


@pytest.mark.parametrize("protocol", ["grid", "released"])
def test_a_checkpoint_and_its_bundle_agree(
    protocol: str, models: list[Path], dataset: Dataset
) -> None:
    found = evaluated(models, dataset, protocol=protocol)
    same, other = found.differences
    assert (same.model, same.reference) == (str(models[1]), str(models[0]))
    limits = LIMITS["fp32"]
    assert same.score_max is not None
    assert other.score_max is not None
    assert same.score_max <= limits["score_max"] * SCALE.span
    assert other.score_max > 0.1
    assert (same.srcc >= limits["srcc"], same.plcc >= limits["plcc"]) == (True, True)
    first, bundle, third = found.models
    for name in NAMES:
        expected = getattr(first.splits[0], name)
        assert getattr(bundle.splits[0], name) == pytest.approx(expected, abs=1e-3)
    assert third.splits[0].srcc != first.splits[0].srcc
    assert [model.engine for model in found.models] == ["torch", "onnx", "torch"]
    assert len({model.fingerprint for model in found.models}) == 3
    assert first.splits == (metrics_of(found.predictions[0].rows),)
    assert (found.data.digest, found.data.split_digest) == (dataset.digest, whole(dataset).digest)
    document = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert list(document) == ["data", "protocol", "models", "differences"]
    assert document["protocol"]["name"] == protocol
    assert list(document["differences"][0])[:3] == ["model", "from", "same_weights"]
    assert (same.same_weights, other.same_weights) == (True, False)
    assert document["models"][1]["splits"][0]["srcc"] == bundle.splits[0].srcc


def test_each_split_and_their_median(models: list[Path], dataset: Dataset) -> None:
    splits = make_splits(dataset, count=3)
    found = evaluated(models[:1], dataset, splits=splits, protocol="released")
    (model,) = found.models
    by_name = {row.name: row for row in found.predictions[0].rows}
    assert set(by_name) == {name for split in splits.splits for name in split.test}
    expected = [metrics_of([by_name[name] for name in split.test]) for split in splits.splits]
    assert list(model.splits) == expected
    assert model.median.srcc.median == sorted(metrics.srcc for metrics in expected)[1]
    assert (found.data.part, found.data.split_digest) == ("test", splits.digest)
    assert found.as_json()["protocol"]["crops"] == 2
    assert found.differences == ()


def test_every_model_with_every_grid(models: list[Path], dataset: Dataset, tmp_path: Path) -> None:
    """Crops of 64 px from images of up to 80 px, where the checkpoint's own grid is one crop."""
    wide = Preprocessing(crop=64, short_side_min=64, short_side_max=80, crops_per_side=3)
    checkpoint = load_checkpoint(models[0])
    save_checkpoint(checkpoint._replace(preprocessing=wide), tmp_path / "wide.safetensors")
    splits = make_splits(dataset, count=2)
    given = ([tmp_path / "wide.safetensors", models[1]], dataset)
    found = evaluated(*given, splits=splits, part="all", crops_per_side=(None, 1))
    assert [model.crops_per_side for model in found.models] == [None, 1, None, None]
    assert [model.preprocessing.crops_per_side for model in found.models] == [3, 1, 1, 1]
    whole, single, _, again = found.models
    assert whole.crops > single.crops == single.images
    assert len({model.fingerprint for model in found.models}) == 3
    assert (single.label, again.label) == (f"{single.model}, 1 per side", again.model)
    difference = found.differences[0]
    assert (difference.model, difference.reference) == (single.label, whole.label)
    assert (difference.same_weights, len(difference.changes)) == (True, 2)
    for change, before, after in zip(difference.changes, whole.splits, single.splits, strict=True):
        for name in ("srcc", "plcc"):
            expected = getattr(after, name) - getattr(before, name)
            assert change[name].value == pytest.approx(expected)
            assert change[name].interval.low <= change[name].interval.high
    write_predictions(found, dataset, tmp_path / "scores.csv")
    header = next(csv.reader((tmp_path / "scores.csv").read_text().splitlines()))
    assert header[2::2] == [f"score {model.label}" for model in found.models]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"crops_per_side": (65,)}, "1 to 64"),
        ({"crops_per_side": ()}, "at least one"),
        ({"crops_per_side": (2,), "protocol": "released"}, "random crops"),
    ],
)
def test_grids_that_cannot_be(
    changes: dict[str, Any], named: str, models: list[Path], dataset: Dataset
) -> None:
    with pytest.raises(UserError, match=named):
        evaluated(models, dataset, **changes)


def test_splits_that_do_not_fit(models: list[Path], dataset: Dataset) -> None:
    splits = make_splits(dataset, validation=0)
    with pytest.raises(DataError, match="split 0"):
        evaluated(models, dataset, splits=splits, part="validation")
    with pytest.raises(DataError, match=r"folder.* live"):
        evaluated(models, replace(dataset, name="live"), splits=splits, part="test")


def test_a_split_of_bad_images_only(models: list[Path], dataset: Dataset) -> None:
    splits = make_splits(dataset, count=2)
    for name in splits.splits[1].validation:
        (dataset.root / name).write_bytes(b"no image")
    with pytest.raises(DataError, match="split 1"):
        evaluated(models[:1], dataset, splits=splits, part="validation", skip_bad=True)
