"""Where an engine leaves the reference: the first tensor whose error rounding does not explain.

The reference is the engine's own graph in float32 through ONNX Runtime on the CPU. An engine that
outputs every tensor is a different engine: a builder cannot fuse what it must output, and the fault
of a fused kernel disappears. So the first pass outputs only tensors that several nodes read, which
a builder has to write to memory anyway. The second pass outputs every tensor, a window at a time,
up to the first that is wrong. If none is, although one was in the first pass, a fused kernel is at
fault.

The tests execute the path through ONNX Runtime. Parsing and building through TensorRT were executed
with TensorRT for RTX; running the engine needs a GPU, and was not executed.
"""

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from drexperts import runtime
from drexperts.export.engines.source_graph import engine_graph
from drexperts.export.graph.bfloat16_blocks import bfloat16_blocks
from drexperts.export.graph.openvino_graph import openvino_graph
from drexperts.export.proof.photographs import Images, proof_images
from drexperts.export.proof.prove import check_same_weights, loaded_checkpoint
from drexperts.model.checkpoint import Checkpoint
from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import MissingDependencyError, UserError
from drexperts.runtime.installing import install_command
from drexperts.runtime.manifest import Engine, Manifest, read_manifest
from drexperts.runtime.openvino_session import compiled_model, settings_of
from drexperts.runtime.preprocess import crops_from_image
from drexperts.runtime.progress import SILENT, Progress

Pixels = NDArray[np.uint8]
Arrays = dict[str, NDArray[Any]]
# Runs a graph on pixels [B, 3, H, W] and returns all its outputs by name.
Execute = Callable[[onnx.ModelProto, Pixels], Arrays]

HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}

# The largest error that rounding explains, and the largest multiple of the worst input error. Over
# every tensor of random models, full-size and tiny, the worst errors were 5e-5, 1.2e-2 and 0.24; no
# tensor above 1e-2 in float16 had more than twice its inputs' error.
LIMITS = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 0.3}
JUMP = 4.0

WINDOW = 128  # tensors output at a time: half a GB per image at full size, for both graphs
WIDE = ".float32"
CROPS = 2  # that the graphs are run on


@dataclass(frozen=True)
class TensorError:
    """How far one tensor of the engine is from the reference's.

    error: the largest |difference| / (|reference| + its rms); infinite if one is not finite
    cosine: the cosine similarity of the two tensors
    inputs: the errors of the nearest tensors before it that were output as well
    """

    tensor: str
    op: str
    error: float
    cosine: float
    inputs: dict[str, float]


@dataclass(frozen=True)
class Divergence:
    """The first tensor that rounding does not explain.

    limit: the precision's limit, or JUMP times the worst error of its inputs, whichever is more
    hidden: no tensor up to it was wrong once all were output: a fused kernel between `inputs` and
        `tensor` is at fault
    """

    tensor: str
    op: str
    error: float
    limit: float
    inputs: dict[str, float]
    hidden: bool


@dataclass(frozen=True)
class LayerReport:
    """`first` is None if no tensor diverges; `profile` has the tensors output, in graph order."""

    first: Divergence | None
    profile: tuple[TensorError, ...]


def bundle_layers(
    bundle: Path,
    checkpoint: Path | None = None,
    images: Images = None,
    progress: Progress = SILENT,
) -> Iterator[tuple[Engine, LayerReport]]:
    """`first_divergence` of each engine of a bundle that runs here and can output its tensors.

    Raises:
        UserError: as `check_comparable`; the checkpoint has other weights than the bundle; an
            engine has another precision than its graph, and there is no checkpoint; else as
            `first_divergence`.
    """
    manifest = read_manifest(bundle)
    check_comparable(manifest)
    loaded = loaded_checkpoint(checkpoint)
    if loaded is not None:
        check_same_weights(bundle, manifest, loaded, images)
    picture = proof_images(images)[0]
    pixels = crops_from_image(decode(picture), manifest.preprocessing).pixels[:CROPS]
    for engine in _shown_here(manifest):
        if engine.plan is not None and engine.plan.plugin_layers:
            # Otherwise the parser would use the function body, and that would be examined.
            plugin = importlib.import_module("drexperts.export.engines.tensorrt_plugin")
            plugin.register(engine.plan.capabilities[0])
        proto = _graph_of(engine, bundle, manifest, loaded)
        execute = EXECUTORS[engine.backend]
        yield engine, first_divergence(proto, pixels, engine.precision, execute, progress)


def _graph_of(
    engine: Engine, bundle: Path, manifest: Manifest, checkpoint: Checkpoint | None
) -> onnx.ModelProto:
    """The graph that an engine was built from."""
    if engine.backend != "openvino":
        fused = engine.plan is None or engine.plan.fused_attention
        return engine_graph(bundle, manifest, engine.precision, fused, checkpoint)
    graph = openvino_graph(engine_graph(bundle, manifest, "fp32", True, checkpoint))
    if engine.precision == "bf16":
        graph = bfloat16_blocks(graph, engine.islands)
    return onnx.shape_inference.infer_shapes(graph)  # the types of what is to be output


def check_comparable(manifest: Manifest) -> None:
    """Raises UserError for an engine that has no float32 twin, such as an int8 one."""
    for engine in _shown_here(manifest):
        if engine.precision not in LIMITS:
            raise UserError(
                f"{engine.file} is in {engine.precision}, and layers are compared in "
                f"{', '.join(LIMITS)} only: export the checkpoint in fp32, and look into the "
                "layers of that bundle"
            )


def _shown_here(manifest: Manifest) -> list[Engine]:
    """The engines that run here and can output their tensors."""
    return [
        engine
        for engine in manifest.engines
        if engine.backend in EXECUTORS and runtime.obstacle(engine) is None
    ]


def first_divergence(
    proto: onnx.ModelProto,
    pixels: Pixels,
    precision: str,
    execute: Execute,
    progress: Progress = SILENT,
) -> LayerReport:
    """Run an engine's graph beside its float32 twin and find where the two diverge.

    Args:
        proto: the graph that the engine was built from.
        pixels: uint8 [B, 3, H, W]; one or two images are enough.
        precision: "fp32", "fp16" or "bf16", that of the transformer blocks.
        execute: the engine, one of `EXECUTORS`.

    Raises:
        MissingDependencyError: polygraphy is not installed.
        UserError: the engine cannot be built or run on this machine.
    """
    graph, twin = DataFlow(proto), float32_twin(proto)
    rows: dict[str, TensorError] = {}

    def look(tensors: list[str], shown: list[str], hidden: bool) -> Divergence | None:
        """The first of `tensors` that diverges when `shown` are outputs."""
        expected = through_onnx_runtime(showing(twin, shown), pixels)
        got = execute(showing(proto, shown), pixels)
        rows.update((row.tensor, row) for row in measured(graph, shown, got, expected))
        return _first([rows[name] for name in tensors], precision, hidden)

    progress("layers: first pass")
    shared = graph.shared()
    found = suspect = look(shared, shared, hidden=True)
    names = list(graph.maker)
    if suspect is not None:
        names = names[: names.index(suspect.tensor) + 1]
    for start in range(0, len(names), WINDOW):
        progress(f"layers: tensor {start + 1} of {len(names)}")
        window = names[start : start + WINDOW]
        found = look(window, graph.ordered({*shared, *window}), hidden=False)
        if found is not None:
            break
    profile = tuple(rows[name] for name in graph.ordered(set(rows)))
    return LayerReport(found or suspect, profile)


def _first(rows: Iterable[TensorError], precision: str, hidden: bool) -> Divergence | None:
    """The first error above the limit that is also far above the errors of its inputs."""
    for row in rows:
        limit = max(LIMITS[precision], JUMP * max(row.inputs.values(), default=0.0))
        if row.error > limit:
            return Divergence(row.tensor, row.op, row.error, limit, row.inputs, hidden)
    return None


class DataFlow:
    """Which float tensors of a graph are computed from which."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = proto.graph
        known = (*graph.value_info, *graph.output)
        kinds = {value.name: value.type.tensor_type.elem_type for value in known}
        floats = {name for name, kind in kinds.items() if kind in {*HALVES, TensorProto.FLOAT}}
        self.maker = {name: node for node in graph.node for name in node.output if name in floats}
        self._readers = Counter(name for node in graph.node for name in set(node.input))
        self._outputs = {output.name for output in graph.output}

    def shared(self) -> list[str]:
        """Tensors that several nodes read, and the graph's outputs, in graph order."""
        return [name for name in self.maker if self._readers[name] > 1 or name in self._outputs]

    def ordered(self, names: set[str]) -> list[str]:
        return [name for name in self.maker if name in names]

    def nearest(self, tensor: str, shown: set[str]) -> list[str]:
        """The shown tensors that a tensor depends on without another shown one between."""
        found, seen = set(), set()
        waiting = list(self.maker[tensor].input)
        while waiting:
            name = waiting.pop()
            if name in shown:
                found.add(name)
            elif name in self.maker and name not in seen:
                seen.add(name)
                waiting += self.maker[name].input
        return self.ordered(found)


def measured(
    graph: DataFlow, tensors: Sequence[str], got: Arrays, expected: Arrays
) -> list[TensorError]:
    """The errors of tensors in graph order, each with those of its nearest inputs."""
    errors = {name: relative_error(got[name], expected[name]) for name in tensors}
    shown, rows = set(tensors), []
    for name in tensors:
        inputs = {above: errors[above] for above in graph.nearest(name, shown)}
        angle = cosine(got[name], expected[name])
        rows.append(TensorError(name, graph.maker[name].op_type, errors[name], angle, inputs))
    return rows


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest |difference| / (|expected| + rms of expected); infinite if one is not finite.

    A few values of a transformer are a hundred times the rms: their rounding error is relative to
    themselves, that of all others to the rms.
    """
    a, b = got.astype(np.float64), expected.astype(np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    rms = np.sqrt(np.mean(b**2))
    return float(np.max(np.abs(a - b) / (np.abs(b) + rms + np.finfo(np.float32).tiny)))


def cosine(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """The cosine similarity of two tensors; NaN if one is zero or not finite."""
    a, b = got.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    with np.errstate(all="ignore"):
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def float32_twin(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the same tensor names, and float32 for every float16 and bfloat16."""
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    graph = twin.graph
    for tensor in graph.initializer:
        _widen(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in (*graph.node, *(node for body in twin.functions for node in body.node)):
        _widen_attributes(node)
    return twin


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in HALVES:
        wide = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def _widen_attributes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "to" and attribute.i in HALVES:
            attribute.i = TensorProto.FLOAT
        _widen(attribute.t)


def showing(proto: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy of the graph with more tensors as outputs.

    numpy has no bfloat16, so such a tensor is output in float32 under its name and `WIDE`.
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    graph = shown.graph
    known = {value.name: value for value in graph.value_info}
    for name in tensors:
        if name not in known:  # it is an output already, which has no entry here
            continue
        graph.output.append(known[name])
        if known[name].type.tensor_type.elem_type == TensorProto.BFLOAT16:
            output = graph.output[-1]
            output.name, output.type.tensor_type.elem_type = name + WIDE, TensorProto.FLOAT
            cast = helper.make_node(
                "Cast", [name], [output.name], output.name, to=TensorProto.FLOAT
            )
            graph.node.append(cast)
    return shown


def through_onnx_runtime(proto: onnx.ModelProto, pixels: Pixels) -> Arrays:
    """All outputs of a graph, by ONNX Runtime on the CPU; it has no bfloat16."""
    backend = _polygraphy("backend.onnxrt")
    session = backend.SessionFromOnnx(proto.SerializeToString())
    return _outputs(backend.OnnxrtRunner(session), proto, pixels)


def through_tensorrt(proto: onnx.ModelProto, pixels: Pixels, *, rtx: bool) -> Arrays:
    """All outputs of a graph, by an engine built for this one batch size; needs a GPU.

    rtx: use TensorRT for RTX. Polygraphy keeps the library that a process asked for first.

    Raises:
        UserError: the library did not build or run the engine.
    """
    _polygraphy("config").USE_TENSORRT_RTX = rtx
    backend = _polygraphy("backend.trt")
    network = backend.NetworkFromOnnxBytes(proto.SerializeToString(), strongly_typed=True)
    profile = backend.Profile().add(proto.graph.input[0].name, *[pixels.shape] * 3)
    engine = backend.EngineFromNetwork(network, backend.CreateConfig(profiles=[profile]))
    return _outputs(backend.TrtRunner(engine), proto, pixels)


def through_openvino(proto: onnx.ModelProto, pixels: Pixels) -> Arrays:
    """All outputs of a graph, compiled for this CPU as an engine is."""
    compiled = compiled_model(proto.SerializeToString(), settings_of(None, 1), "the graph")
    arrays = compiled.create_infer_request().infer({0: pixels})
    # By place: one tensor of OpenVINO may have the names of several of the graph's.
    names = [output.name.removesuffix(WIDE) for output in proto.graph.output]
    return {name: np.array(arrays[place]) for place, name in enumerate(names)}


# Runs the graph as an engine of the manifest's backend does.
EXECUTORS: dict[str, Execute] = {
    "onnx": through_onnx_runtime,
    "openvino": through_openvino,
    "tensorrt": partial(through_tensorrt, rtx=False),
    "tensorrt-rtx": partial(through_tensorrt, rtx=True),
}


def _outputs(runner: Any, proto: onnx.ModelProto, pixels: Pixels) -> Arrays:
    """The outputs of a polygraphy runner, copied, since it may reuse its memory."""
    try:
        with runner:
            outputs = runner.infer({proto.graph.input[0].name: pixels})
            return {name.removesuffix(WIDE): np.array(value) for name, value in outputs.items()}
    except _polygraphy("exception").PolygraphyException as error:
        raise UserError(f"the graph with more outputs could not be run: {error}") from error


def _polygraphy(module: str) -> Any:
    """A module of polygraphy, whose messages go to Python's logging and not to stdout."""
    try:
        logger = importlib.import_module("polygraphy.logger").G_LOGGER
        logger.use_python_logging_system, logger.colors = True, False
        return importlib.import_module(f"polygraphy.{module}")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"debugging layers needs polygraphy: {install_command('debug')}"
        ) from error
