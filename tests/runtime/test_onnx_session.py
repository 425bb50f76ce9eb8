import re
import sys

import numpy as np
import onnx
import pytest

from drexperts.runtime.errors import (
    BundleError,
    InternalError,
    MissingDependencyError,
    UserError,
)
from drexperts.runtime.installing import install_command
from drexperts.runtime.onnx_session import OnnxSession


@pytest.fixture(scope="module")
def session(toy_bundle):
    return OnnxSession(toy_bundle / "model.onnx", max_batch=4, threads=1)


def test_its_options_are_those_that_it_runs_with(session):
    assert session.options["intra_op_num_threads"] == "1"
    assert session.options["graph_optimization_level"] == "ORT_ENABLE_ALL"
    assert all(isinstance(value, str) for value in session.options.values())


def test_run(session):
    pixels = np.arange(2 * 3 * 32 * 32, dtype=np.uint32).astype(np.uint8).reshape(2, 3, 32, 32)
    outputs = session.run(pixels)
    assert {name: array.shape for name, array in outputs.items()} == {
        "score": (2,),
        "weights": (2, 10),
        "maps": (2, 10, 4, 4),
    }
    np.testing.assert_allclose(outputs["score"], pixels.mean(axis=(1, 2, 3)), rtol=1e-6)


def test_compute_is_timed_where_the_provider_has_it(session):
    pixels = np.zeros((4, 3, 32, 32), np.uint8)
    assert session.compute_seconds(pixels) > 0
    with pytest.raises(InternalError):
        session.compute_seconds(pixels.astype(np.float32))


def test_description(session):
    assert session.description.startswith("onnxruntime ")
    assert session.description.endswith(" CPUExecutionProvider")
    assert session.max_batch == 4
    assert session.concurrency == 1


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 3, 32, 32), np.float32),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((1, 32, 32, 3), np.uint8),
        np.zeros((1, 3, 32, 33), np.uint8),
        np.zeros((0, 3, 32, 32), np.uint8),
        np.zeros((5, 3, 32, 32), np.uint8),
    ],
)
def test_other_pixels_are_our_bug(session, pixels):
    with pytest.raises(InternalError, match="please report"):
        session.run(pixels)


def test_failure_inside_the_engine_is_our_bug(session, monkeypatch):
    pixels = np.zeros((4, 3, 32, 32), np.uint8)
    monkeypatch.setattr(session, "_input", "another name")
    for call in (session.run, session.compute_seconds):
        with pytest.raises(InternalError, match="another name"):
            call(pixels)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a" * 100, "another version"])
def test_a_model_that_cannot_be_loaded(content, toy_bundle, tmp_path, capfd):
    if content == "another version":
        model = onnx.load(toy_bundle / "model.onnx")
        model.opset_import[0].version = 9999
        content = model.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        OnnxSession(path, max_batch=1)
    assert capfd.readouterr().err == ""


def test_missing_onnxruntime(toy_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("cpu"))):
        OnnxSession(toy_bundle / "model.onnx", max_batch=1)


def test_unknown_provider(toy_bundle):
    with pytest.raises(UserError, match="cpu, cuda, tensorrt, got 'abacus'"):
        OnnxSession(toy_bundle / "model.onnx", max_batch=1, provider="abacus")
