"""Products in eight bits: ONNX Runtime computes them exactly and fuses them."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from drexperts.export.graph.int8_products import (
    LARGEST_FACTOR,
    LARGEST_WITH_VNNI,
    WORTH_STORING,
    Factors,
    Range,
    int8_products,
    int8_storage,
    nearest_factors,
)

FIRST, SECOND = "encoder.blocks.0.query", "encoder.blocks.0.key"


def layers(**weights: np.ndarray) -> onnx.ModelProto:
    """Two linear layers that read x [n, in], the second without a bias."""
    rng = np.random.default_rng(0)
    first = weights.get("first", rng.normal(size=(5, 8)).astype(np.float32))
    constants = {
        f"model.{FIRST}.weight": first,
        f"model.{FIRST}.bias": rng.normal(size=len(first)).astype(np.float32),
        f"model.{SECOND}.weight": rng.normal(size=(5, 8)).astype(np.float32),
    }
    names = list(constants)
    nodes = [
        helper.make_node("Gemm", ["x", *names[:2]], ["a"], transB=1),
        helper.make_node("Gemm", ["x", names[2]], ["b"], transB=1),
    ]
    return model(nodes, constants, ("x", ["n", 8]), {"a": ["n", 5], "b": ["n", 5]})


def model(nodes, constants, given, results) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, given[1])],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)
            for n, shape in results.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    proto = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(proto)
    return proto


def run(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})


def optimised(proto: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The number of nodes of each operator after ONNX Runtime's optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    nodes = onnx.load(folder / "optimised.onnx").graph.node
    return Counter(node.op_type for node in nodes)


def in_integers(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, given: Range) -> np.ndarray:
    """The layer in float64 on integers, from the definition."""
    steps = np.abs(weight).max(axis=1).astype(np.float64) / LARGEST_FACTOR
    factors = np.rint(weight / steps.astype(np.float32)[:, None])
    pixels = np.clip(np.rint(x / np.float32(given.scale)) + given.zero, 0, 255) - given.zero
    sums = pixels @ factors.T + np.rint(bias / (steps * given.scale))
    return sums * steps * given.scale


def test_sums_are_those_of_integers():
    proto, given = layers(), Range(-2.0, 3.0)
    weight, bias, other = (numpy_helper.to_array(w) for w in proto.graph.initializer)
    x = np.random.default_rng(1).normal(size=(7, 8)).astype(np.float32)  # some beyond the range
    got = run(int8_products(proto, {FIRST: given, SECOND: given}), x)
    np.testing.assert_allclose(got[0], in_integers(x, weight, bias, given), rtol=1e-5, atol=1e-6)
    expected = in_integers(x, other, np.zeros(5), given)
    np.testing.assert_allclose(got[1], expected, rtol=1e-5, atol=1e-6)


def test_results_are_near_those_in_float():
    proto = layers()
    x = np.random.default_rng(2).uniform(-1, 1, size=(64, 8)).astype(np.float32)
    ranges = dict.fromkeys((FIRST, SECOND), Range(-1.0, 1.0))
    for exact, got in zip(run(proto, x), run(int8_products(proto, ranges), x), strict=True):
        assert 0 < np.abs(got - exact).max() < 0.05


@pytest.mark.parametrize(
    ("low", "high"), [(-1, 3), (0, 5), (0.5, 5), (-4, -1), (0, 0), (-1e-9, 1e-9), (-1e5, 1e5)]
)
def test_zero_stays_zero(low, high):
    given = Range(low, high)
    assert given.scale > 0
    assert 0 <= given.zero <= 255
    assert (min(low, 0) - given.scale) / given.scale <= -given.zero
    assert (255 - given.zero) * given.scale >= max(high, 0) - given.scale


def test_factors_leave_room_for_pairs_of_products():
    quantised = int8_products(layers(), {FIRST: Range(-1, 1)})
    constants = {w.name: numpy_helper.to_array(w) for w in quantised.graph.initializer}
    factors = constants[f"model.{FIRST}.weight.int8.values"]
    assert factors.dtype == np.int8
    assert np.abs(factors.astype(int)).max() == LARGEST_FACTOR
    assert 2 * 255 * LARGEST_FACTOR < 2**15


def test_given_factors_are_multiplied():
    proto, given = layers(), Range(-2.0, 3.0)
    chosen = Factors(np.arange(-20, 20, dtype=np.int8).reshape(5, 8), np.full(5, 0.5, np.float32))
    quantised = int8_products(proto, {FIRST: given, SECOND: given}, {FIRST: chosen})
    got, other = run(quantised, np.zeros((1, 8), np.float32) + np.float32(given.scale))
    bias = numpy_helper.to_array(proto.graph.initializer[1])
    exact = given.scale * 0.5 * chosen.values.sum(axis=1) + bias
    np.testing.assert_allclose(got[0], exact, atol=0.5 * given.scale)
    nearest = run(int8_products(proto, {SECOND: given}), np.full((1, 8), given.scale, np.float32))
    np.testing.assert_array_equal(other, nearest[1])


def test_larger_factors_are_nearer():
    weight = np.random.default_rng(7).normal(size=(5, 80)).astype(np.float32)
    errors = []
    for largest in (LARGEST_FACTOR, LARGEST_WITH_VNNI):
        values, steps = nearest_factors(weight, np.zeros(5), Range(-1, 1), largest)
        assert np.abs(values.astype(int)).max() == largest
        errors.append(np.abs(values * steps[:, None] - weight).mean())
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("size", [0, 1e-30, 1e-10, 1e-7])
@pytest.mark.parametrize("given", [Range(-1, 1), Range(0, 0), Range(-1e-3, 1e4)])
def test_a_row_of_tiny_weights_gives_its_bias(size, given):
    proto = layers(first=np.full((5, 8), size, np.float32))
    bias = numpy_helper.to_array(proto.graph.initializer[1])
    got, _ = run(int8_products(proto, {FIRST: given}), np.zeros((1, 8), np.float32))
    np.testing.assert_allclose(got[0], bias, rtol=2e-6)


def test_other_layers_are_unchanged():
    proto = layers()
    before = proto.SerializeToString()
    quantised = int8_products(proto, {SECOND: Range(-1, 1)})
    assert proto.SerializeToString() == before
    x = np.random.default_rng(3).normal(size=(3, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(quantised, x)[0], run(proto, x)[0])
    assert [(n.op_type, list(n.input)) for n in int8_products(proto, {}).graph.node] == [
        (n.op_type, list(n.input)) for n in proto.graph.node
    ]


def test_a_shared_input_is_quantised_once():
    given = Range(-1, 1)
    quantised = int8_products(layers(), {FIRST: given, SECOND: given})
    kinds = Counter(node.op_type for node in quantised.graph.node)
    assert kinds["QuantizeLinear"] == 1
    names = {weight.name for weight in quantised.graph.initializer}
    assert not any(name.endswith((".weight", ".bias")) for name in names)


@pytest.mark.parametrize("preset", ["paper", pytest.param("official", marks=pytest.mark.slow)])
def test_every_linear_layer_is_fused(preset, graph_of, tmp_path):
    proto = graph_of(preset, "fp32")
    before = optimised(proto, tmp_path)
    names = {n.input[1][len("model.") : -len(".weight")] for n in proto.graph.node if _inside(n)}
    assert len(names) == 4 * 6
    after = optimised(int8_products(proto, dict.fromkeys(names, Range(-4, 4))), tmp_path)
    assert after["QGemm"] == len(names)
    assert after["Gemm"] == before["Gemm"] - len(names)
    # Each blocks' three projections read one input, and so do the others.
    assert after["QuantizeLinear"] == 4 * 4


def _inside(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and ".blocks." in node.input[1]


def test_large_weights_are_stored_and_folded(tmp_path):
    side = int(WORTH_STORING**0.5)
    rng = np.random.default_rng(4)
    weights = {
        "matrix": rng.normal(size=(side, side)).astype(np.float32),
        "model.controller_input.matrix": rng.normal(size=(side, side)).astype(np.float32),
        "small": rng.normal(size=(side, 3)).astype(np.float32),
        "positions": rng.normal(size=(side, side)).astype(np.float32),
    }
    names = list(weights)
    nodes = [
        helper.make_node("MatMul", ["x", names[0]], ["a"]),
        helper.make_node("MatMul", ["a", names[1]], ["b"]),
        helper.make_node("Add", ["b", "positions"], ["c"]),
        helper.make_node("MatMul", ["c", "small"], ["d"]),
    ]
    proto = model(nodes, weights, ("x", [side, side]), {"a": [side, side], "d": [side, 3]})
    stored = int8_storage(proto)
    onnx.checker.check_model(stored)
    kept_names = {weight.name for weight in stored.graph.initializer}
    assert kept_names == {*weights, "matrix.int16", "matrix.scale"} - {"matrix"}
    assert stored.ByteSize() < proto.ByteSize() - 1.9 * WORTH_STORING
    kept = run(stored, np.eye(side, dtype=np.float32))[0]
    step = np.abs(weights["matrix"]).max(axis=0) / 32767
    rounding = 2 * np.finfo(np.float32).eps * np.abs(weights["matrix"])  # of the product
    assert (np.abs(kept - weights["matrix"]) <= 0.5 * step + rounding).all()
    assert not {"Cast", "Mul"} & optimised(stored, tmp_path).keys()


def test_weights_that_nearly_cancel_keep_their_difference(tmp_path):
    """Weights that nearly cancel over a patch, all of whose samples are far from zero."""
    weight = np.random.default_rng(5).normal(size=(96, 3, 16, 16)).astype(np.float32)
    weight -= weight.mean(axis=(2, 3), keepdims=True)
    convolution = helper.make_node("Conv", ["x", "patches"], ["y"], strides=[16, 16])
    proto = model([convolution], {"patches": weight}, ("x", [1, 3, 16, 16]), {"y": [1, 96, 1, 1]})
    stored = int8_storage(proto)
    assert {kept.name for kept in stored.graph.initializer} == {"patches.int16", "patches.scale"}
    x = np.full((1, 3, 16, 16), 200, np.float32)
    x += np.random.default_rng(6).normal(size=x.shape).astype(np.float32)
    (expected,), (got,) = run(proto, x), run(stored, x)
    assert np.abs(got - expected).max() < 2e-2 * expected.std()
    assert not {"Cast", "Mul"} & optimised(stored, tmp_path).keys()
