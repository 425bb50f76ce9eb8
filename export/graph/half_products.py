"""A graph for Turing (compute capability 7.5), on which TensorRT for RTX has no float32 products.

Every MatMul, Gemm and Conv of float32 operands reads float16 instead, and its result is given back
as float32. The sums inside a product remain float32 on that hardware; operands and results are
rounded to 11 bits, as those of the transformer blocks of a float16 graph are.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, shape_inference

from drexperts.runtime.errors import UserError

__all__ = ["half_products"]

PRODUCTS = ("MatMul", "Gemm", "Conv")
LARGEST = float(np.finfo(np.float16).max)


def half_products(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph without float32 products. Functions are inlined, their products included.

    Weights are stored as float16. Activations beyond 65504 become infinite, which the parity proof
    of the engine shows: the folded model has none, its 0..255 pixels are exact in float16.

    Raises:
        UserError: the graph's blocks are float32, and would silently be something else, or
            bfloat16, which Turing has not; or a weight is beyond float16.
    """
    # A copy in either case: inlining returns the graph itself where there is nothing to inline.
    half = onnx.ModelProto()
    half.CopyFrom(inliner.inline_local_functions(proto) if proto.functions else proto)
    types = _types(half)
    if TensorProto.FLOAT16 not in types.values():
        raise UserError(
            "compute capability 7.5 has float16 products only: build from --precision fp16"
        )
    casts = _Casts(half.graph)
    nodes = []
    for node in half.graph.node:
        if node.op_type in PRODUCTS and types[node.input[0]] == TensorProto.FLOAT:
            nodes += casts.halved(node)
        else:
            nodes.append(node)
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    del half.graph.value_info[:]
    _drop_unread(half.graph)
    return half


class _Casts:
    """Products rewritten one after another; each operand is cast once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.made: dict[str, str] = {}

    def halved(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """A product in float16, before it the casts of what it reads, behind it one back."""
        nodes = []
        for position, name in enumerate(node.input):
            if name and name not in self.made:
                self.made[name] = f"{name}_half"
                if name in self.weights:
                    self.graph.initializer.append(_half_weight(self.weights[name]))
                else:
                    nodes.append(_cast(name, self.made[name], TensorProto.FLOAT16))
            node.input[position] = self.made.get(name, "")
        (result,) = node.output
        node.output[0] = f"{result}_in_half"
        return [*nodes, node, _cast(node.output[0], result, TensorProto.FLOAT)]


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)


def _half_weight(weight: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(weight)
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= LARGEST:
        raise UserError(
            f"{weight.name} has the value {largest:g}, beyond float16, and compute capability 7.5 "
            "has no float32 products: it cannot run this model"
        )
    return numpy_helper.from_array(values.astype(np.float16), f"{weight.name}_half")


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor, by name."""
    graph = shape_inference.infer_shapes(proto).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    return types | {weight.name: weight.data_type for weight in graph.initializer}


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the weights that only products read, which now read float16 ones."""
    read = {name for node in graph.node for name in node.input}
    kept = [weight for weight in graph.initializer if weight.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
