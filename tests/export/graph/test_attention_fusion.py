"""Without fused attention the outputs are the same, and no builder finds an attention."""

from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from drexperts.export.graph.attention_fusion import attention_softmaxes, without_fused_attention
from drexperts.runtime.errors import UserError

# What TensorRT for RTX 1.7 names a fused attention in the program text of its plans.
FUSED = b"function={ name=_gemm_mha_v2 "


@pytest.fixture(params=["paper", pytest.param("official", marks=pytest.mark.slow)])
def exported(request, graph_of):
    """exported(precision): a graph."""
    return partial(graph_of, request.param)


def softmaxes(proto: onnx.ModelProto) -> list[str]:
    """The outputs of the softmaxes of attentions."""
    return [node.outputs[0].name for node in attention_softmaxes(ir.from_proto(proto).graph)]


def run(
    proto: onnx.ModelProto, pixels: np.ndarray, optimised: bool = False, **feeds: np.ndarray
) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {"pixels": pixels, **feeds}))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_numbers_do_not_change(batch, precision, exported):
    proto = exported(precision)
    changed = without_fused_attention(proto)
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 3, 64, 64), dtype=np.uint8)
    pixels[0, 0, 0, 0] = 0  # what the one is computed from, at its least
    for before, after in zip(run(proto, pixels), run(changed, pixels), strict=True):
        np.testing.assert_array_equal(before, after)
    for before, after in zip(run(proto, pixels, True), run(changed, pixels, True), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-2 if precision == "fp16" else 1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_attention_is_changed(precision, exported):
    proto = exported(precision)
    before = proto.SerializeToString(deterministic=True)
    changed = without_fused_attention(proto)
    assert proto.SerializeToString(deterministic=True) == before  # a copy was changed
    assert len(softmaxes(proto)) == 4  # two blocks of each transformer
    assert softmaxes(changed) == []
    producers = {name: node for node in changed.graph.node for name in node.output}
    for output in softmaxes(proto):
        product = producers[output]
        assert product.op_type == "Mul"
        assert producers[product.input[0]].op_type == "Softmax"
    texts = [[onnx.printer.to_text(f) for f in each.functions] for each in (proto, changed)]
    assert texts[0] == texts[1]
    assert changed.graph.output == proto.graph.output


@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_builder_no_longer_fuses_attention(precision, exported):
    """A real builder does not fuse it, and does if the one is a constant."""
    proto = exported(precision)
    changed = without_fused_attention(proto)
    assert plan(proto).count(FUSED) == 4
    assert plan(changed).count(FUSED) == 0
    assert plan(with_constant_one(changed)).count(FUSED) == 4


def with_constant_one(changed: onnx.ModelProto) -> onnx.ModelProto:
    constant = onnx.ModelProto()
    constant.CopyFrom(changed)
    (last,) = [node for node in constant.graph.node if node.output[0].startswith("unfused.one.")]
    kind = last.attribute[0].i
    constant.graph.initializer.append(helper.make_tensor("constant", kind, [1, 1, 1, 1], [1.0]))
    for node in constant.graph.node:
        if last.output[0] in node.input:
            node.input[1] = "constant"
    return constant


def plan(proto: onnx.ModelProto) -> bytes:
    """Built without a GPU, for compute capability 8.9."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is the builder asked")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(proto.SerializeToString())
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("pixels", *[(batch, 3, 64, 64) for batch in (1, 2, 4)])
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


def attention_graph() -> onnx.ModelProto:
    """probabilities = softmax(logits @ one) @ values, of float32 inputs [1, 1, 2, 2]."""
    shape = [1, 1, 2, 2]
    names = ("logits", "values")
    nodes = [
        helper.make_node("MatMul", ["logits", "identity"], ["scores"], "first"),
        helper.make_node("Softmax", ["scores"], ["probabilities"], "softmax", axis=-1),
        helper.make_node("MatMul", ["probabilities", "values"], ["mixed"], "second"),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 3, 4, 4])
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
    output = helper.make_tensor_value_info("mixed", TensorProto.FLOAT, shape)
    identity = numpy_helper.from_array(np.eye(2, dtype=np.float32)[None, None], "identity")
    graph = helper.make_graph(nodes, "attention", [pixels, *inputs], [output], [identity])
    graph.value_info.add().CopyFrom(
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape)
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0, 1e-45])
def test_nan_signs_and_subnormal_numbers_stay(value):
    """Multiplying by one changes no bit."""
    proto = attention_graph()
    pixels = np.zeros((1, 3, 4, 4), np.uint8)
    logits = np.array([[[[value, 0.0], [90.0, -15.0]]]], np.float32)
    values = np.array([[[[-0.0, 1.0], [-0.0, 1.0]]]], np.float32)
    (before,) = run(proto, pixels, logits=logits, values=values)
    (after,) = run(without_fused_attention(proto), pixels, logits=logits, values=values)
    assert before.tobytes() == after.tobytes() or np.isnan(before).any()
    np.testing.assert_array_equal(np.isnan(before), np.isnan(after))
    assert np.isnan(after).any() == (not np.isfinite(value))


def test_a_graph_without_attention_is_refused():
    changed = without_fused_attention(attention_graph())
    with pytest.raises(UserError, match="no attention"):
        without_fused_attention(changed)
