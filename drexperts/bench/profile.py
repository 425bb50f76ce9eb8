"""Where the time of a score goes: decoding, cropping, and the layers of the engine."""

import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drexperts.bench.graph_parts import (
    OTHER,
    PREPARE,
    PlacedNode,
    load_graph,
    part_by_name,
    placed_nodes,
)
from drexperts.bench.reports import Layer, Profile
from drexperts.bench.timing import SETTLE, seconds
from drexperts.runtime.compatibility import library
from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import InternalError, UserError
from drexperts.runtime.onnx_library import import_onnxruntime
from drexperts.runtime.onnx_providers import cpu_session, new_options
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.openvino_products import layers
from drexperts.runtime.openvino_session import OpenvinoSession, compiled_model, settings_of
from drexperts.runtime.preprocess import crops_from_image
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.tensorrt_session import TensorrtSession

_WARM_UP = 2  # calls before any is counted
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_NAME = re.compile(r"[\w./:-]+")


class _EngineTimes(NamedTuple):
    """Seconds of every call after the warm-up.

    nodes: the layers, in the order in which they run
    by_layer: [calls, layers]
    called, plain: [calls], of whole calls with the profiler and without
    """

    nodes: list[PlacedNode]
    by_layer: NDArray[np.float64]
    called: NDArray[np.float64]
    plain: NDArray[np.float64]
    method: str


def profile_engine(
    scorer: Scorer, *, rounds: int, image: bytes, progress: Progress = SILENT
) -> Profile:
    """Where the time of one image goes.

    Args:
        rounds: calls that are timed.
        image: the bytes of a file, to decode and crop.

    Raises:
        UserError: fewer than one round, or a provider that does not report its times.
        MissingDependencyError: onnx is not installed.
    """
    if rounds < 1:
        raise UserError(f"a profile takes at least one round, got {rounds}")
    progress("profile: decoding and cropping")
    spec, opened = scorer.preprocessing, decode(image)
    crops = len(crops_from_image(opened, spec).pixels)
    decoding = [seconds(lambda: decode(image)) for _ in range(rounds)]
    cropping = [seconds(lambda: crops_from_image(opened, spec)) for _ in range(rounds)]
    progress("profile: the engine's layers")
    shape = min(crops, scorer.batch), 3, spec.crop, spec.crop
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    engine = _engine_times(scorer, pixels, rounds)
    medians = np.median(engine.by_layer, axis=0).tolist()
    return Profile(
        batch=len(pixels),
        crops=crops,
        decode=tuple(decoding),
        crop=tuple(cropping),
        layers=tuple(
            Layer(node.layer, node.node, node.op, node.part, spent)
            for node, spent in zip(engine.nodes, medians, strict=True)
        ),
        in_layers=tuple(engine.by_layer.sum(axis=1).tolist()),
        called=tuple(engine.called.tolist()),
        plain=tuple(engine.plain.tolist()),
        method=engine.method,
    )


def _engine_times(scorer: Scorer, pixels: NDArray[np.uint8], rounds: int) -> _EngineTimes:
    session = scorer.session
    if isinstance(session, TensorrtSession):
        return _tensorrt_times(scorer, session, pixels, rounds)
    if isinstance(session, OpenvinoSession):
        return _openvino_times(session, pixels, rounds)
    if isinstance(session, OnnxSession) and session.provider == "cpu":
        return _onnx_times(session, pixels, rounds)
    raise UserError(
        f"{session.description} does not report the times of its kernels: profile the bundle on "
        "the CPU, or its TensorRT engine on a GPU"
    )


def _onnx_times(session: OnnxSession, pixels: NDArray[np.uint8], rounds: int) -> _EngineTimes:
    """By ONNX Runtime's profiler, in a second session with the same file and options."""
    runtime = import_onnxruntime()
    options = new_options(runtime, session.threads)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        optimised = Path(folder, "optimised.onnx")
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder, "times"))
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights"
        )
        model = Path(session.path).read_bytes()
        profiled = cpu_session(runtime, model, options, session.path)
        name = profiled.get_inputs()[0].name
        plain, called = _alternately(
            lambda: session.run(pixels), lambda: profiled.run(None, {name: pixels}), rounds
        )
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
        graph = load_graph(optimised).graph
    nodes, by_layer = _kernels(events, placed_nodes(graph), _WARM_UP + rounds)
    method = "Layers are the nodes of ONNX Runtime's optimised graph, by its own profiler."
    return _EngineTimes(nodes, by_layer[_WARM_UP:], called, plain, method)


def _openvino_times(
    session: OpenvinoSession, pixels: NDArray[np.uint8], rounds: int
) -> _EngineTimes:
    """By OpenVINO's counters, in a second compilation of the same file with the same settings."""
    path = Path(session.path)
    settings = settings_of(session.threads, session.concurrency) | {"PERF_COUNT": True}
    compiled = compiled_model(path.read_bytes(), settings, repr(session.path))
    request, counted = compiled.create_infer_request(), []

    def profiled() -> None:
        request.infer({0: pixels})
        counted.append(request.profiling_info)

    plain, called = _alternately(lambda: session.run(pixels), profiled, rounds)
    spent = [info.real_time.total_seconds() for infos in counted for info in infos]
    by_layer = _by_call(spent, len(counted))[_WARM_UP:]
    # Not what was fused into others, or moves nothing.
    ran: NDArray[np.bool_] = np.any(by_layer > 0, axis=0)
    origins = {layer.name: layer.origins for layer in layers(compiled)}
    known = {node.node: node for node in placed_nodes(load_graph(path).graph)}
    nodes = _in_parts(
        [_openvino_node(info, origins.get(info.node_name, ()), known) for info in counted[0]]
    )
    method = (
        "Layers are the nodes of OpenVINO's compiled model, by its own counters, with what "
        "computes each and in which type."
    )
    kept = [node for node, took in zip(nodes, ran.tolist(), strict=True) if took]
    return _EngineTimes(kept, by_layer[:, ran], called, plain, method)


def _openvino_node(
    info: Any, origins: Sequence[str], known: Mapping[str, PlacedNode]
) -> PlacedNode:
    """A node of a compiled model, with the part of the graph's nodes that it was made from.

    known: the graph's nodes, by name
    """
    found = [known[name] for name in origins if name in known]
    part, layer = (found[0].part, found[0].layer) if found else (OTHER, info.node_name)
    return PlacedNode(info.node_name, layer, f"{info.node_type} {info.exec_type}", part)


def _in_parts(nodes: Sequence[PlacedNode]) -> list[PlacedNode]:
    """Nodes that the compiler added, in the part of those before and after where it is one."""
    before, after = _last_parts(nodes), _last_parts(nodes[::-1])[::-1]
    return [
        node._replace(part=earlier) if node.part == OTHER and earlier == later else node
        for node, earlier, later in zip(nodes, before, after, strict=True)
    ]


def _last_parts(nodes: Sequence[PlacedNode]) -> list[str]:
    """For each node the last known part, of itself or of one before."""
    last, found = OTHER, []
    for node in nodes:
        last = last if node.part == OTHER else node.part
        found.append(last)
    return found


def _alternately(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds of each call of both, after the warm-up."""
    times = []
    for _ in range(_WARM_UP + rounds):
        for call in (first, second):
            time.sleep(SETTLE)
            times.append(seconds(call))
    kept = np.array(times[2 * _WARM_UP :])
    return kept[::2], kept[1::2]


def _by_call(times: list[float], calls: int) -> NDArray[np.float64]:
    if not times or len(times) % calls:
        raise InternalError(f"the profiler reported {len(times)} layers in {calls} equal calls")
    return np.array(times).reshape(calls, -1)


def _kernels(
    events: list[dict[str, Any]], nodes: list[PlacedNode], calls: int
) -> tuple[list[PlacedNode], NDArray[np.float64]]:
    """What ONNX Runtime ran in each call, and seconds [calls, kernels].

    Many nodes have no name that would identify their events. So a kernel is taken for the node at
    its place in the graph, which is in the order of execution, and belongs to no part where that
    node is another operator.
    """
    kernels = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    kernels.sort(key=lambda event: event["ts"])
    by_layer = _by_call([1e-6 * event["dur"] for event in kernels], calls)
    ran = []
    for place, event in enumerate(kernels[: by_layer.shape[1]]):
        name, op = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
        fits = place < len(nodes) and nodes[place].op == op
        ran.append(nodes[place] if fits else PlacedNode(name, name, op, OTHER))
    return ran, by_layer


def _tensorrt_times(
    scorer: Scorer, session: TensorrtSession, pixels: NDArray[np.uint8], rounds: int
) -> _EngineTimes:
    """By TensorRT's profiler. Exercised against a stand-in; never run on a GPU."""
    calls = _WARM_UP + rounds
    watch = _Watch(library(scorer.engine))
    called = session.observe(pixels, watch.attach, calls)
    plain = [seconds(lambda: session.run(pixels)) for _ in range(calls)]
    parts = _parts_of_bundle(scorer, Path(session.path).parent)
    by_layer = _by_call([spent for _, spent in watch.reported], calls)
    nodes = [watch.placed(name, parts) for name, _ in watch.reported[: by_layer.shape[1]]]
    method = (
        "Layers are TensorRT's, by its own profiler, without the CUDA graph that scoring uses; "
        "this way of profiling has never been run on a GPU."
    )
    return _EngineTimes(
        nodes,
        by_layer[_WARM_UP:],
        np.array(called[_WARM_UP:]),
        np.array(plain[_WARM_UP:]),
        method,
    )


class _Watch:
    """TensorRT's profiler and inspector for one context.

    reported: (name, seconds) of each layer of each call
    """

    def __init__(self, module: Any) -> None:
        self.reported: list[tuple[str, float]] = []
        self._module = module
        self._layers: dict[str, dict[str, Any]] = {}

    def attach(self, context: Any) -> None:
        watch = self

        def report_layer_time(_: Any, layer_name: str, ms: float) -> None:
            watch.reported.append((layer_name, 1e-3 * ms))

        kind = type("Profiler", (self._module.IProfiler,), {"report_layer_time": report_layer_time})
        context.profiler = kind()
        inspector = context.engine.create_engine_inspector()
        information = inspector.get_engine_information(self._module.LayerInformationFormat.JSON)
        layers = json.loads(information).get("Layers", [])
        # A plan that was built with little verbosity has only the names of its layers.
        self._layers = {layer["Name"]: layer for layer in layers if isinstance(layer, dict)}

    def placed(self, name: str, parts: dict[str, str]) -> PlacedNode:
        """A layer, in the part of the ONNX nodes that it was made of, as far as TensorRT tells.

        parts: of the ONNX nodes
        """
        layer = self._layers.get(name, {})
        nodes = [
            each.partition(" | ")[0] for each in _ONNX_LAYER.findall(layer.get("Metadata", ""))
        ]
        found = {parts[node] for node in nodes or _NAME.findall(name) if node in parts}
        if len(found) > 1:
            found.discard(PREPARE)  # what prepares a part's input goes with it
        part = found.pop() if len(found) == 1 else OTHER
        return PlacedNode(name, name, layer.get("LayerType", "layer"), part)


def _parts_of_bundle(scorer: Scorer, bundle: Path) -> dict[str, str]:
    """The part of each ONNX node of the bundle's graph, which engines are built from."""
    graphs = [bundle / each.file for each in scorer.manifest.engines if each.backend == "onnx"]
    return part_by_name(load_graph(graphs[0])) if graphs and graphs[0].is_file() else {}
