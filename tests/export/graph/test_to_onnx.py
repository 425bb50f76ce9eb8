"""The ONNX file: what is in it, what is not, and that it runs."""

import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from drexperts.export.graph.fold import inference_model
from drexperts.export.graph.to_onnx import DOMAIN, OP, onnx_from_model
from drexperts.model.backbones import IMAGENET_MEAN, IMAGENET_STD, normalised

# Worst |engine - eager float32| that rounding explains, for outputs of order one to ten.
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2}


@pytest.fixture(scope="module", params=["paper", pytest.param("official", marks=pytest.mark.slow)])
def preset(request):
    return request.param


@pytest.fixture(scope="module")
def model(preset, tiny, random_model):
    return random_model(tiny(preset))


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def precision(request):
    return str(request.param)


@pytest.fixture(scope="module")
def proto(preset, precision, graph_of):
    return graph_of(preset, precision)


def run(proto: onnx.ModelProto, pixels: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {"pixels": pixels}))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_engine_is_the_eager_model(batch, model, proto, precision):
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 3, 64, 64), dtype=np.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        expected = model((torch.from_numpy(pixels).float() / 255 - mean) / std)
    for got, wanted in zip(run(proto, pixels), expected, strict=True):
        assert got.shape == tuple(wanted.shape)
        scale = max(1.0, float(wanted.abs().max()))
        assert np.abs(got - wanted.numpy()).max() / scale < TOLERANCE[precision]


def test_inputs_and_outputs(proto):
    (pixels,) = proto.graph.input
    assert pixels.name == "pixels"
    assert pixels.type.tensor_type.elem_type == TensorProto.UINT8
    dims = pixels.type.tensor_type.shape.dim
    assert [dims[0].dim_param, dims[2].dim_value] == ["batch", 64]
    assert [output.name for output in proto.graph.output] == ["score", "weights", "maps"]
    assert {o.type.tensor_type.elem_type for o in proto.graph.output} == {TensorProto.FLOAT}


@pytest.mark.slow
def test_maps_are_optional(model):
    graph = onnx_from_model(model, maps=False).graph
    assert [output.name for output in graph.output] == ["score", "weights"]


def test_pooling_is_one_node_with_a_body(proto, model):
    (node,) = [n for n in proto.graph.node if n.op_type == OP]
    assert node.domain == DOMAIN
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    iterated = model.config.semantic_norm == "iterated"
    assert attributes["plugin_namespace"] == DOMAIN.encode()
    assert (attributes["plugin_version"], attributes["aot"]) == (b"1", 1)
    assert attributes["iterated"] == int(iterated)
    assert attributes["epsilon"] == pytest.approx(1e-5)
    (body,) = proto.functions
    norms = [n for n in body.node if n.op_type == "LayerNormalization"]
    assert len(norms) == (10 if iterated else 1)


def test_no_initialiser_is_dead_or_doubled(proto):
    used = {name for node in proto.graph.node for name in node.input}
    contents = []
    for tensor in proto.graph.initializer:
        assert tensor.name in used, tensor.name
        if onnx.numpy_helper.to_array(tensor).size > 64:
            contents.append((tuple(tensor.dims), tensor.data_type, tensor.raw_data))
    assert len(contents) == len(set(contents))


def test_shared_projections_are_stored_once(proto, model):
    """With shared projections only Eq. 1's linears and the prompts have one item an expert."""
    width, embedding = model.config.encoder.width, model.config.controller.embedding
    own = [i.dims for i in proto.graph.initializer if len(i.dims) >= 2 and i.dims[0] == 10]
    large = [list(dims) for dims in own if int(np.prod(dims)) > 10 * max(width, embedding)]
    if model.config.projections == "shared":
        assert large == [[10, embedding, width]]
    else:
        assert len(large) == 4  # Eq. 1, two absorbed queries, the values


def test_the_file_holds_no_more_than_the_folded_model(proto, model):
    names = [i.name for i in proto.graph.initializer]
    assert not any(re.search(r"text|token_embedding|key\.bias|lambda", name) for name in names)
    folded = inference_model(model)
    parameters = sum(p.numel() for p in folded.parameters())
    constants = sum(b.numel() for b in folded.buffers())
    transposed = 48 * 64 + 17 * 10  # the resize and the spread are read from both sides
    stored = sum(int(np.prod(i.dims)) for i in proto.graph.initializer)
    # Shapes, scalars and products of constants such as (1 - alpha) b take the last percent.
    assert stored <= 1.01 * (parameters + constants + transposed)


def test_nothing_of_the_exporting_machine_is_in_the_file(proto):
    content = proto.SerializeToString()
    assert b"stack_trace" not in content
    assert b".py" not in content


@pytest.mark.slow
def test_export_is_reproducible(model, precision, proto):
    again = onnx_from_model(model, maps=True, precision=precision)
    assert again.SerializeToString(deterministic=True) == proto.SerializeToString(
        deterministic=True
    )


def test_precision_is_written_in_the_graph(proto, precision):
    kinds = {i.name: i.data_type for i in proto.graph.initializer}
    blocks = {kind for name, kind in kinds.items() if ".blocks." in name}
    assert blocks == {TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT}
    islands = {
        kind
        for name, kind in kinds.items()
        if re.search(r"patches|positions|saliency|weighting|score|ln_post|matrix", name)
    }
    assert islands == {TensorProto.FLOAT}


@pytest.fixture(scope="module")
def bfloat16(preset, graph_of):
    return graph_of(preset, "bf16")


def test_bfloat16_is_the_eager_model(model, bfloat16):
    """ONNX Runtime has no bfloat16 on the CPU; the checker's own evaluator does."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    got = ReferenceEvaluator(bfloat16).run(None, {"pixels": pixels})
    with torch.inference_mode():
        expected = model(normalised(torch.from_numpy(pixels)))
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a - b.numpy()).max() / max(1.0, float(b.abs().max())) < 0.2


def test_only_the_blocks_are_bfloat16(bfloat16):
    kinds = {i.name: i.data_type for i in bfloat16.graph.initializer}
    half = {name for name, kind in kinds.items() if kind == TensorProto.BFLOAT16}
    assert half
    assert half >= {name for name in kinds if ".blocks." in name}
    assert TensorProto.FLOAT16 not in kinds.values()
