"""Compare ways to eight bits with float32, and time them in the same rounds.

    python benchmarks/bench_precision.py [--checkpoint FILE] [--weights demo] [--receipt FILE]

What `drx export --precision auto` tries and chooses, beside what it does not use: activations that
are not smoothed first, scales taken from each batch (`quantize_dynamic` of ONNX Runtime), and
products of 8-bit weights by blocks (its MatMulNBits). All are checked on photographs and on crops
of them under every distortion at every level. Without a checkpoint the model is the full-size one
with random weights.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.inliner import inline_local_functions

from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import this_machine, this_source
from drexperts.bench.timing import alternately
from drexperts.benchmarks.random_weights import random_checkpoint
from drexperts.benchmarks.receipt_types.answers import Answers, Reference
from drexperts.benchmarks.receipt_types.precision_receipt import (
    CHOSEN,
    FLOAT,
    SMOOTHED,
    PrecisionReceipt,
    Quantised,
    parts,
)
from drexperts.benchmarks.receipt_types.receipt import add_receipt_option, markdown
from drexperts.export.graph.calibration import measured_peaks
from drexperts.export.graph.fold import inference_model
from drexperts.export.graph.int8_products import Range, int8_products, int8_storage
from drexperts.export.graph.precision import Int8, PrecisionTest, fewest_islands
from drexperts.export.graph.to_onnx import onnx_from_model
from drexperts.export.proof.division import divided, photographs_of
from drexperts.export.proof.parity import compare, engine_outputs
from drexperts.model.checkpoint import Checkpoint, load_checkpoint
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.progress import Progress
from drexperts.runtime.proof import LIMITS
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.session import Session
from drexperts.ui.screen import Screen

PACKAGES = (
    "drexperts.model.config",
    "drexperts.model.dr_experts",
    "drexperts.model.experts",
    "drexperts.model.backbones",
    "drexperts.export.graph.calibration",
    "drexperts.export.graph.compensation",
    "drexperts.export.graph.fold",
    "drexperts.export.graph.int8_products",
    "drexperts.export.graph.precision",
    "drexperts.export.graph.sensitivity",
    "drexperts.export.graph.to_onnx",
)
ROUNDS, BATCH = 15, 8
BLOCK = 128  # weights that share a scale in MatMulNBits


def layer_names(graph: onnx.ModelProto) -> list[str]:
    """The nodes of the blocks' linear layers."""
    return [n.name for n in graph.graph.node if n.op_type == "Gemm" and ".blocks." in n.input[1]]


def unsmoothed(checkpoint: Checkpoint, int8: Int8, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Static scales, with the activations as they are."""
    peaks = measured_peaks(inference_model(checkpoint.model), int8.crops)
    ranges = {n: Range(float(p.low.min()), float(p.high.max())) for n, p in peaks.items()}
    return int8_storage(int8_products(graph, ranges))


def dynamic(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Scales of activations from each batch, by ONNX Runtime's own tool."""
    # Not before drexperts, which keeps ONNX Runtime's telemetry off; as in `by_blocks`.
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = layer_names(graph)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "dynamic.onnx"
        onnx.save(_plain(graph), source)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=[*names, *(f"{name}_MatMul" for name in names)],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


def by_blocks(graph: onnx.ModelProto) -> onnx.ModelProto:
    """8-bit weights by blocks, and activations by rows and blocks: ONNX Runtime's MatMulNBits."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(_plain(graph))
    model.replace_gemm_with_matmul()
    nodes = model.model.graph.node
    others = [n.name for n in nodes if n.op_type == "MatMul" and ".blocks." not in n.input[1]]
    config = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits=8
    )
    quantizer = MatMulNBitsQuantizer(model.model, nodes_to_exclude=others, algo_config=config)
    quantizer.process()
    return quantizer.model.model


def _plain(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without functions and shapes, which ONNX Runtime's tools do not expect."""
    plain = inline_local_functions(graph)
    del plain.graph.value_info[:]
    return plain


def measured(checkpoint: Checkpoint, weights: str, tell: Progress) -> PrecisionReceipt:
    """Every way's size, answers, batch invariance and speed."""
    given = divided(photographs_of(None), "search", "calibration")
    int8 = Int8(checkpoint, given["calibration"], maps=True, max_batch=BATCH)
    search = PrecisionTest(checkpoint, given["search"], "int8", True, tell)
    chosen = fewest_islands(int8, search, tell)
    test = PrecisionTest(checkpoint, given["proof"], "int8", True, tell)
    plain = onnx_from_model(checkpoint.model, maps=True, max_batch=BATCH)
    ways: dict[str, Callable[[], onnx.ModelProto]] = {
        FLOAT: lambda: plain,
        SMOOTHED: lambda: int8.graph(()),
        CHOSEN: lambda: chosen.graph,
        "static, not smoothed": partial(unsmoothed, checkpoint, int8, plain),
        "dynamic": partial(dynamic, plain),
        "8-bit weights by blocks": partial(by_blocks, plain),
    }
    side = checkpoint.preprocessing.crop
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 3, side, side), dtype=np.uint8)
    found: dict[str, Quantised] = {}
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in ways.items():
            tell(f"{name}: parity")
            graph, path = make(), Path(folder) / f"{len(found)}.onnx"
            onnx.save(graph, path)
            sessions[name] = OnnxSession(path, max_batch=BATCH)
            found[name] = Quantised(
                bytes=graph.ByteSize(),
                answers=answers(test, OnnxSession(path, max_batch=BATCH)),
                seconds=(),
                batch_drift=batch_drift(sessions[name], pixels),
            )
        one = pixels[:1]
        calls = {name: partial(session.run, one) for name, session in sessions.items()}
        times = alternately(calls, ROUNDS, tell)
    reference = test.reference
    scores = tuple(reference.outputs.scores.tolist())
    return PrecisionReceipt(
        command=_command(weights),
        machine=this_machine(),
        source=this_source(*PACKAGES),
        weights=weights,
        preset=checkpoint.model.config.preset,
        reference=Reference(scores, test.manifest.scale.span, reference.sizes),
        layers=len(int8.ranges),
        islands=tuple(chosen.islands),
        searched=chosen.trials,
        ways={name: replace(way, seconds=times[name]) for name, way in found.items()},
    )


def answers(test: PrecisionTest, session: Session) -> Answers:
    """What a session answers on the images of a precision test. The session is closed."""
    reference, scale = test.reference, test.manifest.scale
    (engine,) = test.manifest.engines
    with Scorer(test.manifest, engine, session) as scorer:
        got = engine_outputs(scorer, reference.images)
    limits = LIMITS[engine.precision]
    return Answers.of(got, compare(reference.outputs, got, scale, limits, reference.sizes))


def batch_drift(session: OnnxSession, pixels: NDArray[np.uint8]) -> float:
    """The largest difference between scores in a batch and alone.

    The last row is black, which changes every scale that is taken from the batch.
    """
    batch = np.concatenate([pixels[:-1], np.zeros_like(pixels[:1])])
    alone = np.concatenate([session.run(image[None])["score"] for image in batch])
    return float(np.abs(session.run(batch)["score"] - alone).max())


def _command(weights: str) -> str:
    with_file = "" if weights == "random" else f" --checkpoint FILE --weights {weights}"
    return f"python benchmarks/bench_precision.py{with_file}"


def arguments_of(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--weights", choices=("demo", "trained"), help="of the checkpoint")
    add_receipt_option(parser)
    arguments = parser.parse_args(given)
    if (arguments.checkpoint is None) != (arguments.weights is None):
        parser.error("--checkpoint and --weights go together")
    return arguments


def main(given: list[str] | None = None) -> None:
    arguments = arguments_of(given)
    checkpoint = (
        random_checkpoint("official")
        if arguments.checkpoint is None
        else load_checkpoint(arguments.checkpoint)
    )
    logging.disable(logging.INFO)  # ONNX Runtime's tools turn everyone's on
    with Screen().progress() as tell:
        receipt = measured(checkpoint, arguments.weights or "random", tell)
    print(markdown(parts(receipt)))
    if arguments.receipt:
        write_json(receipt, arguments.receipt)


if __name__ == "__main__":
    main()
