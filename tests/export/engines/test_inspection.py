"""Plans read back: the right graph passes, another precision or a damaged file does not."""

import importlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drexperts.export.engines.inspection import (
    Expectation,
    check,
    check_products,
    expectation_from_graph,
    inspection_from_json,
    inspection_from_plan,
    products_of_network,
)
from drexperts.export.engines.options import EngineOptions
from drexperts.export.engines.tensorrt_engine import engine_from_onnx
from drexperts.runtime.errors import PlanError, UnreadablePlanError

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed"
)


@pytest.fixture(scope="module")
def graphs(graph_of):
    return {name: graph_of("paper", name) for name in ("fp32", "fp16", "bf16")}


@pytest.fixture(scope="module")
def plans(graphs, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("plans")
    options = EngineOptions(capabilities=("8.6", "12.0"))
    for name, graph in graphs.items():
        engine_from_onnx(graph, "tensorrt-rtx", folder / name, options)
    return {name: (folder / name).read_bytes() for name in graphs}


def test_what_a_graph_asks_for(graphs):
    expected = expectation_from_graph(graphs["fp16"])
    outputs = dict.fromkeys(("score", "weights", "maps"), "fp32")
    assert expected.bindings == {"pixels": "uint8"} | outputs
    assert expected.products["node_linear"] == "fp16"
    assert expected.products["node_of_pooled"] == "fp32"
    # Two blocks in each of two transformers: four linears, two attention products, and QKV apart.
    assert list(expected.products.values()).count("fp16") == 2 * 2 * 8
    assert "node_of_pooled" not in expectation_from_graph(graphs["fp16"], functions=False).products


@rtx
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_plan_is_what_its_graph_asks_for(precision, graphs, plans):
    found, expected = (
        inspection_from_plan(plans[precision]),
        expectation_from_graph(graphs[precision]),
    )
    check(found, expected)
    assert found.targets == ("8.6", "12.0")
    assert found.version == importlib.import_module("tensorrt_rtx").__version__
    assert expected.products.keys() <= found.products.keys()
    assert found.fused_attention == (0 if precision == "fp32" else 4)


@rtx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("built", "asked"), [("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp16"), ("fp32", "bf16")]
)
def test_another_precision_is_noticed(built, asked, graphs, plans):
    found = inspection_from_plan(plans[built])
    with pytest.raises(PlanError, match=f"{built}.* {asked}"):
        check(found, expectation_from_graph(graphs[asked]))


@rtx
def test_networks_have_the_graphs_types(graphs):
    trt = importlib.import_module("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, logger).parse(graphs["bf16"].SerializeToString())
    found = products_of_network(trt, network)
    check_products(found, expectation_from_graph(graphs["bf16"]).products)
    with pytest.raises(PlanError, match=r"bf16.* fp16"):
        check_products(found, expectation_from_graph(graphs["fp16"]).products)


@rtx
@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 1, 60, 111, 112, 1000, -1])
def test_a_truncated_plan(kept, plans):
    with pytest.raises(PlanError, match="cut short" if kept in (112, 1000, -1) else "begin"):
        inspection_from_plan(plans["fp16"][:kept])


def changed(plan: bytes, at: int, new: bytes) -> bytes:
    return plan[:at] + new + plan[at + len(new) :]


@rtx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, b"ptrt", "begin"),
        (64, b"ABCD", "table of sections"),
        (96, struct.pack("<Q", 2**63), "damaged"),
        (112, bytes(2**20), "text"),
    ],
)
def test_a_damaged_plan(at, new, message, plans):
    with pytest.raises(PlanError, match=message):
        inspection_from_plan(changed(plans["fp16"], at, new))


@rtx
@pytest.mark.slow
def test_a_plan_whose_statements_are_others_is_unreadable(graphs, plans):
    other = plans["fp16"].replace(b"fully_connected={", b"matrix_product_={")
    with pytest.raises(UnreadablePlanError, match=r"only .* products are found"):
        check(inspection_from_plan(other), expectation_from_graph(graphs["fp16"]))


@rtx
@pytest.mark.slow
def test_weights_of_another_size(graphs, plans):
    found, expected = inspection_from_plan(plans["fp16"]), expectation_from_graph(graphs["fp16"])
    for weights in (0, 2 * expected.weights):
        with pytest.raises(PlanError, match="bytes of weights"):
            check(replace(found, weights=weights), expected)
    check(replace(found, weights=0), expected, stripped=True)


EXPECTED = Expectation({"x": "uint8", "y": "fp32"}, {"node_a": "fp16", "node_of_b": "fp32"}, 100)


def document(eleven: bool, first: str = "Half", y: str = "Float") -> dict[str, Any]:
    """The inspector's document in the layout of TensorRT 11 or 10."""

    def tensor(name: str, kind: str) -> dict[str, Any]:
        form = {"Format": "kLINEAR", "DataType": kind} if eleven else {"Format/Datatype": kind}
        return {"Name": name, "Dimensions": [1, 4], **form}

    def layer(metadata: str, inputs: list[Any], output: Any) -> dict[str, Any]:
        return {
            "Name": "layer",
            "LayerType": "gemm",
            "Inputs": inputs,
            "Outputs": [output],
            "TacticName": "_gemm_mha_v2",
            "Metadata": metadata,
        }

    a = tensor("a", first)
    layers = [
        layer("[ONNX Layer: cast]", [tensor("x", "UInt8")], a),
        layer("[ONNX Layer: other]\x1e[ONNX Layer: node_a]", [a], tensor("b", first)),
        layer("[ONNX Layer: node_of_b | node (F)]", [tensor("c", "Float")], tensor("y", y)),
    ]
    ends = [{"Name": "x", "DataType": "UInt8"}, {"Name": "y", "DataType": y}]
    return {"Layers": layers} | ({"I/O Tensors": ends} if eleven else {"Bindings": ["x", "y"]})


@pytest.mark.parametrize("eleven", [False, True])
def test_the_inspectors_document(eleven):
    found = inspection_from_json(json.dumps(document(eleven)))
    check(found, EXPECTED)
    assert found.fused_attention == 3


@pytest.mark.parametrize("eleven", [False, True])
def test_a_silent_float32_engine(eleven):
    found = inspection_from_json(json.dumps(document(eleven, first="Float")))
    with pytest.raises(PlanError, match=r"node_a.* fp32.* fp16"):
        check(found, EXPECTED)


@pytest.mark.parametrize("eleven", [False, True])
def test_other_outputs(eleven):
    found = inspection_from_json(json.dumps(document(eleven, y="Half")))
    with pytest.raises(PlanError, match="inputs and outputs"):
        check(found, EXPECTED)


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("Row major linear FP16 format", "fp16"),
        ("BFloat16", "bf16"),
        ("Channel major FP32 format where channel % 4 == 0", "fp32"),
    ],
)
def test_names_of_types(kind, read):
    found = inspection_from_json(json.dumps(document(False, first=kind)))
    assert read in found.products["node_a"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": ["a"], "Bindings": []}', "null"])
def test_an_invalid_document(text):
    with pytest.raises(UnreadablePlanError, match="not understood"):
        inspection_from_json(text)


def test_layer_names_alone_are_not_enough():
    """The inspector's document of an engine built without detailed verbosity."""
    names = {"Layers": ["layer", "layer"], "Bindings": ["x", "y"]}
    with pytest.raises(UnreadablePlanError):
        inspection_from_json(json.dumps(names))
