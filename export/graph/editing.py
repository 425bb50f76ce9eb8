"""Small edits of an ONNX graph, which the rewrites of this package share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def add_constant(graph: ir.Graph, name: str, values: NDArray[Any]) -> ir.Value:
    """Add an initializer."""
    tensor = ir.tensor(np.ascontiguousarray(values).reshape(values.shape), name=name)
    value = ir.Value(
        name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def add_before(
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    name: str,
    attributes: Mapping[str, Any] | None = None,
) -> ir.Value:
    """Put a new node before `node` and return its output, which has the node's name."""
    added = ir.node(op_type, inputs, attributes, name=name)
    added.outputs[0].name = name
    node.graph.insert_before(node, added)
    return added.outputs[0]


def add_behind(
    node: ir.Node,
    op_type: str,
    operands: list[ir.Value],
    name: str,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Put a new node behind `node`, of whose only output it is the only reader.

    It takes over the output's name, type and readers; the output is then called `name`.
    """
    (before,) = node.outputs
    added = ir.node(op_type, [before, *operands], attributes, name=f"node_{name}")
    (after,) = added.outputs
    after.type, after.shape = before.type, before.shape
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    added.replace_input_with(0, before)
    before.name, after.name = name, before.name
    node.graph.insert_after(node, added)


def drop_unread_constants(graph: ir.Graph) -> None:
    """Remove the initializers that no node reads."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def replace_by(node: ir.Node, value: ir.Value) -> None:
    """Let the readers of a node's only output read `value`, and remove the node."""
    node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)


def layer_name(node: ir.Node) -> str:
    """The linear layer that a Gemm of `onnx_from_model` is, "encoder.blocks.0.query", or "".

    Its weight names it, which may be kept in integers: "model.encoder.blocks.0.query.weight.int8".
    """
    name = (node.inputs[1].name or "") if node.op_type == "Gemm" else ""
    inside, found, _ = name.removeprefix("model.").rpartition(".weight")
    return inside if found and name.startswith("model.") else ""
