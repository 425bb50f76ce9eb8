"""Engines in bundles. TensorRT for RTX really builds them; what needs a GPU has stand-ins."""

import contextlib
import os
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.reporting import Recorder
from support.waiting import HOLD, PATIENCE, holding

from drexperts import runtime
from drexperts.export import verify
from drexperts.export.bundle import export_bundle
from drexperts.export.engines import build, engine_build
from drexperts.export.engines.build import build_engine
from drexperts.export.engines.options import EngineOptions
from drexperts.runtime import compatibility
from drexperts.runtime.errors import BundleError, UserError
from drexperts.runtime.locks import locked
from drexperts.runtime.manifest import (
    BatchProfile,
    Engine,
    Manifest,
    read_manifest,
    sha256_of,
    write_manifest,
)
from drexperts.runtime.proof import EXPORT_LIMITS
from drexperts.runtime.trust import built_here

pytestmark = pytest.mark.slow  # what they share takes seconds to make

OPTIONS = EngineOptions(profiles=(BatchProfile(1, 2, 4),), capabilities=("8.9",))


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def built(bundle: Path, backend: Any = "tensorrt-rtx", **changes: Any) -> Manifest:
    options = {"options": OPTIONS if backend == "tensorrt-rtx" else EngineOptions()} | changes
    return build_engine(bundle, backend, options.pop("options"), **options)


def files(bundle: Path) -> set[str]:
    return {path.name for path in bundle.iterdir()}


@pytest.fixture
def rtx():
    pytest.importorskip("tensorrt_rtx")
    if compatibility.gpus():
        pytest.skip("this machine has a GPU: the engine would be executed")


@pytest.mark.usefixtures("rtx")
def test_an_engine_is_added_and_replaced_by_the_next_of_its_kind(bundle):
    manifest = built(bundle)
    assert manifest == read_manifest(bundle)
    onnx, engine = manifest.engines
    assert onnx.proven
    assert (engine.backend, engine.precision, engine.max_batch) == ("tensorrt-rtx", "fp32", 4)
    assert engine.evidence == "inspected"
    assert sha256_of(bundle / engine.file) == engine.sha256
    assert engine.file.endswith(f"{engine.sha256[:8]}.engine")
    assert engine.plan is not None
    assert engine.plan.onnx_sha256 == onnx.sha256
    assert built_here(engine.sha256)
    assert runtime.load(bundle).engine.backend == "onnx"

    second = built(bundle, options=replace(OPTIONS, profiles=(BatchProfile(1, 1, 2),))).engines[1]
    assert second.max_batch == 2
    assert second.file != engine.file
    assert files(bundle) == {"manifest.json", "model.onnx", second.file}
    other = built(bundle, options=replace(OPTIONS, capabilities=("8.6",)))
    assert [each.file for each in other.engines[1:2]] == [second.file]
    assert len(other.engines) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_another_precision_comes_from_the_checkpoint(precision, bundle, checkpoint_file):
    onnx, engine = built(bundle, precision=precision, checkpoint=checkpoint_file).engines
    assert (engine.precision, engine.evidence) == (precision, "inspected")
    assert engine.plan is not None
    assert engine.plan.onnx_sha256 != onnx.sha256


@pytest.mark.usefixtures("rtx")
def test_attention_can_be_kept_from_fusing(bundle):
    onnx, engine = built(bundle, fused_attention=False).engines
    assert engine.plan is not None
    assert not engine.plan.fused_attention
    assert engine.plan.onnx_sha256 != onnx.sha256


@pytest.mark.slow
def test_a_new_export_replaces_all_engines(bundle, checkpoint, pictures, planned):
    (onnx,) = read_manifest(bundle).engines
    write_manifest(replace(read_manifest(bundle), engines=(onnx, planned())), bundle)
    (bundle / planned().file).write_bytes(b"an engine")
    (bundle / f".{'0' * 8}.engine.{'1' * 8}").write_bytes(b"of a build that was killed")
    export_bundle(checkpoint, bundle, images=pictures, max_batch=1)
    assert files(bundle) == {"manifest.json", "model.onnx"}


KILLED = """
import sys
from drexperts.export import EngineOptions, build_engine
from drexperts.runtime.progress import Silent
class Holding(Silent):
    def __call__(self, message, done=0, total=None):
        if done:
            HOLD
options = EngineOptions(capabilities=("8.9",))
build_engine(sys.argv[1], "tensorrt-rtx", options, progress=Holding())
""".replace("HOLD", HOLD)


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_a_killed_build_leaves_the_bundle_as_it_was(bundle):
    before = read_manifest(bundle)
    process = holding([sys.executable, "-P", "-c", KILLED, str(bundle)])
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert read_manifest(bundle) == before
    assert runtime.load(bundle).engine.proven


def test_a_provider_runs_the_same_file(bundle):
    if compatibility.gpus():
        pytest.skip("this machine has a GPU: the engine would be executed")
    for _ in range(2):
        onnx, provider = built(bundle, "onnx-cuda").engines
        assert (provider.backend, provider.file) == ("onnx-cuda", onnx.file)
        assert provider.sha256 == onnx.sha256
        assert provider.evidence == "built"
    assert files(bundle) == {"manifest.json", "model.onnx"}
    assert runtime.load(bundle).engine == onnx


@pytest.mark.parametrize(
    "change",
    [{"precision": "fp16"}, {"fused_attention": False}, {"options": EngineOptions(plugin="off")}],
)
def test_a_provider_cannot_change_the_file(change, bundle):
    with pytest.raises(UserError, match="onnx-cuda"):
        built(bundle, "onnx-cuda", **change)


def test_replacing_a_proven_engine_is_noted(bundle):
    if compatibility.gpus():
        pytest.skip("this machine has a GPU: the engine would be executed")
    built(bundle, "onnx-cuda")
    manifest = read_manifest(bundle)
    onnx, provider = manifest.engines
    proven = replace(provider, parity=onnx.parity, invariance=onnx.invariance)
    write_manifest(replace(manifest, engines=(onnx, proven)), bundle)
    progress = Recorder()
    built(bundle, "onnx-cuda", progress=progress)
    assert any("drx verify" in note for note in progress.notes)


def test_a_build_is_proven_under_the_limits_of_an_export(
    bundle, checkpoint, pictures, planned, monkeypatch
):
    found: list[Any] = []

    def fake_proof(bundle: Path, manifest: Any, engine: Engine, reference: Any, *_: Any) -> Engine:
        found.append(reference._limits)
        return engine

    monkeypatch.setattr(engine_build, "prove_engine", fake_proof)
    monkeypatch.setattr(runtime, "obstacle", lambda engine: None)
    built(bundle, "onnx-cuda", checkpoint=checkpoint, images=pictures)
    assert found == [EXPORT_LIMITS]


def test_what_the_export_was_given_is_kept(bundle, checkpoint, monkeypatch):
    """An engine is searched and calibrated with the bundle's scale and grid."""
    found: list[Any] = []

    def proven(work: Any, engine: Engine) -> Engine:
        found.append(work.checkpoint)
        return engine

    monkeypatch.setattr(build._TensorrtBuild, "proven", proven)
    spec = replace(checkpoint.preprocessing, crops_per_side=1)
    built(bundle, "onnx-cuda", checkpoint=checkpoint._replace(scale=None, preprocessing=spec))
    manifest = read_manifest(bundle)
    (given,) = found
    assert (given.scale, given.preprocessing) == (manifest.scale, manifest.preprocessing)


def test_another_precision_needs_the_checkpoint(bundle):
    with pytest.raises(UserError, match=r"fp16.*checkpoint="):
        built(bundle, precision="fp16")


@pytest.mark.parametrize("change", [{"precision": "fp16"}, {"fused_attention": False}])
def test_only_the_bundles_own_graph_can_be_stripped(change, bundle):
    with pytest.raises(UserError, match="stripped=True"):
        built(bundle, options=replace(OPTIONS, stripped=True), **change)


def test_a_changed_graph_is_not_built_from(bundle):
    with open(bundle / "model.onnx", "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match="drx export"):
        built(bundle)


def test_a_bundle_without_a_graph(bundle, planned):
    write_manifest(replace(read_manifest(bundle), engines=(planned(),)), bundle)
    with pytest.raises(BundleError, match="no ONNX engine"):
        built(bundle)


@pytest.mark.parametrize("change", [lambda bundle: built(bundle, "onnx-cuda"), verify])
def test_files_of_killed_builds_are_removed(bundle, change):
    """At once, because no other process can be at the bundle."""
    left = bundle / f"tensorrt-fp16-{'a' * 8}.engine", bundle / f".{'b' * 8}.engine"
    for path in (*left, bundle / "mine.engine"):
        path.write_bytes(b"")
    change(bundle)
    assert files(bundle) == {"manifest.json", "model.onnx", "mine.engine"}


@pytest.mark.parametrize("change", [lambda bundle: built(bundle, "onnx-cuda"), verify])
def test_a_bundle_that_another_process_changes_is_refused(bundle, change):
    before = (bundle / "manifest.json").read_bytes()
    with locked(bundle), pytest.raises(UserError, match=f"process {os.getpid()}"):
        change(bundle)
    assert (bundle / "manifest.json").read_bytes() == before


class Clock:
    """A clock that only the sessions advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def session(self, seconds: float) -> Any:
        def run(pixels: np.ndarray) -> None:
            self.now += seconds

        return types.SimpleNamespace(run=run)


def stand_in_builder(
    planned: Callable[..., Engine], plain_fails: bool = False
) -> Callable[..., Any]:
    """A builder whose engines have one plugin layer, or none if the plugin is off."""

    def stand_in(
        proto: onnx.ModelProto, backend: str, out: Path, options: EngineOptions, progress: Any
    ) -> Any:
        if options.plugin == "off" and plain_fails:
            raise UserError("it does not build")
        out.write_bytes(options.plugin.encode())
        layers = 0 if options.plugin == "off" else 1
        return replace(planned("tensorrt").plan, plugin_layers=layers)  # type: ignore[type-var]

    return stand_in


@pytest.mark.parametrize(
    ("plugin", "plain", "kept"),
    [
        ((True, 0.001), (True, 0.01), "plugin"),
        ((True, 0.01), (True, 0.001), "plain"),
        ((False, 0.001), (True, 0.01), "plain"),
        ((True, 0.01), (False, 0.001), "plugin"),
        ((False, 0.01), (False, 0.001), "plugin"),
    ],
)
def test_the_faster_proven_engine_of_two_is_kept(
    plugin, plain, kept, bundle, checkpoint, planned, monkeypatch
):
    """With the plugin and without. Builder, proof and engines are stand-ins: the choice is real."""
    (proof,) = read_manifest(bundle).engines
    clock = Clock()
    kept_time = types.SimpleNamespace(perf_counter=lambda: clock.now, time=time.time)
    monkeypatch.setattr(build, "time", kept_time)

    def fake_proof(bundle: Path, manifest: Any, engine: Engine, *_: Any) -> Engine:
        passed, _seconds = plugin if engine.plan and engine.plan.plugin_layers else plain
        assert proof.parity is not None
        parity = replace(proof.parity, passed=passed)
        return replace(engine, parity=parity, invariance=proof.invariance)

    def fake_open(bundle: Path, manifest: Any, engine: Engine) -> Any:
        seconds = (plugin if engine.plan and engine.plan.plugin_layers else plain)[1]
        return contextlib.nullcontext(types.SimpleNamespace(session=clock.session(seconds)))

    monkeypatch.setattr(build, "engine_from_onnx", stand_in_builder(planned))
    monkeypatch.setattr(engine_build, "prove_engine", fake_proof)
    monkeypatch.setattr(runtime, "obstacle", lambda engine: None)
    monkeypatch.setattr(runtime, "open_engine", fake_open)
    monkeypatch.setattr(build, "check_same_weights", lambda *_: None)
    engine = built(bundle, "tensorrt", checkpoint=checkpoint).engines[-1]
    assert engine.plan is not None
    assert engine.plan.plugin_layers == (kept == "plugin")
    assert files(bundle) == {"manifest.json", "model.onnx", engine.file}


@pytest.mark.parametrize("fault", ["build", "proof"])
def test_the_engine_with_the_plugin_is_kept_when_the_other_fails(
    fault, bundle, checkpoint, planned, monkeypatch
):
    (proof,) = read_manifest(bundle).engines
    progress = Recorder()

    def fake_proof(bundle: Path, manifest: Any, engine: Engine, *_: Any) -> Engine:
        if engine.plan and not engine.plan.plugin_layers:
            raise UserError("it gives no numbers")
        return replace(engine, parity=proof.parity, invariance=proof.invariance)

    monkeypatch.setattr(
        build, "engine_from_onnx", stand_in_builder(planned, plain_fails=fault == "build")
    )
    monkeypatch.setattr(engine_build, "prove_engine", fake_proof)
    monkeypatch.setattr(runtime, "obstacle", lambda engine: None)
    engine = built(bundle, "tensorrt", checkpoint=checkpoint, progress=progress).engines[-1]
    assert engine.plan is not None
    assert (engine.plan.plugin_layers, engine.proven) == (1, True)
    assert "it does not build" in progress.notes[0] or "it gives no numbers" in progress.notes[0]
