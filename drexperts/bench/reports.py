"""The reports of `drx bench`: raw samples, and where they are from.

They hold nothing that follows from something else in them. Medians, ratios and verdicts are
properties, computed when asked for, and `caveats` and `tables` compute what is shown. Times are in
seconds, in the order in which they were measured.
"""

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from drexperts.bench.conditions import Conditions
from drexperts.bench.graph_parts import CONTROLLER, ENCODER, HEAD, OTHER, PREPARE
from drexperts.bench.provenance import Gpu, Machine, Source
from drexperts.bench.timing import Ratio, Summary

Seconds = tuple[float, ...]

# Variants: what is timed in the same rounds.
ENGINE = "engine"
AGAIN = "engine again"  # the engine's second turn in a round, which shows the noise
OURS = "ours"  # of training

# Parts of the time of an image. OTHER serves several parts of the model, or is not known.
DECODE, CROP, BETWEEN = "decode", "crop", "between kernels"
PARTS = (DECODE, CROP, PREPARE, ENCODER, CONTROLLER, HEAD, OTHER, BETWEEN)

ENOUGH = 100  # samples below which a p99 is little more than the slowest one
FEWEST = 20  # queries below which a trial of the server shows nothing
TOLERANCE = 1.05  # between a rate that meets the bound and one that does not
FIRST_LOAD = 0.25  # of the single-stream rate: where the server's search begins
LOSSES_AGREE = 1e-4  # relative, between the first losses of float32 forms with the same weights


@dataclass(frozen=True)
class EngineDescription:
    """What an engine is, without paths of this machine.

    engine: the name of its file
    bytes: the size of that file
    digest: of the bundle, as `drx info` prints it
    options: how the library that runs it was set, threads among them
    """

    preset: str
    engine: str
    sha256: str
    backend: str
    precision: str
    session: str
    bytes: int
    digest: str | None = None
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchTimes:
    """Calls with one batch size, by variant. All variants ran once in every round."""

    batch: int
    seconds: dict[str, Seconds]

    @property
    def shown(self) -> dict[str, Seconds]:
        """All variants but the engine's second turn."""
        return {name: times for name, times in self.seconds.items() if name != AGAIN}

    def ratio(self, name: str) -> Ratio | None:
        """A variant's time over the engine's, within each round; None for the engine."""
        if name == ENGINE:
            return None
        return Ratio.of(self.seconds[name], self.seconds[ENGINE])


@dataclass(frozen=True)
class ImageTimes:
    """Photographs one by one, in turn.

    photographs: of the user's; 0 where one was made here
    crops: of each photograph
    preprocess: decoding and cropping, on one core
    image_e2e: from a file's bytes to its Score
    """

    photographs: int
    crops: tuple[int, ...]
    preprocess: Seconds
    image_e2e: Seconds


@dataclass(frozen=True)
class ColdStart:
    """A fresh process until after its first call, of one crop; None where it is not known."""

    import_s: float
    load_s: float
    first_inference_s: float
    resident_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Memory:
    """Bytes of a process that ran the largest batch; None where they are not known."""

    host_peak_bytes: int | None
    device_bytes: int | None


@dataclass(frozen=True)
class Energy:
    """Energy of whole chips while images were scored.

    joules: None where the platform does not report it
    source: what was counted, or why nothing was
    """

    joules: float | None
    images: int
    source: str

    @property
    def joules_per_image(self) -> float | None:
        return None if self.joules is None else self.joules / self.images


@dataclass(frozen=True)
class Trial:
    """The server under one rate of arrivals.

    rate: images per second
    planned: images that were to arrive
    seconds: latency of each image that was answered; fewer than planned if it was stopped early
    """

    rate: float
    planned: int
    seconds: Seconds

    @property
    def is_complete(self) -> bool:
        return len(self.seconds) == self.planned

    def meets(self, bound_s: float) -> bool:
        """Whether everything was answered, with a p99 within the bound."""
        return self.is_complete and Summary.of(self.seconds).p99 <= bound_s


@dataclass(frozen=True)
class Server:
    """The search for the highest rate of arrivals whose p99 latency meets a bound.

    single_s: seconds for an image alone
    """

    bound_s: float
    single_s: float
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The trial with the highest rate that met the bound; None if none did."""
        met = [trial for trial in self.trials if trial.meets(self.bound_s)]
        return max(met, key=lambda trial: trial.rate, default=None)

    @property
    def note(self) -> str | None:
        """What weakens the verdict, if anything does."""
        bound, single, best = self.bound_s, self.single_s, self.best
        if single > bound:
            return f"no rate can meet {bound:.3g} s: an image alone takes {single:.3g} s"
        if not self.trials:
            first = FIRST_LOAD / single
            return f"no verdict: at {first:.3g}/s, fewer than {FEWEST} images arrive in a trial"
        if best is None:
            lowest = min(trial.rate for trial in self.trials)
            return f"no rate that there was time to try met the bound, down to {lowest:.3g}/s"
        missed = (trial.rate for trial in self.trials if not trial.meets(bound))
        notes = []
        if min(missed, default=math.inf) > TOLERANCE * best.rate:
            notes.append(
                "time ran out before the search was narrow: higher rates may meet the bound"
            )
        if best.planned < ENOUGH:
            notes.append(f"time allowed {best.planned} queries, and a p99 needs {ENOUGH}")
        return "; ".join(notes) or None


@dataclass(frozen=True)
class Offline:
    """All images at once, as one stream."""

    images: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


@dataclass(frozen=True, kw_only=True)
class Scenarios:
    """Latency of queries as MLPerf has them; None is what was not measured."""

    single_stream: Seconds | None = None
    multi_stream: Seconds | None = None
    images_per_query: int = 8  # in multi_stream
    server: Server | None = None
    offline: Offline | None = None


@dataclass(frozen=True)
class Layer:
    """A layer of an engine.

    name: the module whose weights it reads, else as `node`
    node: its name in the engine
    part: of the model
    seconds: the median of one call
    """

    name: str
    node: str
    op: str
    part: str
    seconds: float


@dataclass(frozen=True)
class Profile:
    """Where the time of one image goes.

    batch: crops in a call of the engine
    crops: of the image, so that it needs crops / batch calls
    layers: in the order in which they run
    in_layers: all layers of each call
    called, plain: each call with the profiler, and without it
    method: how layers were timed
    """

    batch: int
    crops: int
    decode: Seconds
    crop: Seconds
    layers: tuple[Layer, ...]
    in_layers: Seconds
    called: Seconds
    plain: Seconds
    method: str

    @property
    def calls(self) -> float:
        """Calls that one image needs, a smaller last one by its share."""
        return self.crops / self.batch

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of one image by part, `PARTS` in their order."""
        between = [call - layers for call, layers in zip(self.called, self.in_layers, strict=True)]
        parts = dict.fromkeys(PARTS, 0.0)
        parts[DECODE], parts[CROP] = median(self.decode), median(self.crop)
        parts[BETWEEN] = self.calls * median(between)
        for layer in self.layers:
            parts[layer.part] += self.calls * layer.seconds
        return parts

    @property
    def slowdown(self) -> Ratio:
        """A call with the profiler over one without."""
        return Ratio.of(self.called, self.plain)


@dataclass(frozen=True)
class Roofline:
    """What the model asks of a machine, and what this machine can do at most.

    flop_per_image: of one crop, two for a multiplication with its addition
    weight_bytes: that one call reads at least
    peak_flops: FLOP/s of a large product, None where the device cannot be measured
    bandwidth: bytes/s of a large copy, read and written, None likewise
    source: a sentence on how they were measured
    """

    flop_per_image: int
    weight_bytes: int
    peak_flops: float | None
    bandwidth: float | None
    source: str


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """A measurement of a bundle's engine.

    command: measures the same again; paths are left out
    weights: "random", or the SHA-256 of the checkpoint that the baselines have theirs from
    gpus_after: the GPUs right after the last round of the last batch
    against: the other engines in the run
    agreement: how far scores of the engine and of forms of the model are from those of the reduced
        form in PyTorch, relative to the larger one
    left_out: why a baseline or the profile could not be measured
    batches: engine_e2e, from crops on the host to results on the host
    engine_gpu: the engine's computation alone
    warm_ups: rounds before those that are timed, for each batch
    conditions: when it ran, and how busy the machine was
    """

    kind: Literal["bench"] = "bench"
    schema: Literal[2] = 2
    command: str
    machine: Machine
    source: Source
    bundle: EngineDescription
    weights: str
    cold_start: ColdStart
    memory: Memory
    gpus_after: tuple[Gpu, ...]
    against: dict[str, EngineDescription]
    agreement: dict[str, float]
    left_out: dict[str, str]
    batches: tuple[BatchTimes, ...]
    engine_gpu: tuple[BatchTimes, ...]
    image: ImageTimes
    energy: Energy
    scenarios: Scenarios = field(default_factory=Scenarios)
    profile: Profile | None = None
    roofline: Roofline | None = None
    warm_ups: int | None = None
    conditions: Conditions | None = None


@dataclass(frozen=True)
class TrainingVariant:
    """Steps of one form of the model.

    loss: of the first step that was timed
    peak_bytes: above what was resident before the first step; None where it is not known
    """

    amp: str
    seconds: Seconds
    loss: float
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """A measurement of a training step.

    variants: all ran one step in every round; `OURS` is the first
    parts: of our step
    data: in which one core makes a batch of 1024x768 JPEGs
    """

    kind: Literal["training"] = "training"
    schema: Literal[2] = 2
    command: str
    machine: Machine
    source: Source
    preset: str
    weights: str
    batch: int
    variants: dict[str, TrainingVariant]
    parts: dict[str, Seconds]
    data: Seconds

    def ratio(self, name: str) -> Ratio | None:
        """A variant's time over ours, within each round; None for ours."""
        if name == OURS:
            return None
        return Ratio.of(self.variants[name].seconds, self.variants[OURS].seconds)

    @property
    def losses_agree(self) -> bool:
        """Whether the dense form in float32 has our loss in float32."""
        ours = next(variant for variant in self.variants.values() if variant.amp == "fp32")
        return math.isclose(ours.loss, self.variants["dense"].loss, rel_tol=LOSSES_AGREE)
