"""Which precision each part of a graph gets: as low as parity allows.

`int8` is for CPUs, `fp16` for GPUs. Parts are ranked by what reducing their precision does to the
score, and the fewest, the worst first, stay in float32 ("islands"). Each candidate is measured as a
bundle is: through the Scorer, on photographs and their distortions, against the eager model, under
`SEARCH_LIMITS`. int8 is calibrated on other photographs, and the proof is measured on others again,
see `division`.
"""

import copy
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from drexperts.evaluation.predict import TorchSession
from drexperts.export.graph.calibration import (
    block_linears,
    calibration_crops,
    measured_peaks,
    smoothed,
)
from drexperts.export.graph.compensation import compensated_factors, in_steps
from drexperts.export.graph.fold import BLOCK_TYPES, encoder_blocks, inference_model
from drexperts.export.graph.int8_products import (
    LARGEST_FACTOR,
    Factors,
    Range,
    int8_products,
    int8_storage,
)
from drexperts.export.graph.sensitivity import score_errors
from drexperts.export.graph.to_onnx import onnx_from_folded, onnx_from_model
from drexperts.export.proof.parity import Reference
from drexperts.export.speed import session_speed
from drexperts.model.checkpoint import Checkpoint
from drexperts.model.dr_experts import DRExperts
from drexperts.model.draft import draft_manifest
from drexperts.runtime.decoding import Source
from drexperts.runtime.manifest import OUTPUTS, Engine, Manifest, PrecisionTrial
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.proof import EXPORT_LIMITS, SEARCH_LIMITS, Parity
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.session import Session

MODEL_FILE = "model.onnx"
TARGETS = {"cpu": "int8", "gpu": "fp16"}
RANKED_ON = 8  # crops
BATCH = 8  # crops at a time, when a candidate is measured


class PrecisionChoice(NamedTuple):
    """A graph, the precision of its blocks, the parts left in `rest`, and what else was tried."""

    graph: onnx.ModelProto
    precision: str
    islands: tuple[str, ...] = ()
    trials: tuple[PrecisionTrial, ...] = ()
    rest: str = "fp32"

    @property
    def keeps_limits(self) -> bool:
        """Whether the search measured this graph, and found it within its limits."""
        return any(
            trial.passed and trial.islands == len(self.islands)
            for trial in self.trials
            if trial.precision == self.precision
        )


class MixedPrecision(Protocol):
    """A model of which some parts can have a lower precision; islands are those that have not.

    rest: the precision of the islands
    """

    precision: str
    rest: str

    def ranked(self) -> list[str]:
        """Its parts, the one that costs the score most first."""
        ...

    def graph(self, islands: Collection[str]) -> onnx.ModelProto:
        """The graph with all parts in the lower precision but the islands."""
        ...

    def session(self, islands: Collection[str]) -> Session:
        """The same, ready to run in the precision it is for."""
        ...

    def ms(self, session: Session) -> float | None:
        """What one crop takes in such a session; None unless it is what the graph is for."""
        ...

    def weight_bytes(self, islands: Collection[str]) -> int:
        """The size of its constants."""
        ...


class Int8:
    """The linear layers of the blocks in eight bits, calibrated on real images."""

    precision, rest = "int8", "fp32"
    largest_factor = LARGEST_FACTOR

    def __init__(
        self, checkpoint: Checkpoint, images: Sequence[Source], maps: bool, max_batch: int
    ) -> None:
        self.crops = calibration_crops(images, checkpoint.preprocessing)
        folded = inference_model(checkpoint.model)
        self.folded, peaks = smoothed(folded, measured_peaks(folded, self.crops))
        self.ranges = {
            name: Range(float(found.low.min()), float(found.high.max()))
            for name, found in peaks.items()
        }
        self.factors = compensated_factors(
            self.folded, self.ranges, self.crops, self.largest_factor
        )
        self.float_graph = onnx_from_folded(self.folded, maps, max_batch, shared=False)
        self._last: tuple[frozenset[str], onnx.ModelProto] | None = None

    def ranked(self) -> list[str]:
        quantised = {
            name: QuantisedLinear(linear, self.ranges[name], self.factors[name])
            for name, linear in block_linears(self.folded).items()
        }
        return _worst_first(score_errors(self.folded, quantised, self.crops[:RANKED_ON]))

    def graph(self, islands: Collection[str]) -> onnx.ModelProto:
        kept = frozenset(islands)
        if self._last is None or self._last[0] != kept:  # the search asks twice for each
            self._last = kept, self._written(kept)
        return self._last[1]

    def products(self, islands: Collection[str]) -> onnx.ModelProto:
        """The graph with the layers but the islands in eight bits, and nothing else changed."""
        ranges = {name: found for name, found in self.ranges.items() if name not in islands}
        return int8_products(self.float_graph, ranges, self.factors)

    def _written(self, islands: Collection[str]) -> onnx.ModelProto:
        return int8_storage(self.products(islands))

    def session(self, islands: Collection[str]) -> Session:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MODEL_FILE
            onnx.save(self.graph(islands), path)
            return OnnxSession(path, max_batch=BATCH)

    def ms(self, session: Session) -> float | None:
        return session_speed(session, self.crops.shape[-1]).ms

    def weight_bytes(self, islands: Collection[str]) -> int:
        return constant_bytes(self.graph(islands))


class Half:
    """Transformer blocks in float16."""

    precision, rest = "fp16", "fp32"

    def __init__(
        self, checkpoint: Checkpoint, images: Sequence[Source], maps: bool, max_batch: int
    ) -> None:
        self.checkpoint, self.maps, self.max_batch = checkpoint, maps, max_batch
        self.images = images[:RANKED_ON]

    def ranked(self) -> list[str]:
        crops = calibration_crops(self.images, self.checkpoint.preprocessing)[:RANKED_ON]
        folded = inference_model(self.checkpoint.model)
        kind = BLOCK_TYPES[self.precision]
        halves = {name: _half_block(block, kind) for name, block in encoder_blocks(folded)}
        return _worst_first(score_errors(folded, halves, crops))

    def graph(self, islands: Collection[str]) -> onnx.ModelProto:
        model = self.checkpoint.model
        return onnx_from_model(model, self.maps, self.precision, self.max_batch, islands)

    def session(self, islands: Collection[str]) -> Session:
        """PyTorch's: ONNX Runtime's CPU provider computes a float16 graph in float32."""
        return folded_session(self._folded(islands))

    def ms(self, session: Session) -> float | None:
        return None

    def weight_bytes(self, islands: Collection[str]) -> int:
        folded = self._folded(islands)
        return sum(tensor.nbytes for tensor in (*folded.parameters(), *folded.buffers()))

    def _folded(self, islands: Collection[str]) -> DRExperts:
        return inference_model(self.checkpoint.model, self.precision, islands)


_MIXED: dict[str, type[Int8] | type[Half]] = {"int8": Int8, "fp16": Half}


def folded_session(folded: DRExperts) -> TorchSession:
    """A folded model as a Session, on a GPU where there is one."""
    folded.to("cuda" if torch.cuda.is_available() else "cpu")
    return TorchSession(folded, prepare=Tensor.float, max_batch=BATCH)


class QuantisedLinear:
    """What a linear layer of `int8_products` computes, in float32."""

    def __init__(self, linear: nn.Linear, given: Range, factors: Factors) -> None:
        self.weight = torch.from_numpy(factors.values * factors.steps[:, None])
        self.bias, self.given = linear.bias, given

    def __call__(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(in_steps(rows, self.given), self.weight, self.bias)


def _half_block(block: nn.Module, kind: torch.dtype) -> Callable[[Tensor, int], Tensor]:
    half = copy.deepcopy(block).to(kind)
    return lambda rows, batch: half(rows.to(kind), batch)


def constant_bytes(graph: onnx.ModelProto) -> int:
    """The size of a graph's constants."""
    return sum(constant.ByteSize() for constant in graph.graph.initializer)


def _worst_first(errors: dict[str, float]) -> list[str]:
    """Names by their errors; an error that is not finite is the worst."""
    return sorted(errors, key=lambda name: (-np.nan_to_num(errors[name], nan=np.inf), name))


def parts_needed(precision: str, target: str) -> tuple[str, ...]:
    """What a precision needs photographs for, beside the proof: arguments of `divided`."""
    lowest = TARGETS[target] if precision == "auto" else precision
    return ("search",) * (precision == "auto") + ("calibration",) * (lowest == "int8")


def choices_of_precision(
    checkpoint: Checkpoint,
    precision: str,
    target: str,
    parts: Mapping[str, Sequence[Source]],
    *,
    maps: bool,
    max_batch: int,
    progress: Progress = SILENT,
) -> Iterator[PrecisionChoice]:
    """The graph of a checkpoint in a precision of "fp32", "fp16", "bf16", "int8" or "auto".

    "auto" has several, each nearer to the model than the one before, for the case that this one
    fails its proof.

    Args:
        target: what "auto" is for, one of `TARGETS`.
        parts: the photographs of each of `parts_needed`.
    """
    if precision in BLOCK_TYPES:
        graph = onnx_from_model(checkpoint.model, maps, precision, max_batch)
        yield PrecisionChoice(graph, precision)
        return
    progress("calibrating on photographs")
    lowest = _MIXED[TARGETS[target] if precision == "auto" else precision]
    given = parts.get("calibration", parts.get("search", ()))  # float16 has nothing to calibrate
    model: MixedPrecision = lowest(checkpoint, given, maps, max_batch)
    if precision != "auto":
        yield PrecisionChoice(model.graph(()), precision)
        return
    trial = PrecisionTest(checkpoint, parts["search"], model.precision, maps, progress)
    yield from ever_more_islands(model, fewest_islands(model, trial, progress))


def draft_of(
    checkpoint: Checkpoint, precision: str, outputs: tuple[str, ...], max_batch: int
) -> Manifest:
    """The manifest of a bundle whose ONNX file is not written yet; raises as `draft_manifest`."""
    engine = Engine(
        backend="onnx",
        file=MODEL_FILE,
        sha256="0" * 64,
        precision=precision,
        max_batch=max_batch,
        versions={"onnx": version("onnx")},
        parity=None,
        invariance=None,
    )
    libraries = ("torch", "timm", "onnx")
    return draft_manifest(checkpoint, engine, outputs=outputs, libraries=libraries)


class PrecisionTest:
    """Measures the parity of sessions of one precision, with the eager model as reference."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        images: Sequence[Source],
        precision: str,
        maps: bool,
        progress: Progress = SILENT,
        *,
        limits: Mapping[str, dict[str, float]] = SEARCH_LIMITS,
    ) -> None:
        self.reference = Reference(
            checkpoint.model, images, checkpoint.preprocessing, progress, limits=limits
        )
        outputs = OUTPUTS if maps else OUTPUTS[:2]
        self.manifest = draft_of(checkpoint, precision, outputs, BATCH)
        self._progress = progress

    def of(self, precision: str) -> "PrecisionTest":
        """The same test for sessions of another precision."""
        other = copy.copy(self)
        (engine,) = self.manifest.engines
        other.manifest = replace(self.manifest, engines=(replace(engine, precision=precision),))
        return other

    def __call__(self, session: Session) -> Parity:
        """The parity of a session, which is closed."""
        with Scorer(self.manifest, self.manifest.engines[0], session) as scorer:
            return self.reference.parity(scorer, self._progress)


def fewest_islands(
    model: MixedPrecision, test: Callable[[Session], Parity], progress: Progress = SILENT
) -> PrecisionChoice:
    """The candidate with the fewest of the worst parts in float32 whose parity keeps its limits.

    Found by bisection, which assumes that more islands are no worse. If even all parts in float32
    do not keep the limits, that candidate is the answer, and its proof will say so.
    """
    tried: dict[int, PrecisionTrial] = {}

    def keeps(islands: Sequence[str]) -> bool:
        progress(f"precision search: {model.precision} with {len(islands)} parts in {model.rest}")
        session = model.session(islands)
        ms = model.ms(session)
        parity = test(session)
        low = parity.srcc if parity.srcc_interval is None else parity.srcc_interval.low
        tried[len(islands)] = PrecisionTrial(
            islands=len(islands),
            weight_bytes=model.weight_bytes(islands),
            score_max=parity.score_max,
            srcc=low,
            passed=parity.passed or (not islands and _could_be_made(parity, model.precision)),
            srcc_found=parity.srcc,
            precision=model.precision,
            ms=ms,
        )
        return tried[len(islands)].passed

    islands: Sequence[str] = ()
    if not keeps(()):
        ranked = model.ranked()
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
    trials = tuple(tried[count] for count in sorted(tried))
    return PrecisionChoice(
        model.graph(islands), model.precision, tuple(islands), trials, model.rest
    )


def _could_be_made(parity: Parity, precision: str) -> bool:
    """Whether an engine this far from the reference keeps the limits of one that is made.

    It is enough for a candidate without islands: nothing of it was chosen on these images, so that
    its proof on others needs no further margin.
    """
    return replace(parity, limits=EXPORT_LIMITS[precision]).within_limits


def ever_more_islands(model: MixedPrecision, first: PrecisionChoice) -> Iterator[PrecisionChoice]:
    """`first`, then twice as many of the worst parts in float32 each time, up to all of them."""
    yield first
    ranked, count = model.ranked(), len(first.islands)
    while count < len(ranked):
        count = min(len(ranked), max(1, 2 * count))
        islands = tuple(ranked[:count])
        yield first._replace(graph=model.graph(islands), islands=islands)
