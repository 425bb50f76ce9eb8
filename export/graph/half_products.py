"""A graph for Turing (compute capability 7.5), on which TensorRT for RTX has no float32 products.

Every MatMul, Gemm and Conv of float32 operands reads float16 instead, and its result is cast back
to float32. The sums inside a product remain float32 on that hardware; operands and results are
rounded to 11 bits, as those of the transformer blocks of a float16 graph are.
"""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import inliner, shape_inference

from drexperts.export.graph.editing import (
    add_before,
    add_behind,
    add_constant,
    drop_unread_constants,
)
from drexperts.runtime.errors import UserError

PRODUCTS = ("MatMul", "Gemm", "Conv")
LARGEST = float(np.finfo(np.float16).max)


def half_products(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph without float32 products. Functions are inlined, their products included.

    Weights are stored as float16. Activations beyond 65504 become infinite, which the parity proof
    of the engine shows; the folded model has none, and its 0..255 pixels are exact in float16.

    Raises:
        UserError: the graph's blocks are float32, and would silently become something else, or
            bfloat16, which Turing does not have; or a weight is beyond float16.
    """
    inlined = inliner.inline_local_functions(proto) if proto.functions else proto
    model = ir.from_proto(shape_inference.infer_shapes(inlined))
    graph = model.graph
    if not any(each.dtype == ir.DataType.FLOAT16 for each in _values(graph)):
        raise UserError(
            "compute capability 7.5 has float16 products only: build from a graph in fp16"
        )
    halved: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type in PRODUCTS and node.inputs[0].dtype == ir.DataType.FLOAT:
            for position, operand in enumerate(node.inputs):
                if operand is not None:
                    if operand not in halved:
                        halved[operand] = _half(operand, node)
                    node.replace_input_with(position, halved[operand])
            (result,) = node.outputs
            add_behind(node, "Cast", [], f"{result.name}_in_half", {"to": ir.DataType.FLOAT})
            result.type = ir.TensorType(ir.DataType.FLOAT16)
    drop_unread_constants(graph)
    return ir.to_proto(model)


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


def _half(operand: ir.Value, reader: ir.Node) -> ir.Value:
    """An operand in float16: a constant is rounded, anything else is cast before its reader."""
    if operand.const_value is None:
        to_half = {"to": ir.DataType.FLOAT16}
        return add_before(reader, "Cast", [operand], f"{operand.name}_half", to_half)
    values = operand.const_value.numpy()
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= LARGEST:
        raise UserError(
            f"{operand.name} has the value {largest:g}, beyond float16, and compute capability 7.5 "
            "has no float32 products: it cannot run this model"
        )
    return add_constant(reader.graph, f"{operand.name}_half", values.astype(np.float16))
