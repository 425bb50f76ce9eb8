"""Scores of a miniature data set: sessions, both protocols, directions, bad images."""

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.miniature import write

from drexperts import runtime
from drexperts.data.dataset import Dataset, Sample
from drexperts.data.layouts import open_dataset
from drexperts.data.recipes import RECIPES, Recipe
from drexperts.evaluation.predict import (
    ScoredImages,
    TorchSession,
    model_digest,
    open_model,
    predict,
    random_crops,
    scorer_of,
)
from drexperts.model.backbones import normalised
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import (
    BundleError,
    ConfigError,
    DataError,
    DeviceError,
    UserError,
    WeightsError,
)
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing, crops_from_image

SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)
PREPROCESSING = Preprocessing(crop=64, short_side_min=64, short_side_max=128, crops_per_side=2)
RECIPE = Recipe(4, 1, 3, None, 2.0, True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Any], random_model: Callable[..., Any]) -> DRExperts:
    made: DRExperts = random_model(tiny())
    return made


@pytest.fixture(scope="module")
def checkpoint(model: DRExperts) -> Checkpoint:
    return Checkpoint(model, SCALE, PREPROCESSING)


@pytest.fixture(scope="module")
def file(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny model.safetensors"
    save_checkpoint(checkpoint, path)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """18 images of 96 x 72 px."""
    return open_dataset("folder", write("folder", tmp_path / "data", contents=2), scale=SCALE)


def scored(
    scorer: runtime.Scorer,
    dataset: Dataset,
    protocol: Any,
    samples: Sequence[Sample] | None = None,
    **changes: Any,
) -> ScoredImages:
    settings = {"recipe": RECIPE, "protocol": protocol} | changes
    return predict(scorer, dataset, dataset.samples if samples is None else samples, **settings)


@pytest.mark.parametrize("protocol", ["grid", "released"])
def test_an_image_that_becomes_unreadable_is_named(
    protocol: str, checkpoint: Checkpoint, dataset: Dataset
) -> None:
    scorer = scorer_of(checkpoint)
    scored(scorer, dataset, protocol)
    path = dataset.path(dataset.samples[3])
    status = path.stat()
    path.write_bytes(path.read_bytes()[:60].ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=re.escape(path.name)):
        scored(scorer, dataset, protocol)


def test_a_session_is_the_model(model: DRExperts) -> None:
    session = TorchSession(model)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    got = session.run(pixels)
    with torch.no_grad():
        expected = model(normalised(torch.from_numpy(pixels)))
    for name, array in got.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, getattr(expected, name).numpy())
    assert list(got) == ["score", "weights", "maps"]
    assert "CPU, fp32" in session.description


def test_a_session_leaves_a_model_in_training_as_it_was(
    tiny: Callable[..., Any], random_model: Callable[..., Any]
) -> None:
    model = random_model(tiny()).train()
    model.controller.eval()
    model.score.register_forward_hook(lambda module, *_: seen.append(module.training))
    seen: list[bool] = []
    pixels = np.zeros((1, 3, 64, 64), np.uint8)
    before = TorchSession(model).run(pixels)["score"]
    assert seen == [False]
    assert model.training
    assert model.score.training
    assert not model.controller.training
    model(normalised(torch.from_numpy(pixels))).score.sum().backward()
    assert model.score.weight.grad is not None
    np.testing.assert_array_equal(TorchSession(model).run(pixels)["score"], before)


def test_a_session_in_reduced_precision(model: DRExperts) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    full = TorchSession(model).run(pixels)["score"]
    session = TorchSession(model, torch.bfloat16)
    half = session.run(pixels)["score"]
    assert half.dtype == np.float32
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, rtol=0.1, atol=0.1)
    assert session.description.endswith("bf16")


def test_a_checkpoint_scores_as_the_model(file: Path, model: DRExperts, dataset: Dataset) -> None:
    with open_model(file, "cpu") as scorer:
        found = scored(scorer, dataset, "grid")
    assert [row.name for row in found.rows] == [sample.name for sample in dataset.samples]
    for row, sample in zip(found.rows, dataset.samples, strict=True):
        pixels = crops_from_image(decode(dataset.path(sample)), PREPROCESSING).pixels
        with torch.no_grad():
            raw = model(normalised(torch.from_numpy(pixels))).score.double().numpy()
        assert (row.label, row.crops) == (sample.label, len(raw))
        assert row.score == pytest.approx(raw.mean(), rel=1e-5)
        assert row.std == pytest.approx(raw.std(), abs=1e-3)


def test_a_checkpoint_has_a_manifest_without_proof(file: Path, checkpoint: Checkpoint) -> None:
    manifest = open_model(file, "cpu").manifest
    (engine,) = manifest.engines
    assert (engine.backend, engine.precision, engine.evidence) == ("torch", "fp32", "built")
    assert not engine.proven
    assert engine.sha256 == model_digest(checkpoint.model)
    assert (manifest.preprocessing, manifest.scale) == (PREPROCESSING, SCALE)
    assert (manifest.config, manifest.preset) == (checkpoint.model.config.as_dict(), "paper")


def test_the_digest_is_of_weights_and_switches(
    tiny: Callable[..., Any], random_model: Callable[..., Any], model: DRExperts
) -> None:
    assert model_digest(random_model(tiny())) == model_digest(model)
    changed = random_model(tiny())
    with torch.no_grad():
        changed.score.bias += 1e-6
    other = [changed, random_model(tiny(attention_scale=1.0))]
    assert len({model_digest(each) for each in [model, *other]}) == 3


def test_scores_do_not_depend_on_the_others(checkpoint: Checkpoint, dataset: Dataset) -> None:
    scorer = scorer_of(checkpoint)
    for protocol in ("grid", "released"):
        everything = scored(scorer, dataset, protocol).rows
        few = scored(scorer, dataset, protocol, samples=dataset.samples[16:2:-5]).rows
        expected = {row.name: row for row in everything}
        assert [row.name for row in few] == [s.name for s in dataset.samples[16:2:-5]]
        for row in few:
            assert row.score == pytest.approx(expected[row.name].score, rel=1e-5)


def test_released_crops_are_those_of_the_seed(checkpoint: Checkpoint, dataset: Dataset) -> None:
    scorer = scorer_of(checkpoint)
    first, again, other = (scored(scorer, dataset, "released", seed=s).rows for s in (1, 1, 2))
    assert first == again
    assert all(a.score != b.score for a, b in zip(first, other, strict=True))
    assert {row.crops for row in first} == {RECIPE.test_crops}


def test_released_crops_lie_everywhere_and_are_mirrored() -> None:
    pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    recipe = replace(RECIPE, test_crops=400)
    crops = list(random_crops(pixels, 4, recipe, np.random.default_rng(0)))
    seen = {crop.tobytes() for crop in crops}
    turns = [np.s_[:, :], np.s_[::-1, :], np.s_[:, ::-1], np.s_[::-1, ::-1]]
    corners = [(top, left) for top in range(3) for left in range(2)]
    cuts = [pixels[top : top + 4, left : left + 4] for top, left in corners]
    assert seen == {np.ascontiguousarray(cut[turn]).tobytes() for cut in cuts for turn in turns}
    plain = random_crops(pixels, 4, replace(recipe, test_flips=False), np.random.default_rng(0))
    assert {crop.tobytes() for crop in plain} == {cut.tobytes() for cut in cuts}


@pytest.mark.parametrize("size", [(40, 300), (20, 20), (64, 64), (96, 72)])
def test_released_images_of_any_size(
    size: tuple[int, int], checkpoint: Checkpoint, photo: Callable[..., Image.Image], tmp_path: Path
) -> None:
    photo(*size).save(tmp_path / "a.png")
    dataset = Dataset("folder", tmp_path, (Sample("a.png", 5.0, "a.png"),), SCALE)
    for recipe in (RECIPE, RECIPES["koniq10k"]):
        (row,) = scored(scorer_of(checkpoint), dataset, "released", recipe=recipe).rows
        assert math.isfinite(row.score)
        assert row.crops == recipe.test_crops


def test_an_image_that_is_a_crop_gives_its_own_score(
    checkpoint: Checkpoint, photo: Callable[..., Image.Image], tmp_path: Path
) -> None:
    photo(64, 64).save(tmp_path / "a.png")
    dataset = Dataset("folder", tmp_path, (Sample("a.png", 5.0, "a.png"),), SCALE)
    scorer = scorer_of(checkpoint)
    grid, released = (
        scored(scorer, dataset, protocol, recipe=replace(RECIPE, test_flips=False)).rows[0]
        for protocol in ("grid", "released")
    )
    assert released.score == pytest.approx(grid.score, rel=1e-5)
    assert (grid.crops, released.crops) == (1, 3)


def test_labels_are_mirrored_into_the_models_direction(
    checkpoint: Checkpoint, dataset: Dataset
) -> None:
    worse = replace(dataset, scale=replace(SCALE, higher_is_better=False))
    scorer = scorer_of(checkpoint)
    as_it_is, mirrored = (scored(scorer, each, "grid") for each in (dataset, worse))
    assert (as_it_is.mirrored, mirrored.mirrored) == (False, True)
    for a, b in zip(as_it_is.rows, mirrored.rows, strict=True):
        assert b == a._replace(label=100.0 - a.label)


@pytest.mark.parametrize("protocol", ["grid", "released"])
def test_unreadable_images(protocol: str, checkpoint: Checkpoint, dataset: Dataset) -> None:
    bad = [dataset.samples[0], dataset.samples[7], dataset.samples[-1]]
    for sample in bad:
        dataset.path(sample).write_bytes(b"no image")
    scorer, told = scorer_of(checkpoint), list[tuple[int, int]]()
    with pytest.raises(DataError, match=rf"3 of 18 .*{bad[0].name}.*{bad[2].name}"):
        scored(scorer, dataset, protocol)
    found = scored(scorer, dataset, protocol, skip_bad=True, progress=lambda *n: told.append(n))
    assert [row.name for row in found.rows] == [s.name for s in dataset.samples if s not in bad]
    assert len(found.skipped) == 3
    assert all(sample.name in text for sample, text in zip(bad, found.skipped, strict=True))
    assert told == [(n, 15) for n in range(1, 16)]


@pytest.mark.parametrize("protocol", ["grid", "released"])
def test_scores_that_are_nan_are_not_left_out(
    protocol: str, tiny: Callable[..., Any], random_model: Callable[..., Any], dataset: Dataset
) -> None:
    model = random_model(tiny())
    torch.nn.init.constant_(model.score.bias, math.nan)
    scorer = scorer_of(Checkpoint(model, SCALE, PREPROCESSING))
    with pytest.raises(WeightsError, match=dataset.samples[0].name):
        scored(scorer, dataset, protocol, skip_bad=True)


def test_a_scale_is_needed_and_can_be_given(
    model: DRExperts, tmp_path: Path, dataset: Dataset
) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(Checkpoint(model, None, PREPROCESSING), path)
    with pytest.raises(ConfigError, match="pass scale="):
        open_model(path, "cpu")
    scale = ScoreScale(1.0, 5.0, higher_is_better=False)
    scorer = open_model(path, "cpu", scale=scale)
    assert scorer.manifest.scale == scale
    assert scored(scorer, dataset, "grid").mirrored


def test_models_that_cannot_be_opened(file: Path, model: DRExperts, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        open_model(tmp_path / "missing.safetensors")
    with pytest.raises(BundleError):
        open_model(tmp_path)
    with pytest.raises(UserError, match="tpu"):
        open_model(file, "tpu")
    gpu = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(DeviceError, match=gpu):
        open_model(file, gpu)
    other = Preprocessing(crop=32, short_side_min=32, short_side_max=64, crops_per_side=1)
    with pytest.raises(ConfigError, match=r"32 px.* 64 px"):
        scorer_of(Checkpoint(model, SCALE, other))
