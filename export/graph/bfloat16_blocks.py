"""Transformer blocks whose products read bfloat16, and whose tokens stay float32.

What a block computes from its first linear layers to its last ones is in bfloat16: query, key,
value, attention and projection; both layers of the MLP and the GELU between them. The layer norms,
the tokens that each block adds to, and everything outside the blocks are float32: in bfloat16 they
would cost accuracy and save no time (docs/log.md).
"""

from collections.abc import Collection

import onnx
import onnx_ir as ir

from drexperts.export.graph.editing import (
    add_before,
    add_constant,
    drop_unread_constants,
)

ATTENTION = ("query", "key", "value")  # the layers that it reads
LAYERS = (*ATTENTION, "proj", "fc1", "fc2")
_BFLOAT16, _FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def bfloat16_blocks(proto: onnx.ModelProto, islands: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a graph of `openvino_graph` with its blocks in bfloat16.

    Linear layers in eight bits stay as they are.

    Args:
        islands: the blocks that stay in float32, such as "encoder.blocks.3".
    """
    model = ir.from_proto(proto)
    lowered = _lowered(model.graph, islands)
    read: dict[ir.Value, ir.Value] = {}  # values that are cast already
    for node in lowered:
        _read_bfloat16(node, lowered, read)
    for node in lowered:
        _give_float(node, lowered)
    drop_unread_constants(model.graph)
    changed = ir.to_proto(model)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def _lowered(graph: ir.Graph, islands: Collection[str]) -> dict[ir.Node, None]:
    """The nodes that become bfloat16, in the graph's order."""
    found: dict[ir.Node, None] = {}
    between: dict[ir.Value, bool] = {}  # what a block's last layers read, and whether it is lowered
    for node in graph:
        block, _, layer = (node.name or "").removesuffix(".product").rpartition(".")
        given, result = next(iter(node.inputs), None), node.outputs[0]
        if layer in LAYERS:
            lowers = block not in islands and _multiplies_floats(node)
            if layer in ATTENTION:  # its own products are lowered even if these are in eight bits
                between[result] = block not in islands
            elif layer == "fc1":
                between[result] = lowers
        elif given in between and node.op_type != "QuantizeLinear":
            lowers = between[result] = between[given]
        else:
            continue
        if lowers:
            found[node] = None
    return found


def _multiplies_floats(node: ir.Node) -> bool:
    """Whether a node of a linear layer is in floats: its product, or what adds the bias to it."""
    product = node.inputs[0].producer() if node.op_type == "Add" else node
    return product is not None and product.inputs[1].const_value is not None


def _read_bfloat16(
    node: ir.Node, lowered: Collection[ir.Node], read: dict[ir.Value, ir.Value]
) -> None:
    """Cast what a lowered node reads from others, and round its constants."""
    for position, given in enumerate(node.inputs):
        constant = given.const_value
        inner = constant is None and given.producer() in lowered
        if inner or (constant is not None and constant.dtype != _FLOAT):
            continue
        if given not in read:
            read[given] = _cast(given, node)
        node.replace_input_with(position, read[given])


def _cast(given: ir.Value, reader: ir.Node) -> ir.Value:
    name = f"{given.name}.bfloat16"
    if given.const_value is not None:
        rounded = given.const_value.numpy().astype(_BFLOAT16.numpy())
        return add_constant(reader.graph, name, rounded)
    return add_before(reader, "Cast", [given], name, {"to": _BFLOAT16})


def _give_float(node: ir.Node, lowered: Collection[ir.Node]) -> None:
    """Cast the result of a lowered node for its readers in float32."""
    (result,) = node.outputs
    result.type = ir.TensorType(_BFLOAT16)
    outside = [use for use in result.uses() if use.node not in lowered]
    if outside:
        first = min((use.node for use in outside), key=list(node.graph).index)
        floats = add_before(first, "Cast", [result], f"{result.name}.widened", {"to": _FLOAT})
        for use in outside:
            use.node.replace_input_with(use.idx, floats)
