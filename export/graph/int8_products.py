"""A graph whose linear layers multiply eight-bit integers, for CPUs.

Quantisation is static: an activation's scale is a constant of the graph, so that a row does not
depend on its batch, as it would with scales computed per batch (`quantize_dynamic`). Weights have a
scale for each output channel. Within -63..63 no CPU's instruction for pairs of products saturates
(that of x86 without VNNI has 16 bits), and every CPU has the same sums; an engine that is made for
CPUs with VNNI may use -127..127, whose rounding is half as coarse.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from drexperts.export.graph.editing import (
    add_before,
    add_constant,
    drop_unread_constants,
    layer_name,
)

LARGEST_FACTOR = 63  # of a weight in a product on any CPU: 255 * 63 twice is below 2^15
LARGEST_WITH_VNNI = 127  # where four products are added up in 32 bits
WORTH_STORING = 2**16  # elements of the smallest weight that is stored as integers
# Whose large constants are stored as integers; those added or sliced are positions or indices.
STORED = ("MatMul", "Transpose", "Gather", "Conv")
RESIZE = "model.controller_input."  # the resize matrix, which makes the pixels that others read

Array = NDArray[np.generic]


class Range(NamedTuple):
    """The least and the largest value that a linear layer reads."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """The size of one of the 255 steps of the range, which is extended to include zero."""
        return max(max(self.high, 0.0) - min(self.low, 0.0), 1e-6) / 255

    @property
    def zero(self) -> int:
        """The integer that stands for zero."""
        return min(255, max(0, round(-min(self.low, 0.0) / self.scale)))


class Factors(NamedTuple):
    """A weight in integers: int8 [out, in], and the float32 step of each row [out]."""

    values: NDArray[np.int8]
    steps: NDArray[np.float32]


def int8_products(
    proto: onnx.ModelProto,
    ranges: Mapping[str, Range],
    factors: Mapping[str, Factors] | None = None,
) -> onnx.ModelProto:
    """A copy of a graph of `onnx_from_model` in which some linear layers are in eight bits.

    Each reads its input through QuantizeLinear and DequantizeLinear, which ONNX Runtime fuses with
    the product, and has int8 weights [out, in] and an int32 bias.

    Args:
        ranges: of each layer's input, by the layer's name, "encoder.blocks.0.query"; other layers
            stay as they are.
        factors: the weights of layers that are not rounded to the nearest integers within
            -63..63.
    """
    model, chosen = ir.from_proto(proto), factors or {}
    read: dict[tuple[ir.Value, Range], ir.Value] = {}  # inputs that are quantised already
    for node in list(model.graph):
        if (name := layer_name(node)) in ranges:
            _quantise(node, name, ranges[name], chosen.get(name), read)
    drop_unread_constants(model.graph)
    return ir.to_proto(model)


def int8_storage(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph whose other large weights are kept as int16 and read as floats.

    No search can leave them out, so they have the bits that hardly move a score. They are read
    through Cast and Mul, which ONNX Runtime folds when it loads the graph; of a DequantizeLinear
    before a product it would make another kernel, MatMulNBits.
    """
    model = ir.from_proto(proto)
    first_node = model.graph[0]
    for weight in list(model.graph.initializers.values()):
        reader = next((node.op_type for node in model.graph if weight in node.inputs), "")
        if reader in STORED and _is_worth_storing(weight):
            _store(weight, 0 if reader == "Conv" else -1, first_node)
    return ir.to_proto(model)


def _is_worth_storing(weight: ir.Value) -> bool:
    return (
        weight.dtype == ir.DataType.FLOAT
        and not weight.name.startswith(RESIZE)
        and len(weight.shape) > 1
        and weight.const_value.size >= WORTH_STORING
    )


def _quantise(
    gemm: ir.Node,
    name: str,
    given: Range,
    factors: Factors | None,
    read: dict[tuple[ir.Value, Range], ir.Value],
) -> None:
    """Let a Gemm read integers."""
    source, weight, *rest = gemm.inputs
    floats = weight.const_value.numpy()
    bias = rest[0].const_value.numpy() if rest else np.zeros(len(floats), np.float32)
    factors = factors or nearest_factors(floats, bias, given)
    if (source, given) not in read:
        read[source, given] = _through_uint8(gemm, source, f"{name}.input", given)
    sums = factors.steps * np.float32(given.scale)
    integers = {
        "weight": factors,
        "bias": (np.rint(bias / sums.astype(np.float64)).astype(np.int32), sums),
    }
    gemm.resize_inputs(3)
    gemm.replace_input_with(0, read[source, given])
    for position, (part, (values, scale)) in enumerate(integers.items(), 1):
        constant = _dequantised(gemm, f"model.{name}.{part}.int8", values, scale)
        gemm.replace_input_with(position, constant)


def _through_uint8(reader: ir.Node, source: ir.Value, name: str, given: Range) -> ir.Value:
    """An activation, rounded to the 256 values of its range."""
    scale = add_constant(reader.graph, f"{name}.scale", np.array(given.scale, np.float32))
    zero = add_constant(reader.graph, f"{name}.zero", np.array(given.zero, np.uint8))
    steps = add_before(reader, "QuantizeLinear", [source, scale, zero], f"{name}.uint8")
    return add_before(reader, "DequantizeLinear", [steps, scale, zero], name)


def _dequantised(reader: ir.Node, name: str, values: Array, steps: Array) -> ir.Value:
    """A constant kept in integers, with a scale for each of its rows."""
    kept = {"values": values, "scale": steps, "zero": np.zeros(len(values), values.dtype)}
    given = [add_constant(reader.graph, f"{name}.{part}", kept[part]) for part in kept]
    return add_before(reader, "DequantizeLinear", given, name, {"axis": 0})


def _store(weight: ir.Value, axis: int, first_node: ir.Node) -> None:
    """Keep a weight as integers with a scale along `axis`."""
    graph, name, values = first_node.graph, weight.name, weight.const_value.numpy()
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    steps = _steps(np.abs(values).max(axis=others, keepdims=True), np.iinfo(np.int16).max)
    integers = add_constant(graph, f"{name}.int16", np.rint(values / steps).astype(np.int16))
    scale = add_constant(graph, f"{name}.scale", steps)
    del graph.initializers[name]
    floats = add_before(first_node, "Cast", [integers], f"{name}.float", {"to": weight.dtype})
    weight.replace_all_uses_with(add_before(first_node, "Mul", [floats, scale], name))


def nearest_factors(
    weight: NDArray[np.floating],
    bias: NDArray[np.floating],
    given: Range,
    largest: int = LARGEST_FACTOR,
) -> Factors:
    """The integers within -largest..largest that are nearest to a weight [out, in]."""
    steps = factor_steps(weight, bias, given.scale, largest)
    return Factors(np.rint(weight / steps[:, None]).astype(np.int8), steps)


def factor_steps(
    weight: Array, bias: Array, scale: float, factor: int = LARGEST_FACTOR
) -> NDArray[np.float32]:
    """The step of each row of a weight; times `scale` it is the step of the row's bias.

    It is large enough for the bias to fit in 32 bits, which alone decides in a row of zeros.
    """
    largest, added = np.abs(weight).max(axis=1), np.abs(bias) / scale
    least = added / np.where(largest > 0, 2.0**30, 2.0**20)
    steps = np.maximum(largest / factor, least)
    return np.where(steps > 0, steps, 1).astype(np.float32)


def _steps(largest: NDArray[np.floating], count: int) -> NDArray[np.float32]:
    """The step of which `count` reach the largest value; 1 where all values are zero."""
    return np.where(largest > 0, largest / count, 1).astype(np.float32)
