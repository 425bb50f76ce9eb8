"""What is in a built plan, read back and compared with the graph it was built from.

A library may silently build something other than the graph asks for: TensorRT 11 with a precision
flag of TensorRT 10 builds float32. Three sources tell what it did:

    the parsed network      layers and their types, before the build, of both libraries
    the plan's own bytes    TensorRT for RTX: the program that its runtime compiles is text in it
    the engine inspector    NVIDIA's TensorRT, on the GPU that built it: a JSON document

Each product of the graph (MatMul, Gemm, Conv) is compared, by the name of its ONNX node. The layout
of the plan is undocumented and was inferred from plans of TensorRT for RTX 1.7. The inspector's
document is parsed as NVIDIA documents it; that has not been tried on a real one.
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, inliner, shape_inference

from drexperts.runtime.errors import PlanError, UnreadablePlanError

PRODUCTS = ("MatMul", "Gemm", "Conv")

# The share of the graph's products that must be found in a plan for it to count as read. A compiler
# may turn a thin product into a sum, or compute a product of constants beforehand: at most one
# product of the full-size model, a quarter of a tiny model's for batches of one.
SEEN = 0.7
# Bytes of weights in a plan as a share of the graph's. Some weights are stored in two orders (10 %
# of a tiny model's, none of a full-size one's); a float16 graph built as float32 has 1.88.
WEIGHTS = (0.9, 1.5)
CONSTANTS = 2**16  # bytes that shapes and alignment may add

UNKNOWN = "unknown"  # a type that a source does not state

_TYPES = {"half": "fp16", "float16": "fp16", "float": "fp32", "bfloat16": "bf16"}
_JSON_TYPES = ("fp32", "fp16", "bf16", "uint8", "int8", "int32", "int64", "bool")

_HEADER = 112  # bytes, with the two entries of the table of sections
_STATEMENT = re.compile(rb"^  (\w+)=\{ (.*)\}$", re.MULTILINE)
_NAME = re.compile(rb'\bname=(?:"([^"]*)"|(\S+))')
_TYPE = re.compile(rb"\btype=(\w+)")
_OPERANDS = re.compile(rb"\b(?:input|input_args)=\{([^}]*)\}")
_LAYERS = re.compile(rb'\blayers="([^"]*)"')
_TARGETS = re.compile(rb"^  accelerators=\{((?:sm\d+ )+)\}", re.MULTILINE)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class Inspection:
    """What a plan states about itself.

    Attributes:
        version: of the library that built it, "1.7.1.116"; None if the source does not state it.
        targets: compute capabilities such as "8.9"; empty if the source does not state them.
        bindings: the types of its inputs and outputs, such as "fp32" or "uint8", by name.
        products: the types that each product reads, by the name of its ONNX node.
        fused_attention: the number of kernels that are a whole attention.
        weights: their size in bytes; None if the source does not state it.
    """

    version: str | None
    targets: tuple[str, ...]
    bindings: dict[str, str]
    products: dict[str, frozenset[str]]
    fused_attention: int
    weights: int | None


@dataclass(frozen=True)
class Expectation:
    """What a graph asks of a plan, as in `Inspection`, with one type for each product."""

    bindings: dict[str, str]
    products: dict[str, str]
    weights: int


def expectation_from_graph(proto: onnx.ModelProto, functions: bool = True) -> Expectation:
    """What a graph asks for.

    Args:
        functions: include the products in function bodies, which a plugin would replace.
    """
    light = _without_payloads(proto)
    expected = _typed_products(light)
    if not functions:
        own = {_label(node) for node in proto.graph.node}
        expected = {name: kind for name, kind in expected.items() if name in own}
    bindings = {
        value.name: _onnx_type(value.type.tensor_type.elem_type)
        for value in (*proto.graph.input, *proto.graph.output)
    }
    weights = sum(_bytes_of(initializer) for initializer in proto.graph.initializer)
    return Expectation(bindings, expected, weights)


def check(found: Inspection, expected: Expectation, stripped: bool = False) -> None:
    """Compare a plan with its graph.

    Raises:
        UnreadablePlanError: too few of the graph's products are found in the plan to compare them.
        PlanError: the plan has other types, inputs, outputs or a size of weights than the graph.
    """
    if not _agree(found.bindings, expected.bindings):
        raise PlanError(
            f"the engine's inputs and outputs are {found.bindings}, the graph's are "
            f"{expected.bindings}: build it again from this graph"
        )
    check_products(found.products, expected.products)
    if found.weights is not None and not stripped:
        least, most = (share * expected.weights for share in WEIGHTS)
        if not least <= found.weights <= most + CONSTANTS:
            raise PlanError(
                f"the engine holds {found.weights} bytes of weights, the graph {expected.weights}: "
                "it was built from another graph or in another precision; build it again"
            )


def check_products(found: Mapping[str, Iterable[str]], expected: Mapping[str, str]) -> None:
    """Compare the types that products read with the graph's; raises as `check`."""
    wrong = {
        name: "/".join(sorted(found[name]))
        for name, kind in expected.items()
        if name in found and kind not in found[name]
    }
    if wrong:
        name, kind = next(iter(wrong.items()))
        raise PlanError(
            f"{len(wrong)} of {len(expected)} products are not computed in the graph's type: "
            f"{name} is in {kind}, the graph has it in {expected[name]}. The engine is not used; "
            "build it with another version of the library, and report this"
        )
    seen = sum(name in found for name in expected)
    if seen < SEEN * len(expected):
        raise UnreadablePlanError(
            f"only {seen} of the graph's {len(expected)} products are found in it"
        )


def products_of_network(library: Any, network: Any) -> dict[str, frozenset[str]]:
    """The types that each product reads in a network that the library's parser made.

    Args:
        library: the module, `tensorrt` or `tensorrt_rtx`.
        network: its INetworkDefinition, strongly typed.
    """
    kinds = (library.LayerType.MATRIX_MULTIPLY, library.LayerType.CONVOLUTION)
    products: dict[str, frozenset[str]] = {}
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type in kinds:
            read = [layer.get_input(i) for i in range(layer.num_inputs)]
            types = (_type_name(tensor.dtype.name) for tensor in read if tensor)
            _record(products, _onnx_names(layer.metadata), types)
    return products


def inspection_from_plan(plan: bytes) -> Inspection:
    """What a plan of TensorRT for RTX states about itself; needs neither GPU nor library.

    Raises:
        UnreadablePlanError: its layout is unknown.
        PlanError: it is truncated.
    """
    engine, weights = _sections(plan)
    main, *parts = re.split(rb"header \{\n", engine)[1:] or [b""]
    if not (targets := _TARGETS.search(main)):
        raise UnreadablePlanError("its engine is not the text that TensorRT for RTX 1.7 writes")
    products: dict[str, frozenset[str]] = {}
    attention = 0
    for program in (main, *parts):
        found, fused = _products_of_program(program)
        attention += fused
        for name, types in found.items():
            _record(products, [name], types)
    return Inspection(
        version=".".join(map(str, plan[24:28])),
        targets=tuple(f"{sm[2:-1]}.{sm[-1]}" for sm in targets[1].decode().split()),
        bindings=_bindings_of_program(main),
        products=products,
        fused_attention=attention,
        weights=weights,
    )


def inspection_from_json(text: str) -> Inspection:
    """What TensorRT's engine inspector states about a plan built with detailed verbosity.

    It reads the document of TensorRT 10 ("Bindings", "Format/Datatype") and of 11 ("I/O Tensors",
    with format and datatype apart).

    Raises:
        UnreadablePlanError: it is not such a document.
    """
    try:
        document = json.loads(text)
        layers = document["Layers"]
        bindings = document["I/O Tensors"] if "I/O Tensors" in document else document["Bindings"]
        products: dict[str, frozenset[str]] = {}
        for layer in layers:
            read = layer.get("Inputs", [])
            _record(products, _onnx_names(layer.get("Metadata", "")), map(_json_type, read))
        named = _json_bindings(bindings, layers)
        fused = sum("mha" in layer.get("TacticName", "").lower() for layer in layers)
    except (ValueError, TypeError, KeyError, AttributeError) as cause:
        raise UnreadablePlanError(
            f"the engine inspector's document is not understood: {type(cause).__name__} {cause}"
        ) from cause
    return Inspection(None, (), named, products, fused, None)


def _agree(found: Mapping[str, str], expected: Mapping[str, str]) -> bool:
    """Whether the names are the same, and the types as far as they are known."""
    return found.keys() == expected.keys() and all(
        kind in (UNKNOWN, expected[name]) for name, kind in found.items()
    )


def _without_payloads(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its weights as inputs, small enough for type inference."""
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    light.graph.name = proto.graph.name
    light.graph.node.extend(proto.graph.node)
    # Inlining renames nodes but keeps their doc strings.
    for part in (light.graph, *light.functions):
        for node in part.node:
            node.doc_string = _label(node)
    light.graph.input.extend(proto.graph.input)
    light.graph.output.extend(proto.graph.output)
    for each in proto.graph.initializer:
        value = onnx.helper.make_tensor_value_info(each.name, each.data_type, list(each.dims))
        light.graph.input.append(value)
    return light


def _typed_products(light: onnx.ModelProto) -> dict[str, str]:
    inlined = inliner.inline_local_functions(light) if light.functions else light
    graph = shape_inference.infer_shapes(inlined).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    return {
        node.doc_string: _onnx_type(types[node.input[0]])
        for node in graph.node
        if node.op_type in PRODUCTS
    }


def _label(node: onnx.NodeProto) -> str:
    """The name that the libraries' parser gives a node."""
    return node.name or f"node_of_{node.output[0]}"


def _onnx_type(elem_type: int) -> str:
    name: str = TensorProto.DataType.Name(elem_type)
    return _type_name(name)


def _bytes_of(initializer: TensorProto) -> int:
    size = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type).itemsize
    return int(size * math.prod(initializer.dims))


def _type_name(name: str) -> str:
    """Our name of a type that others call "HALF" or "FLOAT16"."""
    return _TYPES.get(name.lower(), name.lower())


def _record(
    products: dict[str, frozenset[str]], names: Sequence[str], types: Iterable[str]
) -> None:
    """Add the known types, if there are any, to each of the products."""
    if known := frozenset(types) - {UNKNOWN}:
        for name in names:
            products[name] = products.get(name, frozenset()) | known


def _onnx_names(metadata: str) -> list[str]:
    """The ONNX nodes that a layer implements; a node in a function body has its own name."""
    return [name.partition(" | ")[0] for name in _ONNX_LAYER.findall(metadata)]


def _sections(plan: bytes) -> tuple[bytes, int]:
    """The engine of a plan, and the size of its weights in bytes."""
    if plan[:4] != b"vtrt" or len(plan) < _HEADER:
        raise UnreadablePlanError("it does not begin as a plan of TensorRT for RTX does")
    (size,) = struct.unpack_from("<Q", plan, 16)
    if size != len(plan):
        raise PlanError(f"the plan is {len(plan)} bytes of {size}: it is cut short, build it again")
    (tag, offset, length), (weights_tag, start, weights) = (
        struct.unpack_from("<8sQQ", plan, at) for at in (64, 88)
    )
    if (tag[:4], weights_tag[:4]) != (b"NGNE", b"THGW"):
        raise UnreadablePlanError("its table of sections is not the one of TensorRT for RTX 1.7")
    if max(offset + length, start + weights) > len(plan):
        raise PlanError(
            "a section of the plan extends beyond its end: it is damaged, build it again"
        )
    return plan[offset : offset + length], weights


def _products_of_program(program: bytes) -> tuple[dict[str, frozenset[str]], int]:
    """The types that products read, by ONNX node, and the number of whole attentions."""
    types: dict[bytes, str] = {}
    products: dict[str, frozenset[str]] = {}
    attention = 0
    for kind, body in _STATEMENT.findall(program):
        name = _first(_NAME, body)
        if kind in (b"tensor", b"sub_tensor"):
            types[name] = _type_name(_first(_TYPE, body).decode())
        elif kind in (b"fully_connected", b"corrltn") or name.startswith(b"_gemm_mha"):
            attention += kind == b"function"
            read = re.findall(rb'"([^"]*)"', _first(_OPERANDS, body))[:2]
            names = _onnx_names(_first(_LAYERS, body).decode(errors="replace"))
            _record(products, names, (types.get(operand, UNKNOWN) for operand in read))
    return products, attention


def _bindings_of_program(program: bytes) -> dict[str, str]:
    """The types of a program's inputs and outputs, whose names it ends in ".1"."""
    types = {
        _first(_NAME, body): _first(_TYPE, body)
        for kind, body in _STATEMENT.findall(program)
        if kind in (b"tensor", b"sub_tensor")
    }
    listed = [body for kind, body in _STATEMENT.findall(program) if kind in (b"inputs", b"outputs")]
    names = re.findall(rb'"([^"]*)"', b" ".join(listed))
    return {
        name.rpartition(b".")[0].decode(): _type_name(types[name].decode())
        for name in names
        if name in types and not name.startswith(b"{")
    }


def _first(pattern: re.Pattern[bytes], text: bytes) -> bytes:
    """The first group of the pattern's first match; empty if there is none."""
    found = pattern.search(text)
    return b"" if found is None else next((group for group in found.groups() if group), b"")


def _json_bindings(entries: list[Any], layers: list[dict[str, Any]]) -> dict[str, str]:
    """TensorRT 11 describes inputs and outputs; 10 names them, and layers state their types."""
    if all(isinstance(entry, dict) for entry in entries):
        return {entry["Name"]: _json_type(entry) for entry in entries}
    types = {
        tensor.get("Name"): _json_type(tensor)
        for layer in layers
        for tensor in (*layer.get("Inputs", []), *layer.get("Outputs", []))
    }
    return {name: types.get(name, UNKNOWN) for name in entries}


def _json_type(tensor: dict[str, Any]) -> str:
    """The type in "Half", "BFloat16" or "Row major linear FP16 format"."""
    keys = ("DataType", "Datatype", "Format/Datatype", "Type")
    text = next((tensor[key] for key in keys if key in tensor), "")
    named = (_type_name(word) for word in re.findall(r"\w+", text))
    return next((name for name in named if name in _JSON_TYPES), UNKNOWN)
