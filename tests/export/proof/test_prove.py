"""The proofs: measured again, and by whom they are refused."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drexperts.export.bundle import export_bundle
from drexperts.export.proof import prove
from drexperts.export.proof.parity import eager_outputs
from drexperts.export.proof.photographs import verification_images
from drexperts.export.proof.prove import (
    check_same_weights,
    images_in,
    prove_engine,
    record_proofs,
    verify_bundle,
)
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.runtime import compatibility
from drexperts.runtime.errors import BundleError, NotTakenError, UserError
from drexperts.runtime.manifest import ScoreScale, read_manifest, write_manifest
from drexperts.runtime.preprocess import Preprocessing


def quiet(_: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def checkpoint(tiny: Callable[..., Any], random_model: Callable[..., Any]) -> Checkpoint:
    scale = ScoreScale(0.0, 100.0, higher_is_better=True)
    return Checkpoint(random_model(tiny()), scale, Preprocessing(64, 64, 128, 2))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return verification_images()[:6]


@pytest.fixture(scope="module")
def bundle(
    checkpoint: Checkpoint, pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("export") / "bundle"
    export_bundle(checkpoint, out, pictures, max_batch=4)
    return out


def test_verify_against_another_model_names_what_differs(
    bundle: Path, checkpoint: Checkpoint, pictures: list[Image.Image], random_model: Any
) -> None:
    config = replace(
        checkpoint.model.config, clip_antialias=not checkpoint.model.config.clip_antialias
    )
    other = checkpoint._replace(model=random_model(config))
    with pytest.raises(UserError, match="clip_antialias differ"):
        prove(bundle, other, pictures, quiet)


def test_verify_rewrites_the_proof(
    bundle: Path, checkpoint: Checkpoint, pictures: list[Image.Image], tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, picture in enumerate(pictures[:4]):
        picture.save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("not an image")
    manifest = read_manifest(bundle)
    stripped = replace(manifest, engines=(replace(manifest.engines[0], parity=None),))
    write_manifest(stripped, bundle)
    path = tmp_path / "model.safetensors"
    save_checkpoint(checkpoint, path)
    proven = verify_bundle(bundle, checkpoint=path, images=folder, progress=quiet)
    assert proven == read_manifest(bundle)
    assert proven.engines[0].parity is not None
    assert proven.engines[0].parity.sets["photographs"].images == 4
    assert proven.engines[0].parity.sets["synthetic"].images >= 100
    assert proven.engines[0].proven


def test_verify_against_other_weights_fails(
    bundle: Path,
    checkpoint: Checkpoint,
    pictures: list[Image.Image],
    random_model: Callable[..., Any],
) -> None:
    kept = read_manifest(bundle)
    other = checkpoint._replace(model=random_model(checkpoint.model.config, seed=1))
    try:
        assert not prove(bundle, other, pictures, quiet).engines[0].proven
    finally:
        write_manifest(kept, bundle)


def test_verify_without_weights_measures_invariance_only(
    bundle: Path, pictures: list[Image.Image]
) -> None:
    before = read_manifest(bundle).engines[0]
    after = prove(bundle, None, pictures, quiet).engines[0]
    assert after.parity == before.parity
    assert after.invariance is not None
    assert after.invariance.passed


def test_a_changed_file_is_not_verified(bundle: Path, tmp_path: Path, pictures: Any) -> None:
    changed = tmp_path / "copy"
    shutil.copytree(bundle, changed)
    content = (changed / "model.onnx").read_bytes()
    (changed / "model.onnx").write_bytes(content + b"\0")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        prove(changed, None, pictures, quiet)


@pytest.mark.parametrize("count", [0, 2])
def test_too_few_images(count: int, bundle: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (80, 80), (i * 90, 0, 0)).save(folder / f"{i}.png")
    with pytest.raises(UserError, match=r"at least 3|no readable image"):
        prove(bundle, checkpoint, images_in(folder), quiet)


def test_engines_that_do_not_run_here_keep_their_record(
    bundle: Path, tmp_path: Path, pictures: list[Image.Image], planned: Callable[..., Any]
) -> None:
    if compatibility.gpus():
        pytest.skip("this machine has a GPU")
    changed = shutil.copytree(bundle, tmp_path / "copy")
    manifest = read_manifest(changed)
    (onnx,) = manifest.engines
    provider = replace(onnx, backend="onnx-cuda", parity=None, invariance=None)
    engines = (replace(onnx, invariance=None), planned(), provider)
    write_manifest(replace(manifest, engines=engines), changed)
    proven = prove(changed, None, pictures, quiet)
    assert proven.engines[0].proven
    assert proven.engines[1:] == engines[1:]


def test_a_batch_that_was_not_certified_can_be_certified(
    bundle: Path, pictures: list[Image.Image]
) -> None:
    manifest = read_manifest(bundle)
    (engine,) = manifest.engines
    assert engine.invariance is not None
    less = replace(engine, invariance=replace(engine.invariance, batches=(1, 2)))
    assert less.certified_batch == 2
    again = prove_engine(bundle, manifest, less, None, pictures, quiet)
    assert again.certified_batch == 4


def test_a_checkpoint_of_other_weights_is_told_from_the_bundles(
    bundle: Path, checkpoint: Checkpoint, random_model: Callable[..., Any]
) -> None:
    manifest = read_manifest(bundle)
    (engine,) = manifest.engines
    check_same_weights(bundle, manifest, engine, checkpoint)
    other = checkpoint._replace(model=random_model(checkpoint.model.config, seed=1))
    with pytest.raises(UserError, match="other weights than the bundle"):
        check_same_weights(bundle, manifest, engine, other)


def test_a_checkpoint_is_held_to_twice_what_parity_was(
    bundle: Path, checkpoint: Checkpoint
) -> None:
    manifest = read_manifest(bundle)
    (engine,) = manifest.engines
    assert engine.parity is not None
    rough = replace(engine, precision="int8")  # whose limit is 3 % of the span
    near = copy.deepcopy(checkpoint.model)
    (bias,) = [p for name, p in near.named_parameters() if name.endswith("score.bias")]
    weights = eager_outputs(near, verification_images()[:3], manifest.preprocessing, quiet).weights
    bias.data += 0.01 * manifest.scale.span / float(np.abs(weights.sum(1)).max())
    with pytest.raises(UserError, match="other weights than the bundle"):
        check_same_weights(bundle, manifest, rough, checkpoint._replace(model=near))
    check_same_weights(bundle, manifest, rough, checkpoint)
    wide = replace(rough, parity=replace(engine.parity, score_max=0.02, passed=False))
    check_same_weights(bundle, manifest, wide, checkpoint._replace(model=near))


def test_proofs_join_what_a_build_wrote_meanwhile(
    bundle: Path, tmp_path: Path, planned: Callable[..., Any]
) -> None:
    changed = shutil.copytree(bundle, tmp_path / "copy")
    manifest = read_manifest(changed)
    (onnx,) = manifest.engines
    measured = replace(onnx, parity=None)
    built = replace(planned(), file="built-meanwhile.engine")
    write_manifest(replace(manifest, engines=(onnx, built)), changed)
    gone = replace(onnx, sha256="1" * 64)
    assert record_proofs(changed, [measured, gone]).engines == (measured, built)


def test_one_engine_that_cannot_be_opened_costs_only_its_own_proof(
    bundle: Path,
    tmp_path: Path,
    pictures: list[Image.Image],
    planned: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = shutil.copytree(bundle, tmp_path / "copy")
    manifest = read_manifest(changed)
    (onnx,) = manifest.engines
    elsewhere = planned()
    engines = (elsewhere, replace(onnx, invariance=None))
    write_manifest(replace(manifest, engines=engines), changed)
    monkeypatch.setattr("drexperts.runtime.obstacle", lambda engine: None)
    told: list[str] = []
    proven = prove(changed, None, pictures, told.append)
    assert proven.engines[0] == elsewhere
    assert proven.engines[1].proven
    assert any("was not built here" in text for text in told)
    write_manifest(replace(manifest, engines=(elsewhere,)), changed)
    with pytest.raises(NotTakenError, match="was not built here"):
        prove(changed, None, pictures, quiet)


def test_a_precision_of_a_later_version(
    bundle: Path, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    changed = shutil.copytree(bundle, tmp_path / "copy")
    manifest = read_manifest(changed)
    later = replace(manifest.engines[0], precision="fp4")
    write_manifest(replace(manifest, engines=(later,)), changed)
    with pytest.raises(BundleError, match="install a later drexperts"):
        prove(changed, None, pictures, quiet)
