"""The proofs: measured again, and which bundles and checkpoints are refused."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.reporting import Recorder

from drexperts import runtime
from drexperts.export import Measured, build_engine, verify
from drexperts.export.engines.debug_layers import bundle_layers
from drexperts.export.proof import photographs
from drexperts.export.proof.division import digest_of, digest_of_all, divided, photographs_of
from drexperts.export.proof.parity import Reference, eager_outputs
from drexperts.export.proof.photographs import NAMES
from drexperts.export.proof.prove import (
    check_same_weights,
    measure_proofs,
    pictures_for,
    prove_engine,
    record_proofs,
)
from drexperts.runtime import compatibility
from drexperts.runtime.errors import BundleError, NotTakenError, UserError
from drexperts.runtime.manifest import Engine, read_manifest, write_manifest
from drexperts.runtime.proof import LIMITS

Pictures = list[Image.Image]


@pytest.fixture(scope="module")
def other(checkpoint, random_model):
    """The same model with other weights."""
    return checkpoint._replace(model=random_model(checkpoint.model.config, seed=1))


def with_engines(bundle: Path, *engines: Engine) -> Path:
    write_manifest(replace(read_manifest(bundle), engines=engines), bundle)
    return bundle


def only_engine(bundle: Path) -> Engine:
    (engine,) = read_manifest(bundle).engines
    return engine


def test_another_model_is_refused_by_what_differs(exported, checkpoint, pictures, random_model):
    config = checkpoint.model.config
    changed = random_model(replace(config, clip_antialias=not config.clip_antialias))
    with pytest.raises(UserError, match="clip_antialias"):
        verify(exported, checkpoint=checkpoint._replace(model=changed), images=pictures)


@pytest.mark.slow
def test_the_proof_is_rewritten(bundle, checkpoint_file, pictures, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, picture in enumerate(pictures[:4]):
        picture.save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("not an image")
    with_engines(bundle, replace(only_engine(bundle), parity=None))
    done = verify(bundle, checkpoint=checkpoint_file, images=folder)
    assert done.manifest == read_manifest(bundle)
    assert done.measured == (Measured("model.onnx", "onnx", True, True, None),)
    assert done.images == f"4 images in {folder}"
    (proven,) = done.manifest.engines
    assert proven.parity is not None
    assert proven.parity.sets["photographs"].images == 4
    assert proven.parity.sets["synthetic"].images >= 100
    assert proven.proven


def test_without_a_checkpoint_parity_stays(bundle, pictures):
    before = only_engine(bundle)
    done = verify(bundle, images=pictures)
    ((without,), (measured,)) = done.manifest.engines, done.measured
    assert (measured.parity, measured.batch_invariance) == (False, True)
    assert "checkpoint=" in (measured.reason or "")
    assert done.images == "6 images"
    assert without.parity == before.parity
    assert without.invariance is not None
    assert without.invariance.passed


def without_digest(bundle: Path) -> Path:
    """The bundle as an earlier version wrote it."""
    write_manifest(replace(read_manifest(bundle), weights=None), bundle)
    return bundle


@pytest.mark.parametrize("change", [lambda bundle: bundle, without_digest])
def test_foreign_weights_are_refused_and_change_nothing(change, bundle, other, pictures):
    before = (change(bundle) / "manifest.json").read_bytes()
    assert (read_manifest(bundle).weights is None) == (change is without_digest)
    with pytest.raises(UserError, match="other weights"):
        verify(bundle, checkpoint=other, images=pictures)
    with pytest.raises(UserError, match="other weights"):
        build_engine(bundle, "onnx-cuda", checkpoint=other, images=pictures)
    with pytest.raises(UserError, match="other weights"):
        next(bundle_layers(bundle, other, pictures))
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda bundle: bundle, without_digest])
def test_a_spoilt_proof_is_repaired(change, bundle, checkpoint, pictures):
    engine = only_engine(change(bundle))
    assert engine.parity is not None
    spoilt = replace(engine, parity=replace(engine.parity, score_max=0.5, passed=False))
    with_engines(bundle, spoilt)
    assert not only_engine(bundle).proven
    assert verify(bundle, checkpoint=checkpoint, images=pictures).manifest.engines[0].proven
    assert only_engine(bundle).proven


def test_a_changed_file_is_not_verified(bundle, pictures):
    with open(bundle / "model.onnx", "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match="SHA-256"):
        verify(bundle, images=pictures)


@pytest.mark.parametrize("count", [None, 0, 2])
def test_too_few_images(count, exported, checkpoint, tmp_path):
    folder = tmp_path / "photos"
    if count is not None:
        folder.mkdir()
    for i in range(count or 0):
        Image.new("RGB", (80, 80), (i * 90, 0, 0)).save(folder / f"{i}.png")
    with pytest.raises(UserError, match="got 2" if count else str(folder)):
        verify(exported, checkpoint=checkpoint, images=folder)


def test_engines_that_do_not_run_here_keep_their_record(bundle, pictures, planned):
    if compatibility.gpus():
        pytest.skip("this machine has a GPU")
    onnx = only_engine(bundle)
    provider = replace(onnx, backend="onnx-cuda", parity=None, invariance=None)
    with_engines(bundle, replace(onnx, invariance=None), planned(), provider)
    done = verify(bundle, images=pictures)
    assert done.manifest.engines[0].proven
    assert done.manifest.engines[1:] == (planned(), provider)
    for engine, measured in zip(done.manifest.engines[1:], done.measured[1:], strict=True):
        assert (measured.file, measured.backend) == (engine.file, engine.backend)
        assert (measured.parity, measured.batch_invariance) == (False, False)
        assert measured.reason == runtime.obstacle(engine)


def test_a_batch_that_was_not_certified_can_be_certified(exported, pictures):
    engine = only_engine(exported)
    assert engine.invariance is not None
    less = replace(engine, invariance=replace(engine.invariance, batches=(1, 2)))
    assert less.certified_batch == 2
    again = prove_engine(exported, read_manifest(exported), less, None, pictures)
    assert again.certified_batch == 4


def test_without_a_digest_scores_may_differ_by_twice_the_measured_drift(
    bundle, checkpoint, pictures
):
    manifest, engine = read_manifest(without_digest(bundle)), only_engine(bundle)
    assert engine.parity is not None
    rough = replace(engine, precision="int8")  # whose limit is 3 % of the span
    wide = replace(rough, parity=replace(engine.parity, score_max=0.02, passed=False))
    narrow_bundle, wide_bundle = (replace(manifest, engines=(each,)) for each in (rough, wide))
    near = copy.deepcopy(checkpoint.model)
    (bias,) = [p for name, p in near.named_parameters() if name.endswith("score.bias")]
    weights = eager_outputs(near, pictures[:3], manifest.preprocessing).weights
    bias.data += 0.01 * manifest.scale.span / float(np.abs(weights.sum(1)).max())
    moved = checkpoint._replace(model=near)
    with pytest.raises(UserError, match="other weights"):
        check_same_weights(bundle, narrow_bundle, moved)
    check_same_weights(bundle, narrow_bundle, checkpoint)
    check_same_weights(bundle, wide_bundle, moved)


def test_with_a_digest_no_weight_may_differ(exported, checkpoint):
    manifest = read_manifest(exported)
    assert manifest.weights == checkpoint.weights
    check_same_weights(exported, manifest, checkpoint)
    near = copy.deepcopy(checkpoint.model)
    with torch.no_grad():
        near.score.bias += 1e-6
    with pytest.raises(UserError, match="other weights"):
        check_same_weights(exported, manifest, checkpoint._replace(model=near))


def test_proofs_are_written_beside_what_a_build_added_meanwhile(bundle, planned):
    onnx = only_engine(bundle)
    built = replace(planned(), file="built-meanwhile.engine")
    with_engines(bundle, onnx, built)
    measured, gone = replace(onnx, parity=None), replace(onnx, sha256="1" * 64)
    assert record_proofs(bundle, [measured, gone]).engines == (measured, built)


def test_one_engine_that_cannot_be_opened_costs_only_its_own_proof(
    bundle, pictures, planned, monkeypatch
):
    elsewhere = planned()
    with_engines(bundle, elsewhere, replace(only_engine(bundle), invariance=None))
    monkeypatch.setattr("drexperts.runtime.obstacle", lambda engine: None)
    done = verify(bundle, images=pictures)
    assert done.manifest.engines[0] == elsewhere
    assert done.manifest.engines[1].proven
    assert [each.batch_invariance for each in done.measured] == [False, True]
    assert "trust=True" in (done.measured[0].reason or "")
    with_engines(bundle, elsewhere)
    with pytest.raises(NotTakenError, match="trust=True"):
        verify(bundle, images=pictures)


def test_an_engine_without_the_margin_is_refused_where_it_was_made(bundle, checkpoint, pictures):
    (engine,) = verify(bundle, checkpoint=checkpoint, images=pictures).manifest.engines
    assert engine.proven
    assert engine.parity is not None
    narrow = LIMITS | {"fp32": LIMITS["fp32"] | {"score_max": engine.parity.score_max / 2}}
    wide = LIMITS | {"fp32": LIMITS["fp32"] | {"score_max": engine.parity.score_max * 1.5}}
    for limits, proven in ((wide, True), (narrow, False)):
        (made,) = measure_proofs(bundle, checkpoint, pictures, limits=limits).manifest.engines
        assert made.proven == proven
        assert made.parity is not None
        assert made.parity.limits == limits["fp32"]
    # Measured again on the same pictures it keeps its limits, on others it gets the usual ones.
    assert not verify(bundle, checkpoint=checkpoint, images=pictures).manifest.engines[0].proven
    manifest = read_manifest(bundle)
    same_file = replace(manifest.engines[0], parity=None)
    reference = Reference(checkpoint.model, pictures, manifest.preprocessing)
    again = prove_engine(bundle, manifest, same_file, reference, pictures)
    assert again.parity is not None
    assert again.parity.limits == narrow["fp32"]
    assert verify(bundle, checkpoint=checkpoint, images=pictures[:5]).manifest.engines[0].proven


def test_a_proof_says_which_pictures_the_engine_was_made_on(bundle, checkpoint, pictures):
    digests = [digest_of(picture) for picture in pictures]
    made = replace(
        only_engine(bundle), calibrated_on=tuple(digests[:1]), searched_on=tuple(digests[1:3])
    )
    with_engines(bundle, made)
    progress = Recorder()
    seen: list[Any] = [
        verify(bundle, checkpoint=checkpoint, images=images, progress=progress)
        .manifest.engines[0]
        .parity
        for images in (pictures[1:], pictures[3:])
    ]
    assert [parity.seen for parity in seen] == [2, 0]
    assert seen[0].pictures == digest_of_all(digests[1:])
    assert sum("2 of these 5" in text for text in progress.notes) == 1


def test_by_default_an_engine_is_proven_on_what_it_was_not_made_on(exported):
    manifest = read_manifest(exported)
    assert len(pictures_for(manifest, None)) == 8 * len(NAMES)
    parts = divided(photographs_of(None), "search", "calibration")
    digests = {name: tuple(map(digest_of, part)) for name, part in parts.items()}
    engine = replace(
        only_engine(exported),
        calibrated_on=digests["calibration"],
        searched_on=digests["search"],
    )
    unseen = pictures_for(replace(manifest, engines=(engine,)), None)
    assert sorted(map(digest_of, unseen)) == sorted(digests["proof"])


def test_a_folder_is_proven_on_as_at_export(exported, pictures, tmp_path):
    for i, picture in enumerate(pictures):
        picture.resize((96, 96)).save(tmp_path / f"{i}.png")
        picture.resize((96, 96)).rotate(1).save(tmp_path / f"{i}-again.png")
    parts = divided(photographs_of(tmp_path), "calibration")
    calibrated_on = tuple(map(digest_of, parts["calibration"]))
    engine = replace(only_engine(exported), calibrated_on=calibrated_on)
    manifest = replace(read_manifest(exported), engines=(engine,))
    assert pictures_for(manifest, tmp_path) == parts["proof"]
    # Those given as images are taken as they are, and all if what is left is too little.
    assert pictures_for(manifest, parts["calibration"]) == parts["calibration"]
    (tmp_path / "0.png").unlink()
    (tmp_path / "0-again.png").unlink()
    assert set(parts["calibration"]) < set(pictures_for(manifest, tmp_path))


def test_an_older_bundle_is_compared_on_the_images_given(
    bundle, checkpoint, other, pictures, monkeypatch
):
    monkeypatch.setattr(photographs, "NAMES", ("missing.png",))
    photographs._verification_images.cache_clear()
    manifest = read_manifest(without_digest(bundle))
    check_same_weights(bundle, manifest, checkpoint, pictures)
    with pytest.raises(UserError, match="other weights"):
        check_same_weights(bundle, manifest, other, pictures)
