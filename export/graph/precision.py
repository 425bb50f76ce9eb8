"""Which precision each part of a graph gets: as low as the parity gate admits.

`int8` is for CPUs, `fp16` for GPUs. Parts are ranked by what lowering them does to the score, and
the fewest, the worst first, stay in float32 ("islands"). Each mixture that is tried is judged as a
bundle is: through the Scorer, on photographs and their distortions, against the eager model. They
are the photographs of the proof, too, and int8 is calibrated on them mirrored.
"""

import copy
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drexperts.export.graph.calibration import (
    block_linears,
    calibration_crops,
    measured_peaks,
    smoothed,
)
from drexperts.export.graph.fold import BLOCK_TYPES, encoder_blocks, inference_model
from drexperts.export.graph.int8_products import LARGEST_FACTOR, Range, int8_products, int8_storage
from drexperts.export.graph.sensitivity import score_errors
from drexperts.export.graph.to_onnx import onnx_from_folded, onnx_from_model
from drexperts.export.proof.draft import MODEL_FILE, draft
from drexperts.export.proof.parity import (
    LIMITS,
    Outputs,
    compare,
    eager_outputs,
    engine_outputs,
    parity_sets,
)
from drexperts.model.checkpoint import Checkpoint
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.manifest import OUTPUTS, Parity, PrecisionTrial
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.preprocess import Source
from drexperts.runtime.progress import Progress
from drexperts.runtime.scorer import Scorer, Session

TARGETS = {"cpu": "int8", "gpu": "fp16"}
CALIBRATED_ON = 32  # images, at most
RANKED_ON = 8  # crops
BATCH = 8  # crops at a time, when a mixture is judged


class Mixture(NamedTuple):
    """A graph, its precision, what of it stayed in float32, and what else was tried."""

    graph: onnx.ModelProto
    precision: str
    islands: tuple[str, ...] = ()
    frontier: tuple[PrecisionTrial, ...] = ()


class Lowering(Protocol):
    """A model whose parts can be lowered to `precision` one by one."""

    precision: str

    def ranked(self) -> list[str]:
        """Its parts, the one that costs the score most first."""
        ...

    def graph(self, islands: Collection[str]) -> onnx.ModelProto:
        """All parts lowered but those."""
        ...

    def session(self, islands: Collection[str]) -> Session:
        """The same, ready to run in the precision it is for."""
        ...

    def weight_bytes(self, islands: Collection[str]) -> int:
        """Of its constants."""
        ...


class Int8:
    """Linear layers of the blocks in eight bits, calibrated on real images."""

    precision = "int8"

    def __init__(
        self, checkpoint: Checkpoint, images: Sequence[Source], maps: bool, max_batch: int
    ) -> None:
        self.crops = calibration_crops(images[:CALIBRATED_ON], checkpoint.preprocessing)
        folded = inference_model(checkpoint.model)
        self.folded, peaks = smoothed(folded, measured_peaks(folded, self.crops))
        self.ranges = {
            name: Range(float(found.low.min()), float(found.high.max()))
            for name, found in peaks.items()
        }
        self.float_graph = onnx_from_folded(self.folded, maps, max_batch, shared=False)

    def ranked(self) -> list[str]:
        lowered = {
            name: QuantisedLinear(linear, self.ranges[name])
            for name, linear in block_linears(self.folded).items()
        }
        return _worst_first(score_errors(self.folded, lowered, self.crops[:RANKED_ON]))

    def graph(self, islands: Collection[str]) -> onnx.ModelProto:
        ranges = {name: found for name, found in self.ranges.items() if name not in islands}
        return int8_storage(int8_products(self.float_graph, ranges))

    def session(self, islands: Collection[str]) -> Session:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(self.graph(islands), path)
            return OnnxSession(path, max_batch=BATCH)

    def weight_bytes(self, islands: Collection[str]) -> int:
        return sum(weight.ByteSize() for weight in self.graph(islands).graph.initializer)


class Half:
    """Transformer blocks in float16."""

    precision = "fp16"

    def __init__(
        self, checkpoint: Checkpoint, images: Sequence[Source], maps: bool, max_batch: int
    ) -> None:
        self.checkpoint, self.maps, self.max_batch = checkpoint, maps, max_batch
        self.images = images[:RANKED_ON]

    def ranked(self) -> list[str]:
        crops = calibration_crops(self.images, self.checkpoint.preprocessing)[:RANKED_ON]
        folded = inference_model(self.checkpoint.model)
        lowered = {name: _half_block(block) for name, block in encoder_blocks(folded)}
        return _worst_first(score_errors(folded, lowered, crops))

    def graph(self, islands: Collection[str]) -> onnx.ModelProto:
        model = self.checkpoint.model
        return onnx_from_model(model, self.maps, self.precision, self.max_batch, islands)

    def session(self, islands: Collection[str]) -> Session:
        """PyTorch's: ONNX Runtime's CPU provider computes a float16 graph in float32."""
        return FoldedSession(inference_model(self.checkpoint.model, self.precision, islands))

    def weight_bytes(self, islands: Collection[str]) -> int:
        folded = inference_model(self.checkpoint.model, self.precision, islands)
        return sum(tensor.nbytes for tensor in (*folded.parameters(), *folded.buffers()))


class FoldedSession:
    """A folded model as a `Session`, on a GPU where there is one."""

    concurrency, max_batch = 1, BATCH

    def __init__(self, folded: DRExperts) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._folded = folded.to(self._device).eval()
        self.image_size: int | None = folded.config.encoder.image_size
        self.description = f"PyTorch {torch.__version__} on {self._device}"

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """uint8 [B, 3, H, W] -> "score" [B], "weights" [B, 10], "maps" [B, 10, grid, grid]."""
        with torch.inference_mode():
            outputs = self._folded(torch.from_numpy(pixels).to(self._device).float())
        return {name: getattr(outputs, name).float().cpu().numpy() for name in OUTPUTS}

    def close(self) -> None:
        """Let go of the model."""
        del self._folded


LOWERINGS: dict[str, type[Int8] | type[Half]] = {"int8": Int8, "fp16": Half}


class QuantisedLinear:
    """What a linear layer of `int8_products` computes, in float32."""

    def __init__(self, linear: nn.Linear, given: Range) -> None:
        steps = (linear.weight.abs().amax(1, keepdim=True) / LARGEST_FACTOR).clamp(min=1e-30)
        self.weight = (linear.weight / steps).round() * steps
        self.bias, self.given = linear.bias, given

    def __call__(self, rows: Tensor) -> Tensor:
        scale, zero = self.given.scale, self.given.zero
        steps = ((rows / scale).round() + zero).clamp(0, 255) - zero
        return nn.functional.linear(steps * scale, self.weight, self.bias)


def _half_block(block: nn.Module) -> Callable[[Tensor, int], Tensor]:
    half = copy.deepcopy(block).to(BLOCK_TYPES["fp16"])
    return lambda rows, batch: half(rows.half(), batch)


def _worst_first(errors: dict[str, float]) -> list[str]:
    """Names by their errors; one that is no number is the worst."""
    return sorted(errors, key=lambda name: (-np.nan_to_num(errors[name], nan=np.inf), name))


def mixture(
    checkpoint: Checkpoint,
    precision: str,
    target: str,
    images: Sequence[Source],
    *,
    maps: bool,
    max_batch: int,
    tell: Progress,
) -> Mixture:
    """The graph of a checkpoint in a precision of "fp32", "fp16", "bf16", "int8" or "auto".

    Args:
        target: of "auto", of `TARGETS`.
        images: photographs, for calibration and, of "auto", to judge by.
    """
    if precision in BLOCK_TYPES:
        graph = onnx_from_model(checkpoint.model, maps, precision, max_batch)
        return Mixture(graph, precision)
    tell("calibrating on photographs")
    lowest = LOWERINGS[TARGETS[target] if precision == "auto" else precision]
    lowering: Lowering = lowest(checkpoint, images, maps, max_batch)
    if precision != "auto":
        return Mixture(lowering.graph(()), precision)
    judge = Judge(checkpoint, images, lowering.precision, maps, tell)
    return fewest_islands(lowering, judge, tell)


class Judge:
    """Holds sessions against the eager model, which scores the images once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        images: Sequence[Source],
        precision: str,
        maps: bool,
        tell: Progress,
    ) -> None:
        self.precision, self.tell = precision, tell
        self.sources, self.sizes = parity_sets(images, checkpoint.preprocessing)
        spec = checkpoint.preprocessing
        self.expected: Outputs = eager_outputs(
            checkpoint.model, self.sources, spec, tell, self.sizes
        )
        # Of no file: what is judged is a session.
        self.manifest = draft(checkpoint, MODEL_FILE, "0" * 64, precision, maps, BATCH)

    def __call__(self, session: Session) -> Parity:
        """The parity of a session, which is closed."""
        (engine,) = self.manifest.engines
        with Scorer(self.manifest, engine, session) as scorer:
            got = engine_outputs(scorer, self.sources, self.tell)
        limits = LIMITS[self.precision]
        return compare(self.expected, got, self.manifest.scale, limits, self.sizes)


def fewest_islands(
    lowering: Lowering, judge: Callable[[Session], Parity], tell: Progress
) -> Mixture:
    """The mixture with the fewest of the worst parts in float32 whose parity keeps its limits.

    By bisection: keeping more of them is taken to be no worse. If not even all of them in float32
    keep the limits, that mixture is the answer, and its proof will say so.
    """
    tried: dict[int, PrecisionTrial] = {}

    def keeps(islands: Sequence[str]) -> bool:
        tell(f"precision search: {len(islands)} parts in float32")
        parity = judge(lowering.session(islands))
        low = parity.srcc if parity.srcc_interval is None else parity.srcc_interval.low
        tried[len(islands)] = PrecisionTrial(
            islands=len(islands),
            weight_bytes=lowering.weight_bytes(islands),
            score_max=parity.score_max,
            srcc=low,
            passed=parity.passed,
        )
        return parity.passed

    islands: Sequence[str] = ()
    if not keeps(()):
        ranked = lowering.ranked()
        fails, holds = 0, len(ranked)
        while holds - fails > 1:
            middle = (fails + holds) // 2
            if keeps(ranked[:middle]):
                holds = middle
            else:
                fails = middle
        islands = ranked[:holds]
        if holds not in tried:
            keeps(islands)
    frontier = tuple(tried[count] for count in sorted(tried))
    return Mixture(lowering.graph(islands), lowering.precision, tuple(islands), frontier)
