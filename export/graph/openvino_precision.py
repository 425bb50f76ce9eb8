"""Which precision each part of an OpenVINO graph gets: the fastest mixture that keeps parity.

Linear layers fall from int8 to bfloat16, and blocks from bfloat16 to float32, the fewest and the
worst first, as `precision` has it. A CPU without bfloat16 has no such step: there it would be
computed in float32, more slowly than a float32 graph.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import onnx
from onnx import TensorProto

from drexperts.export.graph.bfloat16_blocks import bfloat16_blocks
from drexperts.export.graph.int8_products import LARGEST_FACTOR, LARGEST_WITH_VNNI
from drexperts.export.graph.openvino_graph import openvino_graph
from drexperts.export.graph.precision import (
    BATCH,
    Half,
    Int8,
    MixedPrecision,
    PrecisionChoice,
    PrecisionTest,
    constant_bytes,
    ever_more_islands,
    fewest_islands,
)
from drexperts.export.graph.to_onnx import onnx_from_model
from drexperts.export.speed import by_speed, session_speed
from drexperts.model.checkpoint import Checkpoint
from drexperts.runtime.cpus import cpu_capability
from drexperts.runtime.decoding import Source
from drexperts.runtime.openvino_session import OpenvinoSession
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.session import Session

SAFETY = ("int8", "bf16", "fp32")  # the safest last


class OpenvinoInt8(Int8):
    """The linear layers of the blocks in eight bits, the rest of the blocks in `rest`."""

    def __init__(
        self, checkpoint: Checkpoint, images: Sequence[Source], maps: bool, max_batch: int
    ) -> None:
        self.largest_factor = largest_factor()
        super().__init__(checkpoint, images, maps, max_batch)
        self.rest = type_of_rest()

    def _written(self, islands: Collection[str]) -> onnx.ModelProto:
        return with_rest(openvino_graph(self.products(islands)))

    def session(self, islands: Collection[str]) -> Session:
        return graph_session(self.graph(islands))


class Bfloat16(Half):
    """The blocks in bfloat16, see `bfloat16_blocks`."""

    precision = "bf16"

    @cached_property
    def float_graph(self) -> onnx.ModelProto:
        """The same in float32."""
        model = self.checkpoint.model
        return openvino_graph(onnx_from_model(model, self.maps, max_batch=self.max_batch))

    def graph(self, islands: Collection[str]) -> onnx.ModelProto:
        return bfloat16_blocks(self.float_graph, islands)

    def session(self, islands: Collection[str]) -> Session:
        return graph_session(self.graph(islands))

    def ms(self, session: Session) -> float | None:
        return session_speed(session, self.checkpoint.preprocessing.crop).ms

    def weight_bytes(self, islands: Collection[str]) -> int:
        return constant_bytes(self.graph(islands))


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16. OpenVINO computes it in float32 where it does not."""
    return cpu_capability().endswith(("-amx", "-avx512-bf16"))


def largest_factor() -> int:
    """The largest integer that a weight may become, so that no sum of this CPU saturates."""
    with_vnni = cpu_capability().endswith(("-amx", "-avx512-bf16", "-vnni"))
    return LARGEST_WITH_VNNI if with_vnni else LARGEST_FACTOR


def type_of_rest() -> str:
    """The precision of what is not in eight bits."""
    return "bf16" if has_bfloat16() else "fp32"


def with_rest(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of `openvino_graph` whose float parts have the fastest type of this CPU."""
    return bfloat16_blocks(graph) if has_bfloat16() else graph


def graph_session(graph: onnx.ModelProto) -> OpenvinoSession:
    """A graph that is in no file, ready to run."""
    return OpenvinoSession("graph.onnx", max_batch=BATCH, content=graph.SerializeToString())


class _Found(NamedTuple):
    """What a search found, and the model that it searched."""

    model: MixedPrecision
    choice: PrecisionChoice


def searched_choices(
    checkpoint: Checkpoint,
    parts: Mapping[str, Sequence[Source]],
    *,
    maps: bool,
    max_batch: int,
    progress: Progress = SILENT,
) -> Iterator[PrecisionChoice]:
    """The fastest mixture that keeps its limits, then ever safer ones, the last in float32.

    Args:
        parts: the photographs for "search" and "calibration", see `divided`.
    """
    test = PrecisionTest(checkpoint, parts["search"], "bf16", maps, progress)
    sixteen = Bfloat16(checkpoint, parts["search"], maps, max_batch)
    found = {}
    if has_bfloat16():
        found["bf16"] = _Found(sixteen, fewest_islands(sixteen, test, progress))
    progress("calibrating on photographs")
    eight = OpenvinoInt8(checkpoint, parts["calibration"], maps, max_batch)
    found["int8"] = _Found(eight, fewest_islands(eight, test.of("int8"), progress))
    trials = tuple(trial for each in found.values() for trial in each.choice.trials)
    for name in _worth_trying(found, sixteen.float_graph, checkpoint.preprocessing.crop):
        if name in found:
            model, choice = found[name]
            lowered = filter(_is_lowered, ever_more_islands(model, choice))
            yield from (each._replace(trials=trials) for each in lowered)
    yield PrecisionChoice(sixteen.float_graph, "fp32", trials=trials)


def _is_lowered(choice: PrecisionChoice) -> bool:
    """Whether a graph has a weight in its precision: not all of its parts are islands."""
    kind = {"int8": TensorProto.INT8, "bf16": TensorProto.BFLOAT16}[choice.precision]
    return any(each.data_type == kind for each in choice.graph.graph.initializer)


def _worth_trying(found: Mapping[str, _Found], floats: onnx.ModelProto, side: int) -> list[str]:
    """The precisions that keep their limits, the fastest first, and then only safer ones."""
    graphs = {
        name: choice.graph
        for name, (_, choice) in found.items()
        if choice.keeps_limits and _is_lowered(choice)
    }
    sessions = {name: graph_session(graph) for name, graph in (graphs | {"fp32": floats}).items()}
    chosen: list[str] = []
    for name in by_speed(sessions, side):
        sessions[name].close()
        if not chosen or SAFETY.index(name) > SAFETY.index(chosen[-1]):
            chosen.append(name)
    return chosen
