"""Export: a bundle that is proven, one that is not, and what is never replaced."""

import copy
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from support.reporting import Recorder

from drexperts import runtime
from drexperts.export import bundle as bundles
from drexperts.export import export_bundle
from drexperts.export.graph.precision import PrecisionChoice
from drexperts.export.proof.parity import eager_outputs
from drexperts.export.triton_repository import write_triton_repository
from drexperts.model.checkpoint import Checkpoint
from drexperts.runtime.errors import BundleError, ConfigError, UserError
from drexperts.runtime.locks import locked
from drexperts.runtime.manifest import ScoreScale, read_manifest, sha256_of
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.proof import EXPORT_LIMITS
from drexperts.runtime.reference_crop import reference_crop


@pytest.fixture
def ready_graph(exported, monkeypatch):
    """The graph that exports find made already, in place of their own."""
    graph = onnx.load(exported / "model.onnx")
    choice = PrecisionChoice(graph, "fp32")
    monkeypatch.setattr(bundles, "choices_of_precision", lambda *_, **__: iter([choice]))
    return graph


def test_a_bundle_is_proven_and_scores_as_the_model(exported, checkpoint, pictures):
    manifest = read_manifest(exported)
    (engine,) = manifest.engines
    assert engine.proven
    assert engine.parity is not None
    sets = engine.parity.sets
    assert sets["photographs"].images == 6
    crop = reference_crop(manifest.preprocessing.crop)[None]
    with runtime.load(exported) as scorer:
        scores = scorer.score(list(pictures))
        stated = scorer.session.run(crop)["score"].item()
    assert manifest.reference_score == pytest.approx(stated, abs=1e-4 * manifest.scale.span)
    assert engine.parity.rows == sum(len(s.raw) for s in scores) + sets["synthetic"].images
    assert engine.parity.weights_max < 1e-5
    assert engine.invariance is not None
    assert engine.invariance.batches == (1, 2, 3, 4)
    expected = eager_outputs(checkpoint.model, pictures, checkpoint.preprocessing)
    np.testing.assert_allclose([s.value for s in scores], expected.scores, rtol=1e-4, atol=1e-4)
    assert manifest.preset == "paper"
    assert sorted(p.name for p in exported.iterdir()) == ["manifest.json", "model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "precision"), [("paper", "fp16"), ("official", "fp32")])
def test_presets_and_precisions_are_proven_under_their_own_limits(
    preset, precision, tiny, random_model, pictures, tmp_path
):
    scale, spec = ScoreScale(-1.0, 1.0, higher_is_better=True), Preprocessing(64, 64, 128, 2)
    made = Checkpoint(random_model(tiny(preset), spread=0.05), scale, spec)
    manifest = export_bundle(
        made, tmp_path / "b", images=pictures, precision=precision, max_batch=2
    )
    (engine,) = manifest.engines
    assert (manifest.preset, engine.precision) == (preset, precision)
    assert engine.parity is not None
    assert engine.parity.limits == EXPORT_LIMITS[precision]
    assert engine.proven


@pytest.mark.slow
def test_a_checkpoints_file_and_a_scale_are_taken(ready_graph, checkpoint_file, pictures, tmp_path):
    scale, progress = ScoreScale(-500.0, 500.0, higher_is_better=False), Recorder()
    manifest = export_bundle(
        checkpoint_file, tmp_path / "b", images=pictures, scale=scale, progress=progress
    )
    assert manifest.scale == scale
    assert manifest == read_manifest(tmp_path / "b")
    assert str(checkpoint_file) in progress.messages[0]


@pytest.mark.slow
def test_another_grid_is_what_is_proven_and_served(
    ready_graph, exported, checkpoint, pictures, tmp_path
):
    out = tmp_path / "b"
    manifest = export_bundle(checkpoint, out, images=pictures, crops_per_side=1, max_batch=4)
    (engine,) = manifest.engines
    assert manifest.preprocessing == Preprocessing(64, 64, 128, 1)
    assert engine.proven
    assert engine.parity is not None
    assert engine.parity.rows == len(pictures) + engine.parity.sets["synthetic"].images
    with runtime.load(out) as one, runtime.load(exported, crops_per_side=1) as other:
        (here,), (there,) = one.score(pictures[:1]), other.score(pictures[:1])
        assert (here.raw, here.fingerprint) == (there.raw, there.fingerprint)
        assert (here.crops_per_side, there.crops_per_side) == (None, 1)
    write_triton_repository(out, tmp_path / "models")
    assert repr(manifest.preprocessing) in (tmp_path / "models" / "README.md").read_text()


@pytest.mark.slow
def test_a_failed_gate_leaves_a_bundle_that_load_refuses(
    ready_graph, checkpoint, pictures, tmp_path
):
    (bias,) = [i for i in ready_graph.graph.initializer if i.name.endswith("score.bias")]
    bias.raw_data = (onnx.numpy_helper.to_array(bias) + np.float32(50.0)).tobytes()
    manifest = export_bundle(checkpoint, tmp_path / "b", images=pictures, max_batch=2)
    assert not manifest.engines[0].proven
    with pytest.raises(BundleError, match=r"export\.verify"):
        runtime.load(tmp_path / "b")


@pytest.mark.slow
def test_the_next_choice_is_proven_where_one_fails(
    ready_graph, checkpoint, pictures, tmp_path, monkeypatch
):
    wrong = copy.deepcopy(ready_graph)
    (bias,) = [i for i in wrong.graph.initializer if i.name.endswith("score.bias")]
    bias.raw_data = (onnx.numpy_helper.to_array(bias) + np.float32(50.0)).tobytes()
    choices = [PrecisionChoice(graph, "fp32") for graph in (wrong, ready_graph, wrong)]
    monkeypatch.setattr(bundles, "choices_of_precision", lambda *_, **__: iter(choices))
    manifest = export_bundle(checkpoint, tmp_path / "b", images=pictures, max_batch=2)
    assert manifest.engines[0].proven
    assert manifest.engines[0].missed == 1
    runtime.load(tmp_path / "b").close()


def test_a_broken_export_leaves_what_was_there(bundle, checkpoint, monkeypatch):
    before = sha256_of(bundle / "manifest.json")

    def broken(*_: Any, **__: Any) -> PrecisionChoice:
        raise RuntimeError("no memory")

    monkeypatch.setattr(bundles, "choices_of_precision", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        export_bundle(checkpoint, bundle)
    assert sha256_of(bundle / "manifest.json") == before
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.slow
def test_the_target_of_a_link_is_replaced_and_abandoned_folders_are_removed(
    ready_graph, bundle, checkpoint, pictures, tmp_path, monkeypatch
):
    (tmp_path / ".bundle.partial-0").mkdir()
    (tmp_path / "link").symlink_to(bundle)
    monkeypatch.chdir(tmp_path / "link")
    export_bundle(checkpoint, ".", images=pictures, max_batch=1)
    assert (tmp_path / "link").is_symlink()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"bundle", "link"}
    with runtime.load(bundle) as scorer:
        assert scorer.session.max_batch == 1
        assert len(scorer.score(list(pictures))) == len(pictures)


def test_an_export_to_a_place_that_another_process_writes_is_refused(bundle, checkpoint, pictures):
    before = (bundle / "manifest.json").read_bytes()
    with locked(bundle), pytest.raises(UserError, match="process"):
        export_bundle(checkpoint, bundle, images=pictures)
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("manifest", ["none", "another program's", "a bundle's"])
def test_a_folder_of_other_things_is_not_touched(manifest, bundle, checkpoint):
    if manifest == "none":
        (bundle / "manifest.json").unlink()
    elif manifest == "another program's":
        (bundle / "manifest.json").write_text('{"name": "my web app"}')
    (bundle / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=bundle.name):
        export_bundle(checkpoint, bundle)
    assert (bundle / "thesis.tex").exists()


@pytest.mark.parametrize("max_batch", [0, -3, 70000])
def test_batches_out_of_range(max_batch, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=f"1 to 1024.* {max_batch}"):
        export_bundle(checkpoint, tmp_path / "b", max_batch=max_batch)


def test_grids_out_of_range(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"crops_per_side .* 1 to 64"):
        export_bundle(checkpoint, tmp_path / "b", crops_per_side=65)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"preprocessing": Preprocessing(32, 32, 64, 2)}, "32 px .* 64 px"),
        ({"scale": None}, "pass scale="),
    ],
)
def test_an_incomplete_checkpoint(change, named, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=named):
        export_bundle(checkpoint._replace(**change), tmp_path / "b")


@pytest.mark.parametrize(("value", "named"), [(float("nan"), "not finite"), (0.0, "all 130")])
def test_a_model_whose_scores_mean_nothing(
    value, named, ready_graph, checkpoint, pictures, tmp_path
):
    model = copy.deepcopy(checkpoint.model)
    for parameter in model.score.parameters():
        parameter.data.fill_(value)
    with pytest.raises(UserError, match=named):
        export_bundle(checkpoint._replace(model=model), tmp_path / "b", images=pictures)
    assert not (tmp_path / "b").exists()


def test_pictures_on_which_nothing_could_be_proven_are_refused_first(checkpoint, tmp_path):
    progress = Recorder()
    flat = [Image.new("RGB", (80, 80), (90, 90, 90))] * 3
    with pytest.raises(UserError, match="more photographs"):
        export_bundle(checkpoint, tmp_path / "b", images=flat, progress=progress)
    assert progress.messages == []
