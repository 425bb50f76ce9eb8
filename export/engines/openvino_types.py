"""The types of the products that OpenVINO computes, compared with those of the graph.

OpenVINO compiles an engine's ONNX file for the CPU on which it is loaded, and may compute it in
other types than the graph has, without an error: in float32 where there is no bfloat16.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from drexperts.export.engines.inspection import PRODUCTS, SEEN, expectation_from_graph
from drexperts.runtime.cpus import cpu_capability
from drexperts.runtime.errors import BuildError
from drexperts.runtime.openvino_library import openvino_version
from drexperts.runtime.openvino_products import Layer, layers
from drexperts.runtime.openvino_session import OpenvinoSession


def compiled_products(graph: onnx.ModelProto, path: Path, max_batch: int) -> dict[str, int]:
    """Compile the graph in a file, and count its products of each type.

    Raises:
        BuildError: OpenVINO computes a product in another type than the graph has.
        BundleError, MissingDependencyError: it cannot be compiled here.
    """
    session = OpenvinoSession(path, max_batch=max_batch)
    try:
        check_types(asked_types(graph), layers(session.compiled))
        return session.products
    finally:
        session.close()


def asked_types(graph: onnx.ModelProto) -> dict[tuple[str, ...], str]:
    """The type of each product, by the names under which a compiler may keep it.

    Those are its own, and that of the node that adds the bias, which is fused with it.
    """
    floats = expectation_from_graph(graph).products
    dequantised = {n.output[0] for n in graph.graph.node if n.op_type == "DequantizeLinear"}
    adding = {name: n.name for n in graph.graph.node if n.op_type == "Add" for name in n.input}
    return {
        (node.name, adding.get(node.output[0], node.name)): "int8"
        if node.input[1] in dequantised
        else floats[node.name]
        for node in graph.graph.node
        if node.op_type in PRODUCTS
    }


def check_types(asked: Mapping[tuple[str, ...], str], compiled: Sequence[Layer]) -> None:
    """Compare the products of a compiled model with those of its graph.

    Raises BuildError if one has another type, or if too few of them are found to tell.
    """
    by_origin = {origin: layer.precision for layer in compiled for origin in layer.origins}
    found = {names: by_origin[name] for names in asked for name in names if name in by_origin}
    if len(found) < SEEN * len(asked):
        raise BuildError(
            f"OpenVINO {openvino_version()} names {len(found)} of {len(asked)} products in what it "
            "compiled, so their types cannot be read back: install a version that this drexperts "
            "was tested with, 2026.4"
        )
    wrong = {names[-1]: kind for names, kind in found.items() if kind != asked[names]}
    if wrong:
        name, kind = next(iter(wrong.items()))
        raise BuildError(
            f"OpenVINO computes {len(wrong)} of {len(found)} products in another type than the "
            f"graph has, such as {name} in {kind}: this CPU ({cpu_capability()}) may lack the type "
            "that was asked for; build in fp32, or on a CPU that has it"
        )
