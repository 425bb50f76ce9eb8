"""The form of a graph that OpenVINO runs, which computes the same numbers.

OpenVINO 2026.4 differs from ONNX Runtime in what it takes:

    functions   are not read
    experts     a constant for each of them times one row of each image, [1, B, d] x [E, d, k],
                compiles, and fails when it runs with another B
    rows        of all images in one matrix, [B * N, d], keep products in eight bits from being
                compiled: their scales would be moved through the Reshape to the heads
    weights     that only storage keeps in integers may be multiplied as integers, by activations
                that are rounded to scales of the batch

ONNX Runtime is faster with rows in one matrix, so this is a form of its own.
"""

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from drexperts.export.graph.editing import (
    add_before,
    add_constant,
    layer_name,
    replace_by,
)
from drexperts.export.graph.to_onnx import DOMAIN

BLOCKS = ".blocks."  # in the names of their layers


def openvino_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    """An equal graph that OpenVINO compiles, and runs with every batch.

    The nodes of a linear layer are named after it: "encoder.blocks.0.query" gives its result.

    Args:
        proto: a graph of `onnx_from_model`, or what `int8_products` and `int8_storage` made of it.
    """
    model = ir.from_proto(proto)
    InlinePass()(model)
    model.graph.opset_imports.pop(DOMAIN, None)
    for node in list(model.graph):
        if node.op_type == "Reshape":
            _keep_images_apart(node)
        elif BLOCKS in (layer := layer_name(node)):
            _as_matmul(node, layer)
        elif node.op_type == "MatMul":
            _repeat_for_experts(node)
        elif node.op_type == "Mul":
            _store_floats(node)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None  # it was that of rows
    RemoveUnusedNodesPass()(model)
    changed = ir.to_proto(model)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def _keep_images_apart(reshape: ir.Node) -> None:
    """Replace a Reshape to rows [B * N, d] by one to [B, N, d], or by its input of that shape."""
    given, shape = reshape.inputs
    if shape.const_value is None or given.shape is None:
        return
    first, *rest = shape.const_value.numpy().tolist()
    if first != -1 or len(rest) != 1:
        return
    if len(given.shape) > 3:  # heads, [B, N, heads, d / heads]
        name = f"{reshape.outputs[0].name}.tokens"
        sizes = add_constant(reshape.graph, f"{name}.shape", np.array([0, 0, *rest]))
        given = add_before(reshape, "Reshape", [given, sizes], name)
    replace_by(reshape, given)


def _as_matmul(gemm: ir.Node, layer: str) -> None:
    """Replace the rows' product x Wᵀ + b by nodes that also take [B, N, d]."""
    given, weight, *bias = gemm.inputs
    factors = _transposed(weight, gemm)
    result = add_before(gemm, "MatMul", [given, factors], f"{layer}.product" if bias else layer)
    if bias:
        result = add_before(gemm, "Add", [result, _floats(bias[0], gemm)], layer)
    replace_by(gemm, result)


def _transposed(weight: ir.Value, reader: ir.Node) -> ir.Value:
    """A weight [out, in] as [in, out], also where it is kept in integers with a scale per row."""
    if weight.const_value is not None:
        name = f"{weight.name}.transposed"
        known = reader.graph.initializers.get(name)
        return known or add_constant(reader.graph, name, weight.const_value.numpy().T)
    integers, *scales = weight.producer().inputs
    turned = [_transposed(integers, reader), *scales]
    return add_before(reader, "DequantizeLinear", turned, f"{weight.name}.transposed", {"axis": 1})


def _floats(bias: ir.Value, reader: ir.Node) -> ir.Value:
    """A bias, which may be kept in integers, as a constant in floats."""
    if bias.const_value is not None:
        return bias
    integers, scale, _ = (each.const_value.numpy() for each in bias.producer().inputs)
    return add_constant(reader.graph, f"{bias.name}.floats", (integers * scale).astype(scale.dtype))


def _repeat_for_experts(product: ir.Node) -> None:
    """Give each expert's constant [E, d, k] a row of its own: [1, B, d] becomes [E, B, d]."""
    given, constants = product.inputs
    if given.shape is None or constants.shape is None or len(constants.shape) != 3:
        return
    experts = constants.shape[0]
    if len(given.shape) == 3 and given.shape[0] == 1 and experts != 1:
        name = f"{product.outputs[0].name}.repeated"
        times = add_constant(product.graph, f"{name}.times", np.array([experts, 1, 1]))
        product.replace_input_with(0, add_before(product, "Tile", [given, times], name))


def _store_floats(product: ir.Node) -> None:
    """Replace the product by which `int8_storage` keeps a weight by the weight itself."""
    cast = product.inputs[0].producer()
    integers = cast.inputs[0].const_value if cast is not None and cast.op_type == "Cast" else None
    scale = product.inputs[1].const_value
    if integers is not None and scale is not None:
        weight = integers.numpy().astype(scale.numpy().dtype) * scale.numpy()
        replace_by(
            product, add_constant(product.graph, f"{product.outputs[0].name}.floats", weight)
        )
