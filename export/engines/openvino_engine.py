"""Engines for OpenVINO on the CPU: a graph in the types that were asked for, and what became of it.

An engine is an ONNX file. OpenVINO compiles it for the CPU on which it is loaded, and may compute it
in other types than the graph has, without an error. So it is compiled here once, and the type of
each product is read back.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, shape_inference

from drexperts.export.engines.inspection import SEEN
from drexperts.export.engines.source_graph import engine_graph, source_engine, source_graph
from drexperts.export.graph.bfloat16_blocks import bfloat16_blocks
from drexperts.export.graph.openvino_graph import openvino_graph
from drexperts.export.graph.openvino_precision import (
    NEEDED,
    OpenvinoInt8,
    has_bfloat16,
    searched_choices,
    with_rest,
)
from drexperts.export.graph.precision import PrecisionChoice
from drexperts.model.checkpoint import Checkpoint
from drexperts.runtime.cpus import cpu_capability
from drexperts.runtime.decoding import Source
from drexperts.runtime.errors import BuildError, UserError
from drexperts.runtime.manifest import Engine, Manifest
from drexperts.runtime.openvino_library import openvino_version
from drexperts.runtime.openvino_products import Layer
from drexperts.runtime.openvino_session import OpenvinoSession
from drexperts.runtime.progress import Progress
from drexperts.runtime.wording import remedy

PRODUCTS = ("MatMul", "Gemm", "Conv")
_TYPES = {TensorProto.FLOAT: "fp32", TensorProto.BFLOAT16: "bf16"}


def precision_for_openvino(precision: str | None, source: Engine) -> str:
    """The precision to build in: what was asked for, or the fastest that needs no calibration."""
    if precision is not None:
        return precision
    if source.precision == "int8":
        return "int8"
    return "bf16" if has_bfloat16() else "fp32"


def parts_for_openvino(precision: str, source: Engine) -> tuple[str, ...]:
    """What a precision needs photographs for, beside the proof: arguments of `divided`."""
    return () if precision == source.precision else NEEDED.get(precision, ())


def choices_for_openvino(
    bundle: Path,
    manifest: Manifest,
    precision: str,
    checkpoint: Checkpoint | None,
    parts: Mapping[str, Sequence[Source]],
    progress: Progress,
) -> Iterator[PrecisionChoice]:
    """The graph in a precision of "fp32", "bf16" or "int8"; of "auto" the fastest, then safer ones.

    Args:
        parts: the photographs of each of `parts_for_openvino`.

    Raises:
        UserError: the precision needs the checkpoint, or a type that this CPU does not have.
    """
    source = source_engine(bundle, manifest)
    if precision == "bf16" and not has_bfloat16():
        raise UserError(
            f"this CPU ({cpu_capability()}) multiplies no bfloat16, and would compute the engine in "
            "float32: build it in fp32 or int8, or on a CPU with AMX or AVX512_BF16"
        )
    if precision == source.precision == "int8":
        graph = with_rest(openvino_graph(source_graph(bundle, source)))
        yield PrecisionChoice(graph, "int8", source.islands, rest=_rest())
    elif precision in ("fp32", "bf16"):
        graph = openvino_graph(engine_graph(bundle, manifest, "fp32", True, checkpoint))
        yield PrecisionChoice(bfloat16_blocks(graph) if precision == "bf16" else graph, precision)
    elif checkpoint is None:
        raise UserError(
            f"{precision} is calibrated on photographs by the model: pass "
            f"{remedy('--checkpoint FILE', 'checkpoint=')}, the one that the bundle was exported from"
        )
    else:
        shape = {"maps": "maps" in manifest.outputs, "max_batch": source.max_batch}
        if precision == "auto":
            yield from searched_choices(checkpoint, parts, **shape, progress=progress)
            return
        progress("calibrating on photographs")
        model = OpenvinoInt8(checkpoint, parts["calibration"], **shape)
        yield PrecisionChoice(model.graph(()), "int8", rest=model.rest)


def _rest() -> str:
    return "bf16" if has_bfloat16() else "fp32"


def compiled_products(graph: onnx.ModelProto, path: Path, max_batch: int) -> dict[str, int]:
    """Compile the graph in a file, and count its products of each type.

    Raises:
        BuildError: OpenVINO computes a product in another type than the graph has.
        BundleError, MissingDependencyError: it cannot be compiled here.
    """
    session = OpenvinoSession(path, max_batch=max_batch)
    try:
        check_types(asked_types(graph), session.layers())
        return session.products
    finally:
        session.close()


def asked_types(graph: onnx.ModelProto) -> dict[tuple[str, ...], str]:
    """The type of each product, by the names under which a compiler may keep it.

    Those are its own, and that of the node that adds the bias, which is fused with it.
    """
    # Of shapes alone, which takes no copy of the weights.
    inferred = shape_inference.infer_shapes(_without_weights(graph), strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    dequantised = {n.output[0] for n in graph.graph.node if n.op_type == "DequantizeLinear"}
    readers = {name: n for n in graph.graph.node if n.op_type == "Add" for name in n.input}
    found = {}
    for node in graph.graph.node:
        if node.op_type in PRODUCTS:
            fused = readers.get(node.output[0])
            names = (node.name,) if fused is None else (node.name, fused.name)
            kind = _TYPES[kinds.get(node.output[0], TensorProto.FLOAT)]
            found[names] = "int8" if node.input[1] in dequantised else kind
    return found


def check_types(asked: Mapping[tuple[str, ...], str], layers: Sequence[Layer]) -> None:
    """Compare the products of a compiled model with those of its graph.

    Raises BuildError if one has another type, or if too few of them are found to tell.
    """
    by_origin = {origin: layer.precision for layer in layers for origin in layer.origins}
    found = {
        names: by_origin[name] for names in asked for name in names if name in by_origin
    }
    if len(found) < SEEN * len(asked):
        raise BuildError(
            f"OpenVINO {openvino_version()} names only {len(found)} of {len(asked)} products in what "
            "it compiled, so their types cannot be read back: use a version that this drexperts was "
            "tested with, 2026.4"
        )
    wrong = {names[-1]: kind for names, kind in found.items() if kind != asked[names]}
    if wrong:
        name, kind = next(iter(wrong.items()))
        raise BuildError(
            f"OpenVINO computes {len(wrong)} of {len(found)} products in another type than the graph "
            f"has, such as {name} in {kind}: this CPU ({cpu_capability()}) may lack the type that was "
            "asked for; build in fp32, or on a CPU that has it"
        )
