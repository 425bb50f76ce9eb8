"""Export, the proof, and what happens when it fails."""

import copy
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from drexperts import runtime
from drexperts.export import bundle as bundles
from drexperts.export.graph import precision as precisions
from drexperts.export.proof import parity as verify
from drexperts.export.proof.photographs import verification_images
from drexperts.model.checkpoint import Checkpoint
from drexperts.runtime.errors import BundleError, ConfigError, UserError
from drexperts.runtime.files import ABANDONED_AFTER
from drexperts.runtime.manifest import ScoreScale, read_manifest, sha256_of
from drexperts.runtime.preprocess import Preprocessing

SCALE = ScoreScale(-1.0, 1.0, higher_is_better=True)
PREPROCESSING = Preprocessing(crop=64, short_side_min=64, short_side_max=128, crops_per_side=2)


def quiet(_: str) -> None:
    """No progress."""


@pytest.fixture(scope="module", params=["paper", "official"])
def checkpoint(
    request: Any, tiny: Callable[..., Any], random_model: Callable[..., Any]
) -> Checkpoint:
    return Checkpoint(random_model(tiny(request.param), spread=0.05), SCALE, PREPROCESSING)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return verification_images()[:6]


@pytest.fixture(scope="module")
def bundle(
    checkpoint: Checkpoint, pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("export") / "bundle"
    bundles.export_bundle(checkpoint, out, pictures, max_batch=4)
    return out


def test_bundle_is_proven_and_scores_as_the_model(
    bundle: Path, checkpoint: Checkpoint, pictures: list[Image.Image]
) -> None:
    manifest = read_manifest(bundle)
    (engine,) = manifest.engines
    assert engine.proven
    assert engine.parity is not None
    sets = engine.parity.sets
    assert sets["photographs"].images == 6
    rows = sum(len(runtime.load(bundle).score(p).raw) for p in pictures)
    assert engine.parity.rows == rows + sets["synthetic"].images
    assert engine.parity.score_max < 1e-5
    assert engine.invariance is not None
    assert engine.invariance.batches == (1, 2, 3, 4)
    expected = verify.eager_outputs(checkpoint.model, pictures, PREPROCESSING, quiet)
    got = [row.value for row in runtime.load(bundle).score(list(pictures))]
    np.testing.assert_allclose(got, expected.scores, rtol=1e-4, atol=1e-4)
    assert manifest.preset == checkpoint.model.config.preset
    assert sorted(p.name for p in bundle.iterdir()) == ["manifest.json", "model.onnx"]


def test_half_precision_is_proven_under_its_own_limits(
    checkpoint: Checkpoint, pictures: list[Image.Image], tmp_path: Path
) -> None:
    manifest = bundles.export_bundle(
        checkpoint, tmp_path / "b", pictures, precision="fp16", max_batch=2
    )
    (engine,) = manifest.engines
    assert engine.precision == "fp16"
    assert engine.parity is not None
    assert engine.parity.limits == verify.LIMITS["fp16"]
    assert engine.proven


def test_a_failed_gate_leaves_a_bundle_that_load_refuses(
    checkpoint: Checkpoint,
    pictures: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine = precisions.onnx_from_model

    def wrong(*args: Any, **kwargs: Any) -> onnx.ModelProto:
        proto = genuine(*args, **kwargs)
        (bias,) = [i for i in proto.graph.initializer if i.name.endswith("score.bias")]
        bias.raw_data = (onnx.numpy_helper.to_array(bias) + np.float32(1.0)).tobytes()
        return proto

    monkeypatch.setattr(precisions, "onnx_from_model", wrong)
    manifest = bundles.export_bundle(checkpoint, tmp_path / "b", pictures, max_batch=2)
    assert not manifest.engines[0].proven
    with pytest.raises(BundleError, match="drx verify"):
        runtime.load(tmp_path / "b")


def test_a_broken_export_leaves_what_was_there(
    bundle: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sha256_of(bundle / "manifest.json")

    def broken(*_: Any, **__: Any) -> onnx.ModelProto:
        raise RuntimeError("no memory")

    monkeypatch.setattr(precisions, "onnx_from_model", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        bundles.export_bundle(checkpoint, bundle)
    assert sha256_of(bundle / "manifest.json") == before
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_what_killed_exports_left_is_swept(
    checkpoint: Checkpoint, pictures: list[Image.Image], tmp_path: Path
) -> None:
    for name, age in ((".b.partial-old", 2 * ABANDONED_AFTER), (".b.partial-new", 0.0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    bundles.export_bundle(checkpoint, tmp_path / "b", pictures, max_batch=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b.partial-new", "b"]


def test_a_place_that_is_no_bundle_is_not_touched(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="other things than a bundle"):
        bundles.export_bundle(checkpoint, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("manifest", ["another program's", "a bundle's"])
def test_a_manifest_does_not_make_a_folder_a_bundle(
    manifest: str, bundle: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "app"
    shutil.copytree(bundle, folder)
    if manifest == "another program's":
        (folder / "manifest.json").write_text('{"name": "my web app"}')
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="other things than a bundle"):
        bundles.export_bundle(checkpoint, folder)
    assert (folder / "thesis.tex").exists()


def test_where_a_link_leads_is_replaced(
    bundle: Path, checkpoint: Checkpoint, pictures: list[Image.Image], tmp_path: Path
) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    shutil.copytree(bundle, target)
    link.symlink_to(target)
    bundles.export_bundle(checkpoint, link, pictures, max_batch=2)
    assert link.is_symlink()
    assert read_manifest(target).engines[0].max_batch == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "target"]


def test_the_current_folder_will_do(
    checkpoint: Checkpoint,
    pictures: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert bundles.export_bundle(checkpoint, Path("."), pictures, max_batch=1).engines[0].proven
    scorer = runtime.load(tmp_path / "here")
    assert scorer.session.max_batch == 1
    assert len(scorer.score(list(pictures))) == len(pictures)


@pytest.mark.parametrize("max_batch", [0, -3, 70000])
def test_batches_that_cannot_be(max_batch: int, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"1 to 1024, got {max_batch}"):
        bundles.export_bundle(checkpoint, tmp_path / "b", max_batch=max_batch)


def test_crops_must_be_the_models(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = checkpoint._replace(preprocessing=Preprocessing(32, 32, 64, 2))
    with pytest.raises(ConfigError, match="32 px crops for a model of 64 px"):
        bundles.export_bundle(other, tmp_path / "b")


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "no numbers"), (0.0, "all 130 images")]
)
def test_a_model_that_says_nothing_is_the_users_matter(
    value: float,
    message: str,
    checkpoint: Checkpoint,
    pictures: list[Image.Image],
    tmp_path: Path,
) -> None:
    model = copy.deepcopy(checkpoint.model)
    for parameter in model.score.parameters():
        parameter.data.fill_(value)
    with pytest.raises(UserError, match=message):
        bundles.export_bundle(checkpoint._replace(model=model), tmp_path / "b", pictures)
    assert not (tmp_path / "b").exists()


def test_pictures_no_engine_could_be_proven_on_are_refused_first(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    told: list[str] = []
    flat = [Image.new("RGB", (80, 80), (90, 90, 90))] * 3
    with pytest.raises(UserError, match="100 different images"):
        bundles.export_bundle(checkpoint, tmp_path / "b", flat, progress=told.append)
    assert told == []


def test_scale_must_be_known(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--scale LOW:HIGH"):
        bundles.export_bundle(checkpoint._replace(scale=None), tmp_path / "b")
