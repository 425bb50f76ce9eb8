"""Whether bfloat16's limits keep sound engines for OpenVINO, and refuse broken ones.

    python benchmarks/openvino_crossings.py FOLDER --model NAME=CHECKPOINT [--model ...]
        [--divisions 1] [--receipt FILE]

The halves are those of `crossings.py`, and so is what is measured: engines in bfloat16 and in the
fastest mixture that the search finds are made on one half and measured on the other. Beside them
are engines that are broken on purpose, in ways that leave a score that looks like one. Two models
need no checkpoint: "gentle" and "violent", small ones with random weights, of which the second has
sharp softmaxes.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import this_machine, this_source
from drexperts.benchmarks.crossings import (
    PACKAGES,
    Half,
    Remembering,
    divisions_of,
    measured,
    middles,
)
from drexperts.benchmarks.random_weights import SCALE
from drexperts.benchmarks.receipt_types.crossings_receipt import (
    BROKEN,
    Crossing,
    CrossingsReceipt,
    parts,
)
from drexperts.benchmarks.receipt_types.receipt import add_receipt_option, markdown
from drexperts.export.graph.bfloat16_blocks import bfloat16_blocks
from drexperts.export.graph.calibration import block_linears
from drexperts.export.graph.fold import inference_model
from drexperts.export.graph.openvino_graph import BLOCKS
from drexperts.export.graph.openvino_precision import Bfloat16, graph_session, searched_choices
from drexperts.export.graph.precision import BATCH, constant_bytes
from drexperts.export.proof.division import Photographs, in_turn, photographs_of
from drexperts.export.proof.parity import Reference
from drexperts.model.checkpoint import Checkpoint, load_checkpoint
from drexperts.model.config import ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.model.dr_experts import new_model
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.openvino_session import OpenvinoSession, compiled_model, settings_of
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.session import Session
from drexperts.ui.screen import Screen

Weight = NDArray[np.float32]  # [inputs, outputs]
SPREADS = {"gentle": 0.05, "violent": 0.3}  # of what is added to the initial weights
OFF = "encoder.blocks.0.fc2.weight"  # the one layer that is off
SIDE = 64
OURS = ("bfloat16_blocks", "openvino_graph", "openvino_precision")  # modules beside `PACKAGES`


def random_checkpoint(spread: float) -> Checkpoint:
    """A model of the demo's size whose weights are random."""
    encoder = EncoderConfig(image_size=SIDE, patch_size=8, width=64, depth=2, heads=2)
    controller = ControllerConfig(SIDE, 8, width=64, depth=2, heads=2, embedding=64)
    torch.manual_seed(0)
    model = new_model(DRExpertsConfig.paper().with_sizes(encoder, controller))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return Checkpoint(model, SCALE, Preprocessing(SIDE, SIDE, SIDE, 1))


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


def crossings(
    name: str, checkpoint: Checkpoint, divisions: Mapping[int, tuple[Photographs, Photographs]]
) -> Iterator[Crossing]:
    """Every engine of one model."""
    model = Bfloat16(checkpoint, (), maps=True, max_batch=BATCH)
    size, sessions = model.weight_bytes(()), sessions_of(model)
    for seed, photographs in divisions.items():
        pair = [Half(checkpoint, each, shared=False) for each in photographs]
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


def with_own_span(checkpoint: Checkpoint, photographs: Photographs) -> Checkpoint:
    """The checkpoint with the scale that its scores of some photographs span."""
    reference = Reference(checkpoint.model, in_turn(photographs), checkpoint.preprocessing)
    scores = reference.outputs.scores
    scale = ScoreScale(float(scores.min()), float(scores.max()), higher_is_better=True)
    return checkpoint._replace(scale=scale)


def model_named(text: str) -> tuple[str, Checkpoint]:
    """The model of "NAME=CHECKPOINT", or of one of `SPREADS`."""
    name, _, file = text.partition("=")
    if not file and name in SPREADS:
        return name, random_checkpoint(SPREADS[name])
    return name, load_checkpoint(Path(file))


def arguments_of(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photographs", type=Path, help="a folder of photographs")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=CHECKPOINT")
    parser.add_argument("--divisions", type=int, default=1, help="random ones (default: 1)")
    add_receipt_option(parser)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    arguments = arguments_of(given)
    models = dict(map(model_named, arguments.model))
    default, others = photographs_of(None), photographs_of(arguments.photographs)
    found: list[Crossing] = []
    with Screen().progress() as tell:
        for name, loaded in models.items():
            spec, side = loaded.preprocessing, loaded.preprocessing.crop
            first, second = (middles(photographs, spec) for photographs in (default, others))
            divisions = divisions_of(first, second, arguments.divisions, with_default=False)
            one = loaded._replace(preprocessing=Preprocessing(side, side, side, 1))
            if name in SPREADS:  # whose scores are in no scale
                one = with_own_span(one, first)
            for each in crossings(name, one, divisions):
                found.append(each)
                tell(f"{name}, division {each.division}, half {each.half}: {each.precision}")
    receipt = CrossingsReceipt(
        command=_command(arguments, models),
        machine=this_machine(),
        source=this_source(*PACKAGES, *(f"drexperts.export.graph.{name}" for name in OURS)),
        photographs=len(default) + len(others),
        images=sum(map(len, (*default, *others))),
        shared=False,
        parts=len(block_linears(inference_model(next(iter(models.values())).model))),
        crossings=tuple(found),
    )
    print(markdown(parts(receipt)))
    if arguments.receipt:
        write_json(receipt, arguments.receipt)


def _command(arguments: argparse.Namespace, models: Mapping[str, Checkpoint]) -> str:
    """The command that measures the same again, without paths."""
    words = ["python benchmarks/openvino_crossings.py FOLDER"]
    words += [f"--model {name}" + "=FILE" * (name not in SPREADS) for name in models]
    return " ".join([*words, f"--divisions {arguments.divisions}"])


if __name__ == "__main__":
    main()
