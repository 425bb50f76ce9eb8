"""Which part of the model each node of its ONNX graph belongs to.

A graph changes on its way to an engine: weights are reordered, cast or quantised, nodes are fused
and renamed. The data flow stays, and so do the modules' names inside most weights' names. So a node
that reads a weight with a known module belongs to that module, and the others follow the flow:

    prepare -> encoder    -> head
            -> controller ->
"""

import importlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from drexperts.runtime.errors import MissingDependencyError
from drexperts.runtime.installing import install_command

if TYPE_CHECKING:
    import onnx

PREPARE, ENCODER, CONTROLLER, HEAD = "prepare", "encoder", "controller", "head"
OTHER = "other"  # serves several parts, or is not known

_PART_OF_MODULE = {
    "encoder": ENCODER,
    "controller_input": PREPARE,
    "controller": CONTROLLER,
    "saliency": HEAD,
    "weighting": HEAD,
    "score": HEAD,
}
# A quantised weight is named as its float original with a suffix; a cast one also has a prefix, or
# suffixes where it is for OpenVINO.
_WEIGHT = re.compile(rf"model\.(({'|'.join(_PART_OF_MODULE)})\.[\w.]+)")
_PARAMETER = re.compile(r"(\.(weight|bias)\w*(\.(transposed|bfloat16|floats))*|_quantized|_scale)$")
# A tower begins with a convolution, whose weights lose their name where they are reordered.
_ENTRY = re.compile("Conv|Reorder")


class PlacedNode(NamedTuple):
    """A node of a graph.

    node: its name in the graph, or the name of its first output
    layer: the module whose weights it reads, such as "encoder.blocks.0.fc1", else as `node`
    part: "prepare", "encoder", "controller", "head" or "other"
    """

    node: str
    layer: str
    op: str
    part: str


def placed_nodes(graph: "onnx.GraphProto") -> list[PlacedNode]:
    """The part of each node of a graph, in the graph's order."""
    modules = _modules(graph)
    read = [[modules[name] for name in node.input if name in modules] for node in graph.node]
    named = [_last(map(_part_of_module, each)) for each in read]
    ahead = _ahead(graph, named)
    made = dict.fromkeys({tensor.name for tensor in graph.input} - modules.keys(), PREPARE)
    placed = []
    for node, each, part_named, following in zip(graph.node, read, named, ahead, strict=True):
        behind = {made[name] for name in node.input if name in made}
        part = _part(node.op_type, behind, part_named, following)
        if behind:
            made |= dict.fromkeys(node.output, part)
        name = node.name or node.output[0]
        layer = next((module for module in each if _part_of_module(module) == part), name)
        placed.append(PlacedNode(name, layer, node.op_type, part))
    return placed


def part_by_name(model: "onnx.ModelProto") -> dict[str, str]:
    """The part of each node, also inside functions, by the name that TensorRT's parser gives it."""
    bodies = {(each.domain, each.name): each.node for each in model.functions}
    parts = {}
    for node, placed in zip(model.graph.node, placed_nodes(model.graph), strict=True):
        for each in (node, *bodies.get((node.domain, node.op_type), ())):
            parts[each.name or f"node_of_{each.output[0]}"] = placed.part
    return parts


def load_graph(path: Path) -> "onnx.ModelProto":
    """A model, without weights that are stored in another file.

    Raises MissingDependencyError where onnx is not installed.
    """
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError as cause:
        raise MissingDependencyError(
            f"profiling reads the graph with onnx: {install_command('export')}"
        ) from cause
    return onnx.load(path, load_external_data=False)


def _modules(graph: "onnx.GraphProto") -> dict[str, str]:
    """The module of each weight that has one in its name.

    Single numbers are left out: equal ones, such as zero points, are stored once under any of their
    names.
    """
    found = {}
    for weight in graph.initializer:
        module = _WEIGHT.search(weight.name)
        if module and math.prod(weight.dims) > 1 and not weight.name.endswith("_zero_point"):
            found[weight.name] = _PARAMETER.sub("", module[1])
    constant = {"", *(weight.name for weight in graph.initializer)}
    for node in graph.node:
        if constant.issuperset(node.input):  # a weight that is cast or dequantised at each call
            constant |= set(node.output)
            inherited = [found[name] for name in node.input if name in found]
            found |= dict.fromkeys(node.output if inherited else (), *inherited[:1])
    return found


def _part_of_module(module: str) -> str:
    return _PART_OF_MODULE[module.split(".")[0]]


def _last(parts: Iterable[str]) -> str | None:
    """The part that comes last in the data flow."""
    return max(parts, key=(PREPARE, ENCODER, CONTROLLER, HEAD).index, default=None)


def _ahead(graph: "onnx.GraphProto", named: list[str | None]) -> list[set[str]]:
    """For each node, the parts that are named next on the paths that lead from it."""
    wanted: dict[str, set[str]] = {}
    ahead = []
    for node, part in zip(reversed(graph.node), reversed(named), strict=True):
        following: set[str] = set().union(*(wanted.get(name, ()) for name in node.output))
        ahead.append(following)
        for name in filter(None, node.input):
            wanted.setdefault(name, set()).update(following if part is None else {part})
    return ahead[::-1]


def _part(op: str, behind: set[str], named: str | None, ahead: set[str]) -> str:
    """The part of one node.

    behind: the parts that its inputs come from; none where they are constants
    named: the part whose weights it reads. Equal weights of two modules are stored once, under the
        name of the first, so a name that contradicts the flow does not count.
    ahead: the parts that are named next on the paths that lead from it
    """
    reached = behind - {PREPARE}
    if named is not None and (named == HEAD or reached <= {named}):
        return named
    if not reached:
        serves = len(ahead) == 1 and (not behind or _ENTRY.search(op))
        return next(iter(ahead)) if serves else PREPARE if behind else OTHER
    if len(reached) > 1 or ahead == {HEAD}:
        return HEAD
    return reached.pop()
