"""The graph for Turing: no product is in float32, and the outputs stay."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from drexperts.export.engines.inspection import expectation_from_graph
from drexperts.export.graph.half_products import half_products
from drexperts.runtime.errors import UserError


@pytest.fixture(params=["paper", pytest.param("official", marks=pytest.mark.slow)])
def graph(request, graph_of):
    return graph_of(request.param, "fp16")


def run(proto: onnx.ModelProto, pixels: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixels": pixels}), strict=True))


def images() -> np.ndarray:
    """Noise, black and white pixels, a black and a white image."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, 3, 64, 64))
    checks = 255 * rng.integers(0, 2, (1, 3, 64, 64))
    flat = np.stack([np.zeros((3, 64, 64)), np.full((3, 64, 64), 255)])
    return np.concatenate([noise, checks, flat]).astype(np.uint8)


def test_every_product_reads_float16(graph):
    before = expectation_from_graph(graph).products.values()
    half = half_products(graph)
    after = expectation_from_graph(half).products.values()
    assert {*before} == {"fp16", "fp32"}
    assert {*after} == {"fp16"}
    assert len(after) == len(before)
    assert not half.functions
    onnx.checker.check_model(half, full_check=True)


def test_inputs_and_outputs_stay_and_the_argument_is_not_changed(graph):
    before = graph.SerializeToString()
    half = half_products(graph)
    assert list(half.graph.input) == list(graph.graph.input)
    assert list(half.graph.output) == list(graph.graph.output)
    assert graph.SerializeToString() == before


def test_numbers_stay(graph):
    pixels = images()
    expected, got = run(graph, pixels), run(half_products(graph), pixels)
    for name, values in expected.items():
        scale = max(1.0, float(np.abs(values).max()))
        # Rounding to 11 bits, a few times over.
        assert np.abs(got[name] - values).max() / scale < 1e-2, name
        assert (got[name] != values).any(), name


def test_weights_that_products_read_are_halved(graph):
    before, after = (
        expectation_from_graph(proto).weights for proto in (graph, half_products(graph))
    )
    assert after < before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_are_refused(precision, graph_of):
    proto = graph_of("paper", precision)
    with pytest.raises(UserError, match="a graph in fp16"):
        half_products(proto)


def product(weight: np.ndarray) -> onnx.ModelProto:
    """y = float16(x) * weight, in float32, with the weight read twice."""
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "weight"], ["once"], name="product"),
        helper.make_node("Add", ["once", "weight"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    weights = [numpy_helper.from_array(weight.astype(np.float32), "weight")]
    graph = helper.make_graph(nodes, "product", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_weight_read_elsewhere_stays_float32():
    weights = {w.name: w.data_type for w in half_products(product(np.eye(2))).graph.initializer}
    assert weights == {"weight": TensorProto.FLOAT, "weight_half": TensorProto.FLOAT16}


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_a_weight_beyond_float16_is_refused(value):
    with pytest.raises(UserError, match="weight has the value"):
        half_products(product(np.full((2, 2), value)))
