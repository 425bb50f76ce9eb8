"""The escape hatch from fused attention: an equal graph in which no builder recognises it.

Builders make one kernel of MatMul, Softmax, MatMul in float16 or bfloat16, and on some GPUs and
versions that kernel has given wrong numbers without an error (NVIDIA/TensorRT#4837, #4826). Here
every softmax is multiplied by a one that is computed from the pixels. That is exact: x * 1 is x,
and NaN stays NaN. A constant one would be folded away, and a factor on the logits is fused along
with them; this one costs a multiplication inside the softmax's kernel.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from drexperts.runtime.errors import UserError

PREFIX = "unfused"


def without_fused_attention(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the graph whose attentions cannot be fused; its outputs are bitwise the same.

    Every attention of the main graph is changed, of any float type and at any batch; the pooling
    node is none, for its softmaxes are subtracted before they meet a MatMul.

    Args:
        proto: a graph with one input, pixels uint8 [batch, 3, H, W].

    Raises:
        UserError: the graph has no attention to change, or was changed before.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph = changed.graph
    attentions = attention_softmaxes(graph)
    if not attentions:
        raise UserError(
            "the graph has no attention that a builder could fuse: build it without this option"
        )
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    nodes = _one_from_pixels(graph, {kinds[softmax.output[0]] for softmax in attentions})
    names = {softmax.name for softmax in attentions}
    for node in graph.node:
        nodes.append(node)
        if node.name in names:
            nodes.append(_times_one(graph, node, kinds[node.output[0]]))
    # Copies: clearing the field would empty the nodes that it owns.
    ordered = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(ordered)
    onnx.checker.check_model(changed)
    return changed


def attention_softmaxes(graph: onnx.GraphProto) -> list[NodeProto]:
    """The Softmax nodes that stand between two MatMul nodes, in the graph's order."""
    producers = {name: node.op_type for node in graph.node for name in node.output}
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node.op_type)
    return [
        node
        for node in graph.node
        if node.op_type == "Softmax"
        and producers.get(node.input[0]) == "MatMul"
        and "MatMul" in readers[node.output[0]]
    ]


def _one_from_pixels(graph: onnx.GraphProto, kinds: set[int]) -> list[NodeProto]:
    """The nodes that compute a one of each type: whether the first pixel exceeds -1."""
    rank = len(graph.input[0].type.tensor_type.shape.dim)
    constants: dict[str, NDArray[Any]] = {
        "start": np.zeros(rank, np.int64),
        "end": np.ones(rank, np.int64),
        "bound": np.array(-1, np.float32),
    }
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(value, f"{PREFIX}.{name}"))
    # TensorRT slices no uint8.
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", [graph.input[0].name], "floats", {"to": TensorProto.FLOAT}),
        ("Slice", [f"{PREFIX}.{name}" for name in ("floats", "start", "end")], "first", {}),
        ("Greater", [f"{PREFIX}.first", f"{PREFIX}.bound"], "true", {}),
        *(("Cast", [f"{PREFIX}.true"], f"one.{kind}", {"to": kind}) for kind in sorted(kinds)),
    ]
    return [
        helper.make_node(op, inputs, [f"{PREFIX}.{output}"], f"{PREFIX}.{output}", **attributes)
        for op, inputs, output, attributes in steps
    ]


def _times_one(graph: onnx.GraphProto, softmax: NodeProto, kind: int) -> NodeProto:
    """The product that takes over the softmax's name, so that its readers stay as they are."""
    product = softmax.output[0]
    softmax.output[0] = f"{PREFIX}.{product}"
    (known,) = [value for value in graph.value_info if value.name == product]
    graph.value_info.add().CopyFrom(known)
    graph.value_info[-1].name = softmax.output[0]
    inputs = [softmax.output[0], f"{PREFIX}.one.{kind}"]
    return helper.make_node("Mul", inputs, [product], f"{PREFIX}.{softmax.name}")
