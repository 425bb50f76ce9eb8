"""Which engine is used, and what is reported about the others."""

import dataclasses
import shutil

import numpy as np
import pytest

from drexperts import runtime
from drexperts.runtime import compatibility, selection
from drexperts.runtime.errors import BundleError, DeviceError, UserError
from drexperts.runtime.interface import Tensor
from drexperts.runtime.manifest import CPU_BACKENDS, read_manifest, sha256_of, write_manifest
from drexperts.runtime.selection import Device, parse_device
from drexperts.runtime.trust import note_built_here


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


class Brightness:
    """A stand-in session, which computes the toy bundle's scores without its graph."""

    concurrency = 1
    inputs = (Tensor("pixels", "uint8", (None, 3, 32, 32)),)
    outputs = (
        Tensor("score", "float32", (None,)),
        Tensor("weights", "float32", (None, 10)),
        Tensor("maps", "float32", (None, 10, 4, 4)),
    )

    def __init__(self, description, engine):
        self.description, self.max_batch = description, engine.certified_batch

    def run(self, pixels):
        score = pixels.mean((1, 2, 3), dtype=np.float32)
        shares = np.arange(1, 11, dtype=np.float32) / 55 / 255
        maps = np.zeros((len(pixels), 10, 4, 4), np.float32)
        return {"score": score, "weights": score[:, None] * shares, "maps": maps}

    def close(self):
        pass


@pytest.fixture
def with_engines(bundle, planned):
    """with_engines(backend, ...): the bundle, with engines that were proven beside the ONNX one."""

    def make(*backends, proven=True, **changes):
        manifest = read_manifest(bundle)
        (onnx,) = manifest.engines
        engines = []
        for backend in backends:
            if backend.startswith("onnx"):
                engine = dataclasses.replace(onnx, backend=backend, parity=None, invariance=None)
            else:
                (bundle / f"{backend}.engine").write_bytes(backend.encode())
                engine = dataclasses.replace(
                    planned(backend, **changes), sha256=sha256_of(bundle / f"{backend}.engine")
                )
            if proven:
                engine = dataclasses.replace(engine, parity=onnx.parity, invariance=onnx.invariance)
            engines.append(engine)
        write_manifest(dataclasses.replace(manifest, engines=(onnx, *engines)), bundle)
        return bundle

    return make


def open_stand_in(path, engine, use):
    engine.read(path)
    return Brightness(f"{engine.backend} {use.gpu}", engine)


@pytest.fixture
def gpu(monkeypatch):
    """A machine that can run every engine."""
    monkeypatch.setattr(selection, "obstacle", lambda engine, gpu=0: None)
    for name in selection.BACKENDS:
        backend = selection.Backend(
            "cpu" if name in CPU_BACKENDS else "cuda",
            open_stand_in,
        )
        monkeypatch.setitem(selection.BACKENDS, name, backend)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("auto", Device("auto", 0)),
        ("cpu", Device("cpu", 0)),
        ("cuda", Device("cuda", 0)),
        ("cuda:3", Device("cuda", 3)),
    ],
)
def test_devices(text, device):
    assert parse_device(text) == device


@pytest.mark.parametrize("text", ["tpu", "cuda:", "cuda:x", "cpu:1", "auto:0", "CUDA", "", None, 0])
def test_other_devices(text):
    with pytest.raises(UserError, match="device must be"):
        parse_device(text)


def test_the_best_engine_is_used(with_engines, gpu, photo):
    bundle = with_engines("onnx-cuda", "tensorrt-rtx", "onnx-tensorrt", "tensorrt")
    scorer = runtime.load(bundle, trust=True)
    assert scorer.session.description == "tensorrt 0"
    assert scorer.passed_over == ()
    assert scorer.score(photo(40, 40)).error is None
    assert runtime.load(bundle, "cpu").session.description == "onnx 0"
    assert runtime.load(bundle, "cuda:1", trust=True).session.description == "tensorrt 1"


def test_engines_that_are_not_used_are_reported_with_the_reason(with_engines, gpu, caplog):
    bundle = with_engines("tensorrt-rtx", "onnx-cuda")
    with caplog.at_level("INFO", "drexperts.runtime"):
        scorer = runtime.load(bundle)
    ((file, backend, reason),) = scorer.passed_over
    assert (file, backend) == ("tensorrt-rtx.engine", "tensorrt-rtx")
    assert "was not built here" in reason
    assert "trust=True" in reason
    assert file in caplog.text
    assert scorer.session.description == "onnx-cuda 0"


def test_an_engine_built_here_is_trusted(with_engines, gpu):
    bundle = with_engines("tensorrt-rtx")
    note_built_here(sha256_of(bundle / "tensorrt-rtx.engine"))
    assert runtime.load(bundle).session.description == "tensorrt-rtx 0"


def test_a_trusted_engine_still_needs_its_proof(with_engines, gpu):
    bundle = with_engines("tensorrt-rtx", proven=False)
    (passed,) = runtime.load(bundle, trust=True).passed_over
    assert "inspected" in passed.reason
    assert "export.verify" in passed.reason
    scorer = runtime.load(bundle, trust=True, allow_unverified=True)
    assert scorer.session.description == "tensorrt-rtx 0"


def test_a_proof_holds_for_one_compute_capability(with_engines, gpu, monkeypatch):
    bundle = with_engines("tensorrt-rtx")
    manifest = read_manifest(bundle)
    onnx, engine = manifest.engines
    engine = dataclasses.replace(engine, proven_on="8.9")
    write_manifest(dataclasses.replace(manifest, engines=(onnx, engine)), bundle)
    monkeypatch.setattr(selection, "capability", lambda gpu=0: "8.9")
    assert runtime.load(bundle, trust=True).engine == engine
    monkeypatch.setattr(selection, "capability", lambda gpu=0: "12.0")
    (passed,) = runtime.load(bundle, trust=True).passed_over
    assert "8.9" in passed.reason
    assert "12.0" in passed.reason
    assert "export.verify" in passed.reason


def test_a_changed_engine_stops_the_load(with_engines, gpu):
    """A changed bundle is an error, even if another engine could be used."""
    bundle = with_engines("tensorrt-rtx")
    (bundle / "tensorrt-rtx.engine").write_bytes(b"other")
    with pytest.raises(BundleError, match="SHA-256"):
        runtime.load(bundle, trust=True)


def test_an_engine_that_fails_to_open_is_not_used(with_engines, gpu, monkeypatch):
    def fail(path, engine, use):
        raise DeviceError("the GPU is on fire")

    monkeypatch.setitem(selection.BACKENDS, "onnx-cuda", selection.Backend("cuda", fail))
    bundle = with_engines("onnx-cuda")
    scorer = runtime.load(bundle)
    assert scorer.session.description == "onnx 0"
    assert scorer.passed_over == (("model.onnx", "onnx-cuda", "the GPU is on fire"),)
    with pytest.raises(BundleError, match=r"onnx-cuda\): the GPU is on fire; model\.onnx \(onnx"):
        runtime.load(bundle, "cuda")


def test_an_engine_can_be_chosen_by_its_backend_or_file(with_engines, gpu, caplog):
    bundle = with_engines("tensorrt", "onnx-cuda")
    with caplog.at_level("INFO", "drexperts.runtime"):
        scorer = runtime.load(bundle, engine="onnx", trust=True)
    assert (scorer.session.description, scorer.passed_over) == ("onnx 0", ())
    assert "tensorrt" not in caplog.text
    described = {
        name: runtime.load(bundle, engine=name, trust=True).session.description
        for name in ("tensorrt", "tensorrt.engine", "onnx-cuda", "model.onnx")
    }
    assert described == {
        **{"tensorrt": "tensorrt 0", "tensorrt.engine": "tensorrt 0"},
        **{"onnx-cuda": "onnx-cuda 0", "model.onnx": "onnx-cuda 0"},
    }
    with pytest.raises(BundleError, match="cpu was asked for"):
        runtime.load(bundle, "cpu", engine="tensorrt", trust=True)


@pytest.mark.parametrize("name", ["openvino", "tensorrt-rtx", "", "other.onnx", 7])
def test_an_engine_that_the_bundle_lacks(with_engines, gpu, name):
    bundle = with_engines("tensorrt")
    there = r"model\.onnx \(onnx\), tensorrt\.engine \(tensorrt\)"
    with pytest.raises(UserError, match=f"no engine {name!r}.*{there}"):
        runtime.load(bundle, engine=name)


def test_16_bit_engines_come_first(planned):
    single = dataclasses.replace(planned(), precision="fp32", file="single.engine")
    half = planned()
    assert list(selection.by_preference((single, half))) == [half, single]


def test_this_machine_without_a_gpu(with_engines):
    if compatibility.gpus():
        pytest.skip("this machine has a GPU")
    bundle = with_engines("tensorrt", "tensorrt-rtx", "onnx-cuda", "onnx-tensorrt")
    scorer = runtime.load(bundle, trust=True)
    assert scorer.engine.backend == "onnx"
    reasons = {passed.backend: passed.reason for passed in scorer.passed_over}
    assert set(reasons) == {"tensorrt", "tensorrt-rtx", "onnx-cuda", "onnx-tensorrt"}
    assert "driver" in reasons["onnx-cuda"]
    with pytest.raises(BundleError, match=str(bundle)):
        runtime.load(bundle, "cuda", trust=True)
