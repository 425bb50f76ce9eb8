"""Whether bfloat16's limits keep sound engines for OpenVINO, and refuse broken ones.

    python benchmarks/openvino_crossings.py FOLDER --model NAME[=CHECKPOINT] [--model ...]
        [--divisions 1] [--default] [--receipt FILE]

The halves and the models are those of `crossings.py`, and so is what is measured: engines in
bfloat16 and in the fastest mixture that the search finds are made on one half and measured on the
other. Beside them are engines that are broken on purpose, in ways that leave a score that looks
like one.
"""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from drexperts.bench.json_files import write_json
from drexperts.benchmarks.crossings import (
    PACKAGES,
    Divisions,
    Half,
    Remembering,
    arguments_of,
    measured,
    receipt_of,
)
from drexperts.benchmarks.receipt_types.crossings_receipt import BROKEN, Crossing, parts
from drexperts.benchmarks.receipt_types.receipt import markdown
from drexperts.export.graph.bfloat16_blocks import bfloat16_blocks
from drexperts.export.graph.openvino_graph import BLOCKS
from drexperts.export.graph.openvino_precision import Bfloat16, graph_session, searched_choices
from drexperts.export.graph.precision import BATCH, constant_bytes
from drexperts.model.checkpoint import Checkpoint
from drexperts.runtime.openvino_session import OpenvinoSession, compiled_model, settings_of
from drexperts.runtime.session import Session

Weight = NDArray[np.float32]  # [inputs, outputs]
OFF = "encoder.blocks.0.fc2.weight"  # the one layer that is off
OURS = tuple(
    f"drexperts.export.graph.{name}"
    for name in ("bfloat16_blocks", "openvino_graph", "openvino_precision")
)


def in_bits(bits: int) -> Callable[[str, Weight], Weight]:
    """Rounds each output's weights to so many bits, without a calibration that would help."""

    def rounded(name: str, weight: Weight) -> Weight:
        steps = np.abs(weight).max(0, keepdims=True) / (2 ** (bits - 1) - 1)
        return np.round(weight / np.maximum(steps, 1e-30)) * steps

    return rounded


def scaled(factor: float) -> Callable[[str, Weight], Weight]:
    """Multiplies the weights of the one layer that is off."""
    return lambda name, weight: weight * np.float32(factor) if OFF in name else weight


def _swapped(name: str, weight: Weight) -> Weight:
    """Outputs of the one layer in the opposite order."""
    return weight[:, ::-1].copy() if OFF in name else weight


# What may go wrong in an engine. OpenVINO's own bfloat16 is not a mistake, but is not ours either.
CHANGES: dict[str, Callable[[str, Weight], Weight]] = {
    "6 bits": in_bits(6),
    "4 bits": in_bits(4),
    "one layer 2 % off": scaled(1.02),
    "one layer 20 % off": scaled(1.2),
    "one layer left out": scaled(0.0),
    "one layer's outputs reversed": _swapped,
}
EVERYWHERE = "bf16 everywhere"


def changed(graph: onnx.ModelProto, change: Callable[[str, Weight], Weight]) -> onnx.ModelProto:
    """A copy of a float32 graph of `openvino_graph` with other weights in its blocks."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for constant in copy.graph.initializer:
        if BLOCKS in constant.name and len(constant.dims) == 2:
            new = change(constant.name, numpy_helper.to_array(constant))
            constant.CopyFrom(numpy_helper.from_array(new.astype(np.float32), constant.name))
    return copy


def everywhere(graph: onnx.ModelProto) -> OpenvinoSession:
    """The float32 graph as OpenVINO computes it by default: tokens and head in bfloat16 too."""
    settings = settings_of(None, 1) | {"INFERENCE_PRECISION_HINT": "bf16"}
    compiled = compiled_model(graph.SerializeToString(), settings, "the graph")
    return OpenvinoSession("graph.onnx", max_batch=BATCH, compiled=compiled)


def sessions_of(model: Bfloat16) -> dict[str, Session]:
    """The sound engine in bfloat16, and the others, by the names of their crossings."""
    graph = model.float_graph
    broken = {name: bfloat16_blocks(changed(graph, change)) for name, change in CHANGES.items()}
    return {
        "openvino-bf16": Remembering(graph_session(bfloat16_blocks(graph))),
        f"{BROKEN}{EVERYWHERE}": Remembering(everywhere(graph)),
        **{f"{BROKEN}{name}": Remembering(graph_session(each)) for name, each in broken.items()},
    }


def crossings(name: str, checkpoint: Checkpoint, divisions: Divisions) -> Iterator[Crossing]:
    """Every engine of one model."""
    model = Bfloat16(checkpoint, (), maps=True, max_batch=BATCH)
    size, sessions = model.weight_bytes(()), sessions_of(model)
    for seed, photographs in divisions.items():
        pair = [Half(checkpoint, each) for each in photographs]
        for at, half in enumerate(pair):
            for precision, session in sessions.items():
                yield Crossing(
                    model=name,
                    division=seed,
                    half=at,
                    precision=precision,
                    islands=0,
                    weight_bytes=size,
                    **measured(half, pair[1 - at], "bf16", session),
                )
            choice = next(searched_choices(checkpoint, half.parts, maps=True, max_batch=BATCH))
            yield Crossing(
                model=name,
                division=seed,
                half=at,
                precision=f"openvino-auto-{choice.precision}",
                islands=len(choice.islands),
                weight_bytes=constant_bytes(choice.graph),
                **measured(half, pair[1 - at], choice.precision, graph_session(choice.graph)),
            )


def main(given: list[str] | None = None) -> None:
    arguments = arguments_of(given, __doc__, divisions=1)
    script = "openvino_crossings.py"
    receipt = receipt_of(script, arguments, crossings, (*PACKAGES, *OURS))
    print(markdown(parts(receipt)))
    if arguments.receipt:
        write_json(receipt, arguments.receipt)


if __name__ == "__main__":
    main()
