"""The search for the first diverging tensor: a fault in one node is found at that node."""

import copy
import re
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from drexperts.export.engines import debug_layers
from drexperts.export.engines.debug_layers import (
    EXECUTORS,
    WIDE,
    Arrays,
    DataFlow,
    Execute,
    LayerReport,
    cosine,
    first_divergence,
    float32_twin,
    relative_error,
    showing,
    through_onnx_runtime,
)
from drexperts.export.graph.bfloat16_blocks import bfloat16_blocks
from drexperts.export.graph.openvino_graph import openvino_graph
from drexperts.export.graph.to_onnx import OP
from drexperts.runtime.errors import MissingDependencyError, UserError
from drexperts.runtime.installing import install_command
from drexperts.runtime.manifest import read_manifest, sha256_of, write_manifest

Change = Callable[[onnx.ModelProto], None]

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)


@pytest.fixture
def polygraphy():
    pytest.importorskip("polygraphy", reason="runs go through polygraphy, an optional extra")


@pytest.fixture(params=["paper", pytest.param("official", marks=pytest.mark.slow)])
def made(request, graph_of):
    """made(precision): a graph of one's own."""
    return lambda precision: copy.deepcopy(graph_of(request.param, precision))


def evaluator(proto: onnx.ModelProto, pixels: np.ndarray) -> Arrays:
    """ONNX's own evaluator, which has bfloat16 and sums in another order."""
    outputs = ReferenceEvaluator(proto).run(None, {"pixels": pixels})
    names = [output.name.removesuffix(WIDE) for output in proto.graph.output]
    return dict(zip(names, outputs, strict=True))


def faulty(change: Change) -> Execute:
    """An engine that computes a changed graph."""

    def execute(proto: onnx.ModelProto, pixels: np.ndarray) -> Arrays:
        change(proto)
        return through_onnx_runtime(proto, pixels)

    return execute


def search(proto: onnx.ModelProto, precision: str, execute: Execute) -> LayerReport:
    return first_divergence(proto, PIXELS, precision, execute)


def initialiser(suffix: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def apply(proto: onnx.ModelProto) -> None:
        (tensor,) = [t for t in proto.graph.initializer if t.name.endswith(suffix)]
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), tensor.name))

    return apply


def with_nan(values: np.ndarray) -> np.ndarray:
    poisoned = values.copy()
    poisoned.flat[3] = np.nan
    return poisoned


def with_large_epsilon(proto: onnx.ModelProto) -> None:
    norms = [node for node in proto.graph.node if node.op_type == "LayerNormalization"]
    (epsilon,) = [a for a in norms[2].attribute if a.name == "epsilon"]
    epsilon.f = 1e-2


def with_summed_maps(proto: onnx.ModelProto) -> None:
    """The pooling's body adds the two branches instead of subtracting one."""
    (last,) = [node for node in proto.functions[0].node if node.op_type == "Sub"]
    last.op_type = "Add"


def reader(proto: onnx.ModelProto, suffix: str) -> str:
    """The tensor made by the one node that reads an initialiser."""
    (name,) = [t.name for t in proto.graph.initializer if t.name.endswith(suffix)]
    (node,) = [node for node in proto.graph.node if name in node.input]
    return str(node.output[0])


@pytest.mark.usefixtures("polygraphy")
@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        ("encoder.blocks.0.query.weight", lambda values: values * 1.1),
        ("encoder.blocks.1.fc2.weight", lambda values: values * 1.1),
        ("vit.blocks.0.key.weight", lambda values: values * 1.1),
        ("vit.blocks.1.norm2.weight", lambda values: values * 0.9),
        ("vit.blocks.1.proj.bias", with_nan),
        ("encoder.patches.weight", lambda values: values * 1.1),
    ],
)
@pytest.mark.slow
def test_a_changed_weight_is_found_where_it_is_read(suffix, change, made, monkeypatch):
    monkeypatch.setattr(debug_layers, "WINDOW", 40)
    proto = made("fp16")
    report = search(proto, "fp16", faulty(initialiser(suffix, change)))
    assert report.first is not None
    assert report.first.tensor == reader(proto, suffix)
    assert not report.first.hidden
    assert report.first.error > report.first.limit > max(report.first.inputs.values(), default=0)
    assert (report.first.error == np.inf) == (change is with_nan)


@pytest.mark.usefixtures("polygraphy")
def test_a_changed_epsilon_is_found(made):
    proto = made("fp32")
    norms = [node for node in proto.graph.node if node.op_type == "LayerNormalization"]
    first = search(proto, "fp32", faulty(with_large_epsilon)).first
    assert first is not None
    assert (first.tensor, first.op) == (norms[2].output[0], "LayerNormalization")


@pytest.mark.usefixtures("polygraphy")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_fault_inside_the_pooling_is_found_at_its_node(precision, made):
    proto = made(precision)
    (pooling,) = [node for node in proto.graph.node if node.op_type == OP]
    first = search(proto, precision, faulty(with_summed_maps)).first
    assert first is not None
    assert first.op == OP
    assert first.tensor in pooling.output


@pytest.mark.usefixtures("polygraphy")
def test_a_fault_that_disappears_when_shown_is_in_a_fused_kernel(made):
    """An engine that is wrong only while its attention's softmax is not an output."""
    proto = made("fp16")
    softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
    wrong = faulty(initialiser("encoder.blocks.0.value.weight", lambda values: values * 3))

    def execute(shown: onnx.ModelProto, pixels: np.ndarray) -> Arrays:
        seen = softmax.output[0] in {output.name for output in shown.graph.output}
        return (through_onnx_runtime if seen else wrong)(shown, pixels)

    first = search(proto, "fp16", execute).first
    assert first is not None
    assert first.hidden
    assert first.tensor in DataFlow(proto).shared()
    assert first.inputs


@pytest.mark.usefixtures("polygraphy")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.slow
def test_rounding_is_not_a_divergence(precision, made):
    proto = made(precision)
    report = search(proto, precision, evaluator)
    assert report.first is None
    # Every float tensor was seen; what passes as float32 is float32.
    assert [row.tensor for row in report.profile] == list(DataFlow(proto).maker)
    worst = max(row.error for row in report.profile)
    assert worst < debug_layers.LIMITS[precision]
    assert (worst < debug_layers.LIMITS["fp32"]) == (precision == "fp32")


@pytest.mark.usefixtures("polygraphy")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_openvino_runs_does_not_diverge(made, precision):
    pytest.importorskip("openvino")
    graph = openvino_graph(made("fp32"))
    graph = bfloat16_blocks(graph) if precision == "bf16" else graph
    graph = onnx.shape_inference.infer_shapes(graph)
    report = search(graph, precision, EXECUTORS["openvino"])
    assert report.first is None
    names = {row.tensor for row in report.profile}
    assert any(name.startswith("encoder.blocks.0.query") for name in names)


@pytest.mark.usefixtures("polygraphy")
def test_the_shipping_graph_does_not_diverge(made):
    assert search(made("fp16"), "fp16", EXECUTORS["onnx"]).first is None


@pytest.mark.usefixtures("polygraphy")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine could run the engine")
@pytest.mark.slow
def test_an_engine_that_cannot_run_here_is_refused(made):
    """It is parsed and built with extra outputs; only running it needs a GPU."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    proto = made("fp16")
    shown = showing(proto, DataFlow(proto).shared())
    with pytest.raises(UserError, match="could not be run"):
        EXECUTORS["tensorrt-rtx"](shown, PIXELS)


def test_polygraphy_is_named_where_it_is_missing(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    for name in [name for name in sys.modules if name.startswith("polygraphy.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("debug"))):
        search(made("fp32"), "fp32", through_onnx_runtime)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_twin_is_float32_throughout(precision, made):
    proto = made(precision)
    twin = float32_twin(proto)
    onnx.checker.check_model(twin, full_check=True)
    halves = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    inferred = onnx.shape_inference.infer_shapes(twin, strict_mode=True).graph
    kinds = {value.type.tensor_type.elem_type for value in inferred.value_info}
    assert not halves & {*kinds, *(tensor.data_type for tensor in twin.graph.initializer)}
    names = [[list(node.output) for node in each.graph.node] for each in (proto, twin)]
    assert names[0] == names[1]
    for mine, wide in zip(proto.graph.initializer, twin.graph.initializer, strict=True):
        np.testing.assert_array_equal(
            numpy_helper.to_array(mine).astype(np.float64),
            numpy_helper.to_array(wide).astype(np.float64),
        )


def test_shown_tensors_are_outputs(made):
    proto = made("bf16")
    flow = DataFlow(proto)
    shown = showing(proto, flow.shared())
    onnx.checker.check_model(shown)
    names = [output.name for output in shown.graph.output]
    assert names[:3] == ["score", "weights", "maps"]
    assert sorted(name.removesuffix(WIDE) for name in names) == sorted(flow.shared())
    assert any(name.endswith(WIDE) for name in names)


def test_errors():
    one = np.array([3.0, 4.0], np.float32)
    assert relative_error(one, one) == 0.0
    rms = np.sqrt(12.5)
    assert relative_error(one + np.array([0, 1], np.float32), one) == pytest.approx(1 / (4 + rms))
    assert relative_error(np.array([np.nan, 4.0]), one) == np.inf
    assert relative_error(one, np.array([np.inf, 4.0])) == np.inf
    assert relative_error(np.zeros(2), np.zeros(2)) == 0.0
    assert relative_error(np.ones(2), np.zeros(2)) > 1e9
    assert relative_error(np.ones((2, 1)), np.ones(2)) == np.inf
    assert cosine(one, 2 * one) == pytest.approx(1.0)
    assert cosine(one, -one) == pytest.approx(-1.0)


@pytest.mark.usefixtures("polygraphy")
def test_the_engines_of_a_bundle_that_run_here(bundle, checkpoint_file, graph_of, planned):
    onnx.save(graph_of("paper", "fp16"), bundle / "model.onnx")
    manifest = read_manifest(bundle)
    half = replace(manifest.engines[0], precision="fp16", sha256=sha256_of(bundle / "model.onnx"))
    write_manifest(replace(manifest, engines=(half, planned())), bundle)
    ((engine, report),) = debug_layers.bundle_layers(bundle, checkpoint_file)
    assert engine.file == "model.onnx"
    assert report.first is None
    assert max(row.error for row in report.profile) > 0


def test_an_int8_engine_has_no_twin(toy_bundle, tmp_path):
    manifest = read_manifest(toy_bundle)
    write_manifest(
        replace(manifest, engines=(replace(manifest.engines[0], precision="int8"),)), tmp_path
    )
    with pytest.raises(UserError, match="checkpoint in fp32"):
        next(debug_layers.bundle_layers(tmp_path))
