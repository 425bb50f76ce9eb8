"""A graph whose linear layers multiply eight-bit integers, for CPUs.

Static: an activation's scale is a constant of the graph, so that a row's numbers do not depend on
the batch it came in, as they would with scales taken from each batch (`quantize_dynamic`). Weights
have a scale for each output channel and seven bits of magnitude less one: then no CPU's instruction
for pairs of products saturates (x86 without VNNI has one of 16 bits), and every CPU has the same
sums.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["Range", "int8_products", "int8_storage"]

LARGEST_FACTOR = 63  # of a weight in a product: 255 * 63 twice is below 2^15
WORTH_STORING = 2**16  # elements, from which on a weight is
# In what an operator's large constants are kept; what is added or sliced is a position or an index.
# A patch of pixels is far from zero in all its samples alike, which multiplies what is rounded.
STORED = {"MatMul": "int8", "Transpose": "int8", "Gather": "int8", "Conv": "int16"}
RESIZE = "model.controller_input."  # no weight of the model's: it makes the pixels that it reads

Array = NDArray[np.generic]


class Range(NamedTuple):
    """What a linear layer reads lies between."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """A step of the 255 from the least to the largest value, zero among them."""
        return max(max(self.high, 0.0) - min(self.low, 0.0), 1e-6) / 255

    @property
    def zero(self) -> int:
        """The integer that stands for zero."""
        return min(255, max(0, round(-min(self.low, 0.0) / self.scale)))


def int8_products(proto: onnx.ModelProto, ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """A copy of a graph of `onnx_from_model` in which some linear layers are in eight bits.

    Each reads its input through QuantizeLinear and DequantizeLinear, which ONNX Runtime fuses with
    the product, and has int8 weights [out, in] and an int32 bias.

    Args:
        ranges: of what is read, by the layer's name, "encoder.blocks.0.query"; other layers stay.
    """
    lowered = onnx.ModelProto()
    lowered.CopyFrom(proto)
    graph = _Rewritten(lowered.graph)
    nodes: list[onnx.NodeProto] = []
    for node in lowered.graph.node:
        name = _layer(node)
        if name in ranges:
            nodes += graph.quantised(node, name, ranges[name])
        nodes.append(node)
    graph.finish(nodes)
    return lowered


def int8_storage(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph whose other large weights are kept as integers and read as floats.

    Of eight bits, and of 16 in convolutions. By Cast and Mul, which ONNX Runtime folds when it
    loads the graph. Before a product it makes another kernel of DequantizeLinear, MatMulNBits.
    """
    stored = onnx.ModelProto()
    stored.CopyFrom(proto)
    graph = _Rewritten(stored.graph)
    first = {name: node for node in reversed(stored.graph.node) for name in node.input}
    nodes: list[onnx.NodeProto] = []
    for name, weight in list(graph.weights.items()):
        reader = first[name].op_type if name in first else ""
        if reader in STORED and _is_worth_storing(weight):
            axis = 0 if reader == "Conv" else -1
            nodes += graph.stored(weight, axis, STORED[reader])
    graph.finish([*nodes, *stored.graph.node])
    return stored


def _layer(node: onnx.NodeProto) -> str:
    """The name of the linear layer that a node is, or nothing."""
    prefix, suffix = "model.", ".weight"
    name = node.input[1] if node.op_type == "Gemm" else ""
    inside = name.startswith(prefix) and name.endswith(suffix)
    return name[len(prefix) : -len(suffix)] if inside else ""


def _is_worth_storing(weight: onnx.TensorProto) -> bool:
    return (
        weight.data_type == onnx.TensorProto.FLOAT
        and not weight.name.startswith(RESIZE)
        and len(weight.dims) > 1
        and int(np.prod(weight.dims)) >= WORTH_STORING
    )


class _Rewritten:
    """A graph being rewritten: constants are added and replaced, unread ones dropped at the end."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.read: dict[tuple[str, Range], str] = {}

    def quantised(self, node: onnx.NodeProto, name: str, given: Range) -> Iterator[onnx.NodeProto]:
        """Turn a Gemm's inputs into integers and back; yields the nodes that do."""
        weight = numpy_helper.to_array(self.weights[node.input[1]])
        bias = np.zeros(len(weight), np.float32)
        if len(node.input) > 2:
            bias = numpy_helper.to_array(self.weights[node.input[2]])
        steps = _factor_steps(weight, bias, given.scale)
        factors = np.rint(weight / steps[:, None]).astype(np.int8)
        source = node.input[0]
        if (source, given) not in self.read:
            self.read[source, given] = f"{name}.input"
            yield from self._activation(source, f"{name}.input", given)
        weight_name, bias_name = (f"model.{name}.{part}.int8" for part in ("weight", "bias"))
        del node.input[:]
        node.input.extend([self.read[source, given], weight_name, bias_name])
        yield self._constant(weight_name, factors, steps)
        sums = steps * np.float32(given.scale)
        added = np.rint(bias / sums.astype(np.float64)).astype(np.int32)
        yield self._constant(bias_name, added, sums)

    def stored(self, weight: onnx.TensorProto, axis: int, kind: str) -> Iterator[onnx.NodeProto]:
        """Keep a weight as integers of a scale along `axis`; yields what makes it of them."""
        values, name = numpy_helper.to_array(weight), weight.name
        others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        steps = _steps(np.abs(values).max(axis=others, keepdims=True), np.iinfo(kind).max)
        self._add(f"{name}.{kind}", np.rint(values / steps).astype(kind))
        self._add(f"{name}.scale", steps)
        del self.weights[name]
        yield helper.make_node("Cast", [f"{name}.{kind}"], [f"{name}.float"], to=weight.data_type)
        yield helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name])

    def finish(self, nodes: list[onnx.NodeProto]) -> None:
        """Put the nodes in place and drop the constants that none reads."""
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(kept)
        read = {name for node in kept for name in node.input}
        constants = [weight for name, weight in self.weights.items() if name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(constants)
        del self.graph.value_info[:]

    def _activation(self, source: str, target: str, given: Range) -> Iterator[onnx.NodeProto]:
        self._add(f"{target}.scale", np.array(given.scale, np.float32))
        self._add(f"{target}.zero", np.array(given.zero, np.uint8))
        by = [f"{target}.scale", f"{target}.zero"]
        yield helper.make_node("QuantizeLinear", [source, *by], [f"{target}.uint8"])
        yield helper.make_node("DequantizeLinear", [f"{target}.uint8", *by], [target])

    def _constant(self, name: str, values: Array, steps: Array) -> onnx.NodeProto:
        """A constant in integers, with a scale for each of its rows."""
        self._add(f"{name}.values", values)
        self._add(f"{name}.scale", steps)
        self._add(f"{name}.zero", np.zeros(len(values), values.dtype))
        given = [f"{name}.{part}" for part in ("values", "scale", "zero")]
        return helper.make_node("DequantizeLinear", given, [name], axis=0)

    def _add(self, name: str, values: Array) -> None:
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)


def _factor_steps(weight: Array, bias: Array, scale: float) -> NDArray[np.float32]:
    """The step of each row's factors, and of its bias with `scale`.

    Not so small that the bias has no place in 32 bits; in a row of zeros it is all that counts.
    """
    largest, added = np.abs(weight).max(axis=1), np.abs(bias) / scale
    least = added / np.where(largest > 0, 2.0**30, 2.0**20)
    steps = np.maximum(largest / LARGEST_FACTOR, least)
    return np.where(steps > 0, steps, 1).astype(np.float32)


def _steps(largest: NDArray[np.floating], count: int) -> NDArray[np.float32]:
    """The steps with which `count` of them reach the largest value; 1 where all values are zero."""
    return np.where(largest > 0, largest / count, 1).astype(np.float32)
