"""The escape hatch from fused attention: an equal graph in which no builder recognises it.

Builders make one kernel of MatMul, Softmax, MatMul in float16 or bfloat16, and on some GPUs and
versions that kernel has given wrong numbers without an error (NVIDIA/TensorRT#4837, #4826). Here
every softmax is multiplied by a one that is computed from the pixels. That is exact: x * 1 is x,
and NaN stays NaN. A constant one would be folded away, and a factor on the logits is fused along
with them; this one costs a multiplication inside the softmax's kernel.
"""

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir

from drexperts.export.graph.editing import add_before, add_behind, add_constant
from drexperts.runtime.errors import UserError
from drexperts.runtime.wording import remedy

PREFIX = "unfused"


def without_fused_attention(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the graph whose attentions cannot be fused; its outputs are bitwise the same.

    Every attention of the main graph is changed, of any float type and at any batch size. The
    pooling node is not an attention: its softmaxes are subtracted before they meet a MatMul.

    Args:
        proto: a graph whose first input is pixels, uint8 [batch, 3, H, W].

    Raises:
        UserError: the graph has no attention to change, or was changed before.
    """
    model = ir.from_proto(proto)
    softmaxes = attention_softmaxes(model.graph)
    if not softmaxes:
        raise UserError(
            "the graph has no attention that a builder could fuse: build it "
            + remedy("without --no-fused-attention", "with fused_attention=True")
        )
    ones = _ones_from_pixels(model.graph, {softmax.outputs[0].dtype for softmax in softmaxes})
    for softmax in softmaxes:
        (probabilities,) = softmax.outputs
        one = ones[probabilities.dtype]
        add_behind(softmax, "Mul", [one], f"{PREFIX}.{probabilities.name}")
    changed = ir.to_proto(model)
    onnx.checker.check_model(changed)
    return changed


def attention_softmaxes(graph: ir.Graph) -> list[ir.Node]:
    """The Softmax nodes that stand between two MatMul nodes, in the graph's order."""
    return [
        node
        for node in graph
        if node.op_type == "Softmax"
        and (logits := node.inputs[0].producer()) is not None
        and logits.op_type == "MatMul"
        and any(reader.op_type == "MatMul" for reader in node.outputs[0].consumers())
    ]


def _ones_from_pixels(
    graph: ir.Graph, dtypes: Iterable[ir.DataType]
) -> dict[ir.DataType, ir.Value]:
    """A one of each type, computed at the graph's start: whether the first pixel exceeds -1."""
    first_node, pixels = graph[0], graph.inputs[0]
    rank = len(pixels.shape)
    start = add_constant(graph, f"{PREFIX}.start", np.zeros(rank, np.int64))
    end = add_constant(graph, f"{PREFIX}.end", np.ones(rank, np.int64))
    bound = add_constant(graph, f"{PREFIX}.bound", np.array(-1, np.float32))
    # Compared as floats, since TensorRT does not slice uint8.
    to_float = {"to": ir.DataType.FLOAT}
    floats = add_before(first_node, "Cast", [pixels], f"{PREFIX}.floats", to_float)
    first = add_before(first_node, "Slice", [floats, start, end], f"{PREFIX}.first")
    true = add_before(first_node, "Greater", [first, bound], f"{PREFIX}.true")
    return {
        dtype: add_before(first_node, "Cast", [true], f"{PREFIX}.one.{dtype.value}", {"to": dtype})
        for dtype in sorted(dtypes)
    }
