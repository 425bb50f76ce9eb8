"""Every node of our own graphs has a part, whatever an optimiser or a quantiser made of them."""

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime import quantization
from support.tiny_graphs import tiny_graph

from drexperts.bench.graph_parts import load_graph, part_by_name, placed_nodes
from drexperts.runtime.errors import MissingDependencyError
from drexperts.runtime.installing import install_command

ORDER = {"prepare": 0, "encoder": 1, "controller": 1, "head": 2}
KINDS = ["paper fp32", "official fp16", "paper dynamic", "paper static"]


class _OneBatch(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
        self._batches = iter([{"pixels": pixels}])

    def get_next(self) -> Any:
        return next(self._batches, None)


@pytest.fixture(scope="module")
def exported(tiny: Callable[..., Any], random_model: Callable[..., Any]) -> dict[str, Any]:
    return {
        "paper fp32": tiny_graph(tiny, random_model, "paper", "fp32"),
        "official fp16": tiny_graph(tiny, random_model, "official", "fp16"),
    }


@pytest.fixture(scope="module")
def optimised(
    exported: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """optimised(kind): the graph that ONNX Runtime makes of a kind of model."""
    folder: Path = tmp_path_factory.mktemp("parts")

    def make(kind: str) -> Any:
        path, made = folder / f"{kind}.onnx", folder / f"{kind} optimised.onnx"
        if not made.exists():
            _save(exported, kind, path)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.optimized_model_filepath = str(made)
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return onnx.load(made).graph

    return make


def _save(exported: dict[str, Any], kind: str, path: Path) -> None:
    if kind in exported:
        onnx.save(exported[kind], path)
        return
    model = onnx.ModelProto()
    model.CopyFrom(exported["paper fp32"])
    del model.graph.value_info[:]  # which the quantiser would hold against its transposed weights
    if kind == "paper dynamic":
        quantization.quantize_dynamic(model, path)
    else:
        quantization.quantize_static(model, path, _OneBatch())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_flow(kind: str, optimised: Callable[[str], Any]) -> None:
    """From pixels through one tower to the head, never back nor across."""
    graph = optimised(kind)
    placed = placed_nodes(graph)
    assert len(placed) == len(graph.node)
    parts: dict[str, str] = {}
    for node, (_, _, op, part) in zip(graph.node, placed, strict=True):
        assert op == node.op_type
        behind = {parts[name] for name in node.input if name in parts} - {"other"}
        if part == "other":
            assert not behind
        assert all(b == part or ORDER[b] < ORDER[part] for b in behind), (node.name, part, behind)
        parts |= dict.fromkeys(node.output, part)
    assert {parts[output.name] for output in graph.output} == {"head"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_each_part_computes(kind: str, optimised: Callable[[str], Any]) -> None:
    """Two blocks a tower; normalisations are what no optimiser or quantiser here touches."""
    placed = placed_nodes(optimised(kind))
    norms = Counter(node.part for node in placed if node.op == "LayerNormalization")
    assert (norms["encoder"], norms["controller"]) == (2 * 2 + 1, 2 * 2 + 2)
    assert norms.keys() == {"encoder", "controller", "head"}
    convolutions = Counter(node.part for node in placed if "Conv" in node.op)
    assert convolutions == {"encoder": 1, "controller": 1}
    products = Counter(n.part for n in placed if "MatMul" in n.op or "Gemm" in n.op)
    # The resize, one axis after the other; six linears and attention's two products a block; the
    # controller's projection.
    assert products["prepare"] == 2
    assert products["encoder"] == 2 * 8
    assert products["controller"] == 2 * 8 + 1
    assert products["head"] > 10


@pytest.mark.parametrize("kind", KINDS)
def test_little_is_left(kind: str, optimised: Callable[[str], Any]) -> None:
    """Constants that several parts read, of float16's GELU for one."""
    left = [node.op for node in placed_nodes(optimised(kind)) if node.part == "other"]
    assert len(left) <= 3
    assert set(left) <= {"Cast", "Sqrt", "DequantizeLinear"}


def test_layers_are_named_after_their_weights(optimised: Callable[[str], Any]) -> None:
    for kind in KINDS:
        layers = {node.layer for node in placed_nodes(optimised(kind))}
        assert {"encoder.blocks.1.fc2", "controller.vit.blocks.0.query", "score"} <= layers
    unnamed = [n for n in placed_nodes(optimised("paper fp32")) if n.op == "Softmax"]
    assert all(node.layer == node.node for node in unnamed)


def test_equal_weights_stored_once(exported: dict[str, Any]) -> None:
    """Under the name of the first module that has them, which says nothing of the others."""
    graph = onnx.GraphProto()
    graph.CopyFrom(exported["paper fp32"].graph)
    expected = [node.part for node in placed_nodes(graph)]
    assert "model.encoder.norm_out.bias" in {weight.name for weight in graph.initializer}
    renamed = 0
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name.endswith((".norm1.bias", "norm2.bias", "ln_post.bias", "weighting.norm.bias")):
                node.input[place] = "model.encoder.norm_out.bias"
                renamed += 1
    assert renamed >= 8
    # Only one input of these nodes has a known name, so those names must not decide.
    for node in graph.node:
        if "model.encoder.norm_out.bias" in node.input:
            node.input[1] = "model.encoder.norm_out.bias"
    assert [node.part for node in placed_nodes(graph)] == expected


def test_names_of_tensorrts_parser(exported: dict[str, Any]) -> None:
    parts = part_by_name(exported["paper fp32"])
    assert parts["node_linear"] == "encoder"
    assert parts["node_of_pooled"] == "head"  # in a function's body
    assert set(parts.values()) == {"prepare", "encoder", "controller", "head"}


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("export"))):
        load_graph(tmp_path / "model.onnx")
