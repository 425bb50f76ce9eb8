import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
from typing import Any

import onnx
import pytest
from conftest import toy_graph
from support.command_line import NO_TRAINING_LIBRARY, change_engine
from support.swapping import swap_after_hash

from drexperts import runtime
from drexperts.runtime.decoding.workers import IsolatedDecoder
from drexperts.runtime.errors import BundleError, ChangedFileError, ConfigError, UserError
from drexperts.runtime.manifest import digest, read_manifest, sha256_of, write_manifest


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


def test_load_and_score(toy_bundle, photo):
    for bundle, device in ((toy_bundle, "auto"), (str(toy_bundle), "cpu")):
        scorer = runtime.load(bundle, device, threads=1)
        assert scorer.session.description.endswith("CPUExecutionProvider")
        assert 0 < scorer.score(photo(40, 40)).value < 255


@pytest.mark.parametrize("change", [lambda b: b + b"\0", lambda b: b[:-1], lambda b: b""])
def test_changed_file_is_refused_before_it_is_loaded(bundle, change, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = bundle / "model.onnx"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BundleError, match="SHA-256"):
        runtime.load(bundle)


def test_a_file_swapped_after_its_hash_never_runs(bundle, photo, monkeypatch):
    """What scores is what was hashed, whatever the path holds when the library gets to it."""
    other = toy_graph()
    other.graph.node[1].input[0] = "doubled"
    other.graph.node.insert(1, onnx.helper.make_node("Add", ["floats", "floats"], ["doubled"]))
    image = photo(40, 40)
    expected = runtime.load(bundle).score(image)
    path = bundle / "model.onnx"
    swap_after_hash(monkeypatch, path, other.SerializeToString())
    found = runtime.load(bundle).score(image)
    assert path.read_bytes() == other.SerializeToString()
    assert (found.value, found.fingerprint) == (expected.value, expected.fingerprint)
    with pytest.raises(BundleError, match="SHA-256"):
        runtime.load(bundle)


def test_a_swapped_file_never_runs_where_no_memory_can_be_sealed(bundle, photo, monkeypatch):
    def refused(*_: Any) -> int:
        raise OSError("not permitted")

    monkeypatch.setattr(os, "memfd_create", refused, raising=False)
    test_a_file_swapped_after_its_hash_never_runs(bundle, photo, monkeypatch)


def test_a_message_names_the_file_of_the_bundle(bundle):
    path = bundle / "model.onnx"
    model = onnx.load(path)
    model.opset_import[0].version = 9999
    path.write_bytes(model.SerializeToString())
    change_engine(bundle, sha256=sha256_of(path))
    with pytest.raises(BundleError, match=r"model\.onnx") as caught:
        runtime.load(bundle)
    assert "/proc/" not in str(caught.value)


def test_the_bytes_of_the_model_are_not_kept(bundle):
    session: Any = runtime.load(bundle).session
    held = [*vars(session).values(), *vars(session._session).values()]
    assert not [value for value in held if isinstance(value, bytes)]


def test_weights_outside_the_file_are_refused_before_a_session_is_made(bundle, monkeypatch):
    graph = toy_graph()
    graph.graph.initializer[3].data_location = onnx.TensorProto.EXTERNAL
    (bundle / "model.onnx").write_bytes(graph.SerializeToString())
    change_engine(bundle, sha256=sha256_of(bundle / "model.onnx"))
    monkeypatch.setattr("onnxruntime.InferenceSession", None)
    with pytest.raises(BundleError, match="outside itself"):
        runtime.load(bundle)


def test_only_the_pinned_bundle_is_opened(bundle, monkeypatch):
    pinned = digest(read_manifest(bundle))
    assert runtime.load(bundle, digest=pinned).engine.file == "model.onnx"
    (bundle / "model.onnx").unlink()
    with pytest.raises(ChangedFileError):
        runtime.load(bundle, digest=pinned)
    with pytest.raises(BundleError, match=pinned):  # before the file is looked for
        runtime.load(bundle, digest=f"sha256:{'0' * 64}")
    for text in ("0" * 64, "sha256:", pinned.upper(), ""):
        with pytest.raises(UserError, match="digest"):
            runtime.load(bundle, digest=text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p, i: {"parity": dataclasses.replace(p, limits={"score_max": 1e300})}, "score_max"),
        (lambda p, i: {"parity": dataclasses.replace(p, images=1, pairs=0)}, "1 images"),
        (lambda p, i: {"invariance": dataclasses.replace(i, tolerance=1e300)}, "tolerance"),
    ],
)
def test_a_proof_that_this_version_would_not_accept(change, said, bundle):
    engine = read_manifest(bundle).engines[0]
    change_engine(bundle, **change(engine.parity, engine.invariance))
    with pytest.raises(BundleError, match=f"{said}.*export.verify"):
        runtime.load(bundle)
    assert runtime.load(bundle, allow_unverified=True).engine.objection


@pytest.mark.parametrize("isolated", [False, True])
def test_another_grid(isolated, toy_bundle, photo, encode):
    """The toy's crops have 32 pixels and its images up to 64 on the shorter side: 2 x 2 crops."""
    manifest = read_manifest(toy_bundle)
    image, small = encode(photo(160, 90), "PNG"), encode(photo(32, 32), "PNG")

    def scored(grid):
        with runtime.load(toy_bundle, crops_per_side=grid, isolated=isolated) as scorer:
            assert scorer.manifest == manifest  # what is proven and pinned is what was read
            assert pickle.loads(pickle.dumps(scorer)).preprocessing == scorer.preprocessing
            return scorer.score([image, small, b"junk"])

    found = {grid: scored(grid) for grid in (None, 1, 2, 3, 64)}
    # As text, because NaN, the value of what cannot be read, is not equal to itself.
    assert repr(found[2]) == repr(found[None])
    for grid, of_image in {None: 4, 1: 1, 2: 4, 3: 6, 64: 8}.items():
        assert [len(score.raw) for score in found[grid]] == [of_image, 1, 0]
        said = {score.crops_per_side for score in found[grid]}
        assert said == {None if grid == 2 else grid}
        assert {score.as_row()["crops_per_side"] for score in found[grid]} == said
    of_whole = {score.fingerprint for score in found[None]}
    assert all(of_whole.isdisjoint(s.fingerprint for s in found[grid]) for grid in (1, 3, 64))
    assert found[1][1].value == found[None][1].value  # it has room for one crop


@pytest.mark.parametrize("grid", [0, 65, "2"])
def test_a_grid_out_of_range(grid, toy_bundle):
    with pytest.raises(ConfigError, match="1 to 64"):
        runtime.load(toy_bundle, crops_per_side=grid)


def test_missing_engine_file(bundle):
    (bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match="is missing"):
        runtime.load(bundle)


def test_unverified_engine_needs_permission(bundle, photo):
    change_engine(bundle, parity=None)
    with pytest.raises(BundleError, match=r"export\.verify"):
        runtime.load(bundle)
    assert runtime.load(bundle, allow_unverified=True).score(photo(40, 40)).value > 0


def test_no_engine_for_this_version(bundle):
    write_manifest(dataclasses.replace(read_manifest(bundle), engines=()), bundle)
    with pytest.raises(BundleError, match="no engine this version can run"):
        runtime.load(bundle)


def test_nothing_but_numpy_pillow_and_onnxruntime(toy_bundle):
    code = NO_TRAINING_LIBRARY + (
        "sys.modules['rich'] = None\n"
        "from drexperts import runtime\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "from PIL import Image\n"
        "scorer = runtime.load(sys.argv[1])\n"
        "print(scorer.score(Image.new('RGB', (40, 40), (100, 100, 100))).value)"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, os.fspath(toy_bundle)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "100.0"
    assert result.stderr == ""


def test_crops_of_another_size_than_the_engines(bundle):
    manifest = read_manifest(bundle)
    spec = dataclasses.replace(
        manifest.preprocessing, crop=16, short_side_min=16, short_side_max=64
    )
    write_manifest(dataclasses.replace(manifest, preprocessing=spec), bundle)
    with pytest.raises(BundleError, match=r"takes .*32, 32\] and must take .*16, 16\]"):
        runtime.load(bundle)


@pytest.mark.parametrize("batch", [0, 17, 1.5])
def test_a_batch_that_the_engine_takes(toy_bundle, batch):
    assert runtime.load(toy_bundle).batch == 8
    assert runtime.load(toy_bundle, batch=3).batch == 3
    with pytest.raises(UserError, match=f"1 to 16, got {batch}"):
        runtime.load(toy_bundle, batch=batch)


@pytest.mark.parametrize("threads", [1.5, "2", True, 0])
def test_threads_must_be_a_count(bundle, threads):
    with pytest.raises(UserError, match="threads must be"):
        runtime.load(bundle, threads=threads)


@pytest.mark.parametrize("decoders", [1.5, "2", True, 0, 257])
def test_decoders_must_be_a_count(bundle, decoders):
    with pytest.raises(UserError, match="decoders must be"):
        runtime.load(bundle, isolated=True, decoders=decoders)


def test_decoders_are_processes(bundle):
    with runtime.load(bundle, isolated=True, decoders=3) as scorer:
        assert isinstance(scorer.decoder, IsolatedDecoder)
        assert scorer.decoder.count == 3


@pytest.mark.parametrize("streams", [1.5, "2", True, 0])
def test_streams_must_be_a_count(bundle, streams):
    with pytest.raises(UserError, match="streams must be"):
        runtime.load(bundle, streams=streams)


@pytest.mark.parametrize("place", [5, None])
def test_a_bundle_is_a_folder(place):
    with pytest.raises(UserError, match=repr(place)):
        runtime.load(place)
