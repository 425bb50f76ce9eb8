"""A tiny graph with a product in bfloat16, and a bundle that has it as an OpenVINO engine."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from drexperts.runtime.cpus import cpu_capability
from drexperts.runtime.manifest import Engine, read_manifest, sha256_of, write_manifest
from drexperts.runtime.openvino_library import openvino_version

SIDE = 32
FILE = "openvino-bf16-00000000.onnx"
PRODUCTS = {"bf16": 1, "fp32": 1}  # of the graph, on a CPU that has bfloat16


def mixed_graph(precision: str = "bf16") -> onnx.ModelProto:
    """The toy bundle's interface; the score comes from two products, the first in `precision`."""
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((SIDE, SIDE)).astype(np.float32) for _ in range(2))
    shares = np.arange(1, 11, dtype=np.float32) / 55 / 255
    kind = {"bf16": TensorProto.BFLOAT16, "fp32": TensorProto.FLOAT}[precision]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "rows_shape"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["rows.half"], to=kind),
        helper.make_node("Cast", ["first"], ["first.half"], to=kind),
        helper.make_node("MatMul", ["rows.half", "first.half"], ["product.half"], "first product"),
        helper.make_node("Cast", ["product.half"], ["product"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["product"], ["positive"]),
        helper.make_node("MatMul", ["positive", "second"], ["features"], "second product"),
        helper.make_node("ReduceMean", ["features", "row_axes"], ["score"], keepdims=0),
        helper.make_node("Unsqueeze", ["score", "last"], ["column"]),
        helper.make_node("Mul", ["column", "shares"], ["weights"]),
        helper.make_node("ReduceMean", ["floats", "channel_axis"], ["grey"], keepdims=1),
        helper.make_node("AveragePool", ["grey"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Mul", ["cells", "map_shares"], ["maps"]),
    ]
    constants = {
        "rows_shape": np.array([0, 3 * SIDE, SIDE]),
        "first": first,
        "second": second,
        "row_axes": np.array([1, 2]),
        "last": np.array([1]),
        "shares": shares[None],
        "channel_axis": np.array([1]),
        "map_shares": shares[None, :, None, None],
    }
    shapes: dict[str, list[Any]] = {"score": [], "weights": [10], "maps": [10, 4, 4]}
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *shape])
            for name, shape in shapes.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def add_openvino_engine(bundle: Path, precision: str = "bf16", **changes: Any) -> Engine:
    """Add the graph to a copy of the toy bundle as an engine that was proven on this CPU."""
    manifest = read_manifest(bundle)
    (onnx_engine,) = (each for each in manifest.engines if each.backend == "onnx")
    file = FILE.replace("bf16", precision)
    onnx.save(mixed_graph(precision), bundle / file)
    engine = dataclasses.replace(
        onnx_engine,
        backend="openvino",
        file=file,
        sha256=sha256_of(bundle / file),
        precision=precision,
        versions={"openvino": openvino_version() or "2026.4.1"},
        proven_on=cpu_capability(),
        products={"fp32": 2} if precision == "fp32" else PRODUCTS,
    )
    engine = dataclasses.replace(engine, **changes)
    write_manifest(dataclasses.replace(manifest, engines=(*manifest.engines, engine)), bundle)
    return engine
