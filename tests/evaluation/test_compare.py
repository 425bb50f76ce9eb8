"""Several models on one data set: metrics, agreement, and the report."""

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
from drexperts.evaluation import Evaluation, Metrics, compute_metrics, evaluate
from drexperts.evaluation.metrics import NAMES
from drexperts.evaluation.predict import ScoredImage
from drexperts.export.bundle import export_bundle
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.runtime.errors import DataError
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
