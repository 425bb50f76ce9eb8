"""The profile adds up and leaves nothing out. No test asserts a time."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.fake_gpu import FakeCuda, FakeTensorrt, engine_of, install, plan_bytes
from support.reporting import Recorder
from support.tiny_graphs import tiny_graph

from drexperts.bench import profile as profiling
from drexperts.bench.graph_parts import PlacedNode
from drexperts.bench.profile import profile_engine
from drexperts.bench.reports import PARTS
from drexperts.bench.timing import photograph
from drexperts.export.graph.bfloat16_blocks import LAYERS, bfloat16_blocks
from drexperts.export.graph.openvino_graph import openvino_graph
from drexperts.runtime import tensorrt_plan
from drexperts.runtime.errors import InternalError, UserError
from drexperts.runtime.manifest import Manifest, read_manifest
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.openvino_session import OpenvinoSession
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.tensorrt_session import TensorrtSession

TENSORRT_LAYERS = [
    {"Name": "cast", "LayerType": "cast", "Metadata": "[ONNX Layer: node__to_copy]"},
    {"Name": "resize_patches", "Metadata": "[ONNX Layer: node_matmul_4]\x1e[ONNX Layer: conv]"},
    {"Name": "gemm0", "LayerType": "gemm", "Metadata": "[ONNX Layer: node_linear | pooling]"},
    {"Name": "both", "LayerType": "gemm", "Metadata": "[ONNX Layer: node_linear]\x1e"},
    {"Name": "{ForeignNode[node_of_pooled]}"},
    "a layer with nothing but its name",
]


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Any], random_model: Callable[..., Any]) -> onnx.ModelProto:
    return tiny_graph(tiny, random_model, "paper", "fp32")


@pytest.fixture(scope="module")
def manifest(toy_bundle: Path) -> Manifest:
    spec = Preprocessing(64, 64, 128, 2)
    return dataclasses.replace(read_manifest(toy_bundle), preprocessing=spec)


@pytest.fixture(scope="module")
def scorer(
    model: onnx.ModelProto, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> Scorer:
    path = tmp_path_factory.mktemp("profiled") / "model.onnx"
    onnx.save(model, path)
    session = OnnxSession(path, max_batch=4, threads=1)
    return Scorer(manifest, manifest.engines[0], session, batch=3)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "SETTLE", 0.0)


@pytest.mark.usefixtures("quick")
def test_profile_of_onnx_runtime(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    progress = Recorder()
    profile = profile_engine(scorer, rounds=3, image=photograph(), progress=progress)
    assert list(tmp_path.iterdir()) == []
    assert len(progress.messages) == 2
    assert (profile.batch, profile.crops, profile.calls) == (3, 4, 4 / 3)
    for times in (profile.decode, profile.crop, profile.called, profile.plain, profile.in_layers):
        assert len(times) == 3
        assert min(times) > 0
    parts = profile.parts
    assert tuple(parts) == PARTS
    assert min(parts[name] for name in ("prepare", "encoder", "controller", "head")) > 0


@pytest.mark.usefixtures("quick")
def test_every_layer_is_there(scorer: Scorer, model: onnx.ModelProto) -> None:
    layers = profile_engine(scorer, rounds=1, image=photograph()).layers
    names = {layer.name for layer in layers}
    weights = [w.name for w in model.graph.initializer if ".blocks." in w.name]
    assert weights
    for weight in weights:
        assert weight.removeprefix("model.").rpartition(".")[0] in names
    assert [layer.part for layer in layers if layer.op == "Gelu"].count("encoder") == 2


@pytest.mark.usefixtures("quick")
def test_profile_of_openvino(model: onnx.ModelProto, manifest: Manifest, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "model.onnx"
    onnx.save(bfloat16_blocks(openvino_graph(model)), path)
    session = OpenvinoSession(path, max_batch=4, threads=1)
    scorer = Scorer(manifest, manifest.engines[0], session, batch=3)
    profile = profile_engine(scorer, rounds=3, image=photograph())
    assert min(profile.parts[name] for name in ("encoder", "controller", "head")) > 0
    assert min(layer.seconds for layer in profile.layers) >= 0
    found = {layer.name: layer for layer in profile.layers}
    linear = [f"{name}.blocks.1" for name in ("encoder", "controller.vit")]
    for name in (f"{block}.{layer}" for block in linear for layer in LAYERS):
        assert found[name].part == name.split(".")[0]
        assert found[name].op.startswith("FullyConnected ")
    assert sum(layer.part == "other" for layer in profile.layers) < len(profile.layers) / 4


def test_a_layer_between_two_of_a_part_belongs_to_it() -> None:
    parts = ["other", "encoder", "other", "other", "encoder", "other", "head", "other"]
    nodes = [PlacedNode(str(i), str(i), "op", part) for i, part in enumerate(parts)]
    found = [node.part for node in profiling._in_parts(nodes)]
    assert found == ["other", *["encoder"] * 4, "other", "head", "other"]


def test_times_are_of_all_calls_of_an_image(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four crops, three at a time: a call and a third of its 5 ms, of which a layer has 2."""
    nodes = [PlacedNode("a", "a", "Add", "head")]
    called = np.full(2, 5e-3)
    times = profiling._EngineTimes(nodes, np.full((2, 1), 2e-3), called, called, "")
    monkeypatch.setattr(profiling, "_engine_times", lambda *_: times)
    parts = profile_engine(scorer, rounds=2, image=photograph()).parts
    assert parts["head"] == pytest.approx(4 / 3 * 2e-3)
    assert parts["between kernels"] == pytest.approx(4 / 3 * 3e-3)


def test_a_kernel_that_the_graph_does_not_know_is_shown() -> None:
    def event(ts: int, name: str, op: str, dur: int) -> dict[str, Any]:
        args = {"op_name": op}
        return {"cat": "Node", "ts": ts, "name": f"{name}_kernel_time", "args": args, "dur": dur}

    nodes = [PlacedNode("a", "a", "Add", "head"), PlacedNode("b", "b", "Mul", "head")]
    events = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 9},
        event(5, "c", "Copy", 50),
        event(1, "a", "Add", 10),
        event(3, "a", "Add", 30),
        event(2, "c", "Copy", 20),
    ]
    ran, spent = profiling._kernels(events, nodes, calls=2)
    assert [(node.layer, node.part) for node in ran] == [("a", "head"), ("c", "other")]
    np.testing.assert_allclose(spent, [[1e-5, 2e-5], [3e-5, 5e-5]])
    with pytest.raises(InternalError, match="4"):
        profiling._kernels(events, nodes, calls=3)
    with pytest.raises(InternalError, match="0"):
        profiling._kernels(events[:1], nodes, calls=1)


@pytest.fixture
def gpu_scorer(
    model: onnx.ModelProto,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """A bundle of a stand-in for an engine beside our graph, on a stand-in for a GPU."""
    monkeypatch.setattr(tensorrt_plan, "cache_folder", lambda: tmp_path / "cache")
    cuda = FakeCuda()
    trt: Any = FakeTensorrt(cuda)
    trt.layers = TENSORRT_LAYERS
    install(monkeypatch, cuda, trt)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "model.engine").write_bytes(plan_bytes(((1, 2, 4),)))
    engine = engine_of(tmp_path / "model.engine")
    session = TensorrtSession(tmp_path / "model.engine", engine)
    spec = Preprocessing(32, 32, 64, 2)
    engines = (engine, *manifest.engines)
    yield Scorer(
        dataclasses.replace(manifest, engines=engines, preprocessing=spec), engine, session
    )
    session.close()
    assert cuda.faults == []


@pytest.mark.usefixtures("quick")
def test_profile_of_tensorrt(gpu_scorer: Scorer) -> None:
    profile = profile_engine(gpu_scorer, rounds=2, image=photograph())
    layers = {layer.name: layer for layer in profile.layers}
    assert {name: layer.part for name, layer in layers.items()} == {
        "cast": "prepare",
        "resize_patches": "prepare",  # the other name is not in the graph
        "gemm0": "encoder",
        "both": "encoder",
        "{ForeignNode[node_of_pooled]}": "head",
        "a layer with nothing but its name": "other",
    }
    assert (layers["gemm0"].op, layers["resize_patches"].op) == ("gemm", "layer")
    assert (profile.batch, profile.calls) == (4, 1.0)
    assert layers["gemm0"].seconds == pytest.approx(2.5e-3)  # as the stand-in reports
    assert profile.parts["encoder"] == pytest.approx(6e-3)


def test_mistakes(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="0"):
        profile_engine(scorer, rounds=0, image=photograph())
    monkeypatch.setattr(scorer.session, "provider", "cuda")
    with pytest.raises(UserError, match=scorer.session.description):
        profile_engine(scorer, rounds=1, image=photograph())
