"""The form for OpenVINO: equal numbers, also of graphs in eight bits and of stored integers."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from support.openvino_runs import run_openvino

from drexperts.export.graph.calibration import block_linears
from drexperts.export.graph.fold import inference_model
from drexperts.export.graph.int8_products import Range, int8_products, int8_storage
from drexperts.export.graph.openvino_graph import openvino_graph
from drexperts.export.graph.to_onnx import DOMAIN, onnx_from_model
from drexperts.model.config import DRExpertsConfig


def pixels(batch: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, 3, side, side), np.uint8)


def run(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {"pixels": x}))


def assert_equal(got, expected, tolerance=1e-4):
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(1.0, float(np.abs(b).max()))


@pytest.fixture(scope="module", params=["paper", "official"])
def proto(request, graph_of):
    return graph_of(request.param, "fp32")


@pytest.fixture(scope="module")
def changed(proto):
    return openvino_graph(proto)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_numbers_stay_the_same(proto, changed, batch):
    x = pixels(batch)
    expected = run(proto, x)
    assert_equal(run(changed, x), expected)
    assert_equal(run_openvino(changed, x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [224, 384])
@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_numbers_stay_the_same_at_full_width(preset, size, image_size, random_model):
    """Two blocks in each tower, because the others are like them."""
    config = DRExpertsConfig.preset_named(preset, size)
    encoder = replace(config.encoder, image_size=image_size, depth=2)
    controller = replace(config.controller, depth=2)
    model = random_model(config.with_sizes(encoder, controller), spread=0.02)
    graph = onnx_from_model(model, maps=True, precision="fp32")
    changed = openvino_graph(graph)
    for batch in (1, 8):
        x = pixels(batch, image_size)
        expected = run(graph, x)
        assert_equal(run(changed, x), expected)
        assert_equal(run_openvino(changed, x), expected)


def test_functions_are_inlined(changed):
    assert not changed.functions
    assert all(each.domain != DOMAIN for each in changed.opset_import)
    onnx.checker.check_model(changed, full_check=True)


def test_layers_are_named(changed):
    results = {name for node in changed.graph.node for name in node.output}
    for block in ("encoder.blocks.0", "controller.vit.blocks.1"):
        assert {f"{block}.{layer}" for layer in ("query", "key", "value", "fc1")} <= results


@pytest.fixture(scope="module")
def ranges(tiny, random_model):
    folded = inference_model(random_model(tiny("official")))
    return dict.fromkeys(block_linears(folded), Range(-3.0, 3.0))


@pytest.mark.parametrize("batch", [1, 5])
def test_products_in_eight_bits_stay_the_same(graph_of, ranges, batch):
    graph = int8_products(graph_of("official", "fp32"), ranges)
    changed = openvino_graph(graph)
    kinds = [node.op_type for node in changed.graph.node]
    assert kinds.count("QuantizeLinear") >= len(ranges) // 2
    x = pixels(batch)
    # From the definition: a rounded activation may fall to another step in each library.
    expected = ReferenceEvaluator(graph).run(None, {"pixels": x})
    assert_equal(run(graph, x), expected, 2e-2)
    assert_equal(run_openvino(changed, x), expected, 2e-2)


def test_stored_integers_become_floats(graph_of):
    stored = int8_storage(graph_of("official", "fp32"))
    changed = openvino_graph(stored)
    assert not [node for node in changed.graph.node if node.name.endswith(".float")]
    assert_equal(run_openvino(changed, pixels(2)), run(stored, pixels(2)))
