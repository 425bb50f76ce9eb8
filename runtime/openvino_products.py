"""The types that OpenVINO computes in, read back from a compiled model.

A graph says which types it wants; the compiled model says which it got. A CPU without bfloat16
computes a bfloat16 graph in float32 and mentions it nowhere else.
"""

from collections import Counter
from typing import Any, NamedTuple

# Matrix products with constants, and others.
_PRODUCTS = ("FullyConnected", "MatMul")
# Operations that are compiled together: an attention is one, and so may be a chain without product.
_TOGETHER = "Subgraph"
_OF_ATTENTION = ("matmul", "softmax")
_TYPES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}


class Layer(NamedTuple):
    """A layer of a compiled model, in the order in which it is computed.

    kind: OpenVINO's name of what it does, such as "FullyConnected"
    precision: "fp32", "bf16", "fp16", "int8", or OpenVINO's name of another type
    primitive: what computes it, such as "brgemm_avx512_amx_bf16"
    origins: the names of the graph's nodes that it was made from
    """

    name: str
    kind: str
    precision: str
    primitive: str
    origins: tuple[str, ...]


def layers(compiled: Any) -> list[Layer]:
    """The layers of an `openvino.CompiledModel` for the CPU."""
    return [_layer(node) for node in compiled.get_runtime_model().get_ordered_ops()]


def products(compiled: Any) -> dict[str, int]:
    """How many matrix products are computed in each type, by the type's name.

    An attention whose products are compiled together with its softmax counts once. Threads and
    streams do not change the numbers.
    """
    found = Counter(layer.precision for layer in layers(compiled) if _multiplies(layer))
    return dict(sorted(found.items()))


def products_text(products: dict[str, int]) -> str:
    """Counts of products in words, such as "144 bf16, 16 fp32"."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(products.items())) or "none"


def _multiplies(layer: Layer) -> bool:
    if layer.kind == _TOGETHER:
        return any(word in name.lower() for name in layer.origins for word in _OF_ATTENTION)
    return layer.kind in _PRODUCTS


def _layer(node: Any) -> Layer:
    told = node.get_rt_info()

    def text(key: str) -> str:
        return str(told[key].astype(str)) if key in told else ""

    precision, origins = text("runtimePrecision"), text("originalLayersNames")
    return Layer(
        name=node.get_friendly_name(),
        kind=text("layerType"),
        precision=_TYPES.get(precision, precision),
        primitive=text("primitiveType"),
        origins=tuple(filter(None, origins.split(","))),
    )
