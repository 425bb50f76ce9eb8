import dataclasses
import os
import shutil
import subprocess
import sys

import pytest
from support.command_line import NO_TRAINING_LIBRARY, change_engine

from drexperts import runtime
from drexperts.runtime.errors import BundleError, UserError
from drexperts.runtime.manifest import read_manifest, write_manifest


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


def test_missing_engine_file(bundle):
    (bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match="is missing"):
        runtime.load(bundle)


def test_unverified_engine_needs_permission(bundle, photo):
    change_engine(bundle, parity=None)
    with pytest.raises(BundleError, match="drx verify"):
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


@pytest.mark.parametrize("place", [5, None])
def test_a_bundle_is_a_folder(place):
    with pytest.raises(UserError, match=repr(place)):
        runtime.load(place)
