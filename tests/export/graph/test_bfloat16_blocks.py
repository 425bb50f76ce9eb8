"""Blocks in bfloat16: what is rounded, what is not, and what OpenVINO makes of it."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from support.openvino_runs import openvino_session, run_openvino

from drexperts.export.graph.bfloat16_blocks import LAYERS, bfloat16_blocks
from drexperts.export.graph.calibration import block_linears
from drexperts.export.graph.fold import inference_model
from drexperts.export.graph.int8_products import Range, int8_products
from drexperts.export.graph.openvino_graph import openvino_graph

BLOCKS = [f"{vit}.blocks.{i}" for vit in ("encoder", "controller.vit") for i in range(2)]


@pytest.fixture(scope="module", params=["paper", "official"])
def graph(request, graph_of):
    return openvino_graph(graph_of(request.param, "fp32"))


def types(proto):
    """The element type of every intermediate value."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    return {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}


def lowered(proto):
    """The layers whose product is in bfloat16."""
    found = types(proto)
    names = {name for name in found if name.rpartition(".")[2] in LAYERS}
    return {name for name in names if found[name] == TensorProto.BFLOAT16}


def test_the_blocks_and_nothing_else(graph):
    changed = bfloat16_blocks(graph)
    assert lowered(changed) == {f"{block}.{layer}" for block in BLOCKS for layer in LAYERS}
    found = types(changed)
    for node in changed.graph.node:
        if node.op_type in ("LayerNormalization", "Conv"):
            assert found[node.output[0]] == TensorProto.FLOAT
    assert {o.type.tensor_type.elem_type for o in changed.graph.output} == {TensorProto.FLOAT}


def test_attention_reads_bfloat16(graph):
    found = types(bfloat16_blocks(graph))
    softmaxes = [node for node in bfloat16_blocks(graph).graph.node if node.op_type == "Softmax"]
    kinds = Counter(found[str(node.output[0])] for node in softmaxes)
    assert kinds[TensorProto.BFLOAT16] == len(BLOCKS)
    assert kinds[TensorProto.FLOAT] == 2  # of the head, whose difference matters


def test_islands_stay_in_float32(graph):
    kept = BLOCKS[1]
    changed = bfloat16_blocks(graph, [kept])
    assert not {name for name in lowered(changed) if name.startswith(kept)}
    assert len(lowered(changed)) == (len(BLOCKS) - 1) * len(LAYERS)
    everything = bfloat16_blocks(graph, BLOCKS)
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8)
    for got, expected in zip(run_openvino(everything, x), run_openvino(graph, x), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_layers_in_eight_bits_stay_so(graph_of, tiny, random_model):
    linears = block_linears(inference_model(random_model(tiny("official"))))
    eight = {name: Range(-3.0, 3.0) for name in linears if "encoder" in name}
    changed = bfloat16_blocks(openvino_graph(int8_products(graph_of("official", "fp32"), eight)))
    assert lowered(changed) == linears.keys() - eight.keys()
    softmaxes = [node for node in changed.graph.node if node.op_type == "Softmax"]
    found = types(changed)
    kinds = Counter(found[str(node.output[0])] for node in softmaxes)
    assert kinds[TensorProto.BFLOAT16] == len(BLOCKS)  # attention multiplies activations alone


def test_rounding_is_that_of_bfloat16(graph):
    """A layer's result is what rounded inputs and weights give, from the definition."""
    changed = bfloat16_blocks(graph)
    name = f"{BLOCKS[0]}.fc1"
    (node,) = [n for n in changed.graph.node if n.output[0] == f"{name}.product"]
    constants = {each.name: each for each in changed.graph.initializer}
    weight = onnx.numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
    original = {str(each.name): each for each in graph.graph.initializer}
    name = str(node.input[1]).removesuffix(".bfloat16")
    full = onnx.numpy_helper.to_array(original[name])
    np.testing.assert_array_equal(weight, torch.from_numpy(full.copy()).bfloat16().float().numpy())


def test_scores_are_near_those_in_float32(graph_of, tiny, random_model):
    graph = openvino_graph(graph_of("official", "fp32"))
    x = np.random.default_rng(2).integers(0, 256, (8, 3, 64, 64), np.uint8)
    exact, got = run_openvino(graph, x), run_openvino(bfloat16_blocks(graph), x)
    spread = np.ptp(exact[0])
    assert 0 < np.abs(got[0] - exact[0]).max() < 0.5 * spread


def test_openvino_keeps_the_types(graph):
    products = openvino_session(bfloat16_blocks(graph)).products
    if "bf16" not in products:
        pytest.skip(f"this CPU has no bfloat16, its products are {products}")
    assert products["bf16"] == len(BLOCKS) * (len(LAYERS) + 1)  # and the attention
    assert openvino_session(graph).products.keys() == {"fp32"}
