"""Latency of a bundle's engine, alone or beside baselines in the same rounds, and what it costs."""

import itertools
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drexperts import runtime
from drexperts.bench import scenarios
from drexperts.bench.cold_start import cold_start
from drexperts.bench.conditions import Watch
from drexperts.bench.provenance import gpus, this_machine, this_source
from drexperts.bench.reports import (
    AGAIN,
    ENGINE,
    BatchTimes,
    BenchReport,
    Energy,
    ImageTimes,
    Profile,
    Roofline,
    Scenarios,
)
from drexperts.bench.scenarios import SCENARIOS
from drexperts.bench.telemetry import Window
from drexperts.bench.timing import SETTLE, WARM_UP, alternately, photograph, seconds
from drexperts.bench.variants import Run, baseline_names, described, device_of, prepared
from drexperts.runtime.cpus import available_cores
from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import ImageError, UserError
from drexperts.runtime.inputs.folders import find_images
from drexperts.runtime.manifest import sha256_of
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.openvino_session import OpenvinoSession
from drexperts.runtime.preprocess import crops_from_image
from drexperts.runtime.progress import SILENT, Prefixed, Progress
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.tensorrt_session import TensorrtSession

ROUNDS = 15
BATCHES = (1, 4)
BOUND = 3.0  # times an image alone: the default bound on the server's p99
MOST_IMAGES = 100  # of a folder of photographs
WINDOW = 2.0  # seconds of scoring in which energy is counted, at least

# The source that the numbers depend on.
PACKAGES = (
    "drexperts.bench",
    "drexperts.export.graph",
    "drexperts.kernels",
    "drexperts.model",
    "drexperts.runtime",
)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured beside the engine, and how often.

    engine: which engine of the bundle is measured, as `runtime.load` takes it; those of its others
        that run here are timed in the same rounds
    baselines: see `variants.baseline_names`; they need the extra `export`
    against: bundles of the same model, by the names they are to have
    batches: crops per call; None is 1 and 4, as far as the bundle takes them
    repeats: rounds for each batch
    threads: of every engine and of PyTorch; None is one per physical core that may be used. With
        several, the engine also runs with each of the others, in the same rounds; all else runs
        with the first
    checkpoint: what the bundle was exported from, for the weights of the baselines; None makes
        random ones, which take the same time
    images: a folder of photographs, of which at most 100 are used; None makes one photograph
    scenarios: of `SCENARIOS`
    p99_bound: seconds, of the server; None is 3 times what an image alone takes
    seconds: for each scenario; None is 20, and 240 for the server
    profile: also measure where the time goes

    Raises UserError for a value that is out of range.
    """

    engine: str | None = None
    baselines: tuple[str, ...] = ()
    against: Mapping[str, Path] = field(default_factory=dict)
    batches: tuple[int, ...] | None = None
    repeats: int = ROUNDS
    threads: int | tuple[int, ...] | None = None
    checkpoint: Path | None = None
    images: Path | None = None
    scenarios: tuple[str, ...] = ()
    p99_bound: float | None = None
    seconds: float | None = None
    profile: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"a measurement needs at least one repeat, got {self.repeats}")
        if not self.thread_counts or min(self.thread_counts) < 1:
            raise UserError(f"a measurement needs at least one thread, got {self.threads}")
        unknown = sorted(set(self.scenarios) - set(SCENARIOS))
        if unknown:
            raise UserError(f"unknown scenario {', '.join(unknown)}: take {', '.join(SCENARIOS)}")
        for name, value in (("the p99 bound", self.p99_bound), ("seconds", self.seconds)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be above 0 and finite, got {value}")

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """The numbers of threads, each once."""
        if self.threads is None:
            return (available_cores(),)
        given = (self.threads,) if isinstance(self.threads, int) else self.threads
        return tuple(dict.fromkeys(given))

    @property
    def command(self) -> str:
        """The command that measures the same again; paths are left out."""
        words = ["drx bench BUNDLE"]
        words += [] if self.engine is None else [f"--engine {self.engine}"]
        words += [f"--baseline {name}" for name in self.baselines]
        words += [f"--against {name.upper()}" for name in self.against]
        words += [f"--scenario {name}" for name in self.scenarios]
        numbers = {
            "batch": None if self.batches is None else ",".join(map(str, self.batches)),
            "repeats": None if self.repeats == ROUNDS else self.repeats,
            "threads": None if self.threads is None else ",".join(map(str, self.thread_counts)),
            "p99-bound": self.p99_bound,
            "seconds": self.seconds,
            "checkpoint": None if self.checkpoint is None else "FILE",
            "images": None if self.images is None else "DIR",
        }
        words += [f"--{name} {value}" for name, value in numbers.items() if value is not None]
        return " ".join(words + ["--profile"] * self.profile)


def bench(
    bundle: str | Path, options: BenchOptions | None = None, progress: Progress = SILENT
) -> BenchReport:
    """Measure a bundle's engine on this machine.

    The engine and the baselines see the same pixels and run once each in every round, in random
    order, so that whatever else the machine does affects all of them. Ratios are taken within a
    round. The engine runs a second time in each: the difference between its two times is the noise.

    Raises UserError for what cannot be measured, or does not fit together.

    Example:
        from drexperts.bench import BenchOptions, bench
        from drexperts.bench.timing import Summary

        report = bench("bundle", BenchOptions(baselines=("eager-dense",)))
        report.batches[0].ratio("eager-dense").p50, Summary.of(report.image.image_e2e).p99
    """
    bundle, options = Path(bundle), options or BenchOptions()
    # Set for all variants, because their own defaults differ.
    threads, *sweep = options.thread_counts
    if options.baselines:
        baseline_names(options.baselines)  # a mistake is reported before anything is measured
    watch, machine, source = Watch(), this_machine(threads), this_source(*PACKAGES)
    images = [photograph()] if options.images is None else _photographs(options.images)
    with runtime.load(bundle, engine=options.engine, threads=threads) as scorer:
        pixels = _pixels(scorer, options.batches)
        if sweep and device_of(scorer) != "cpu":
            raise UserError(
                "threads are of the CPU, and this engine runs on a GPU: name one number"
            )
        if options.checkpoint is not None:
            _check_weights(bundle, scorer, options.checkpoint, progress)
        progress("cold start in a process of its own")
        largest = max(len(batch) for batch in pixels)
        file = scorer.engine.file
        cold, memory = cold_start(bundle, largest, threads, _gpu(scorer), file)
        variants = prepared(
            scorer,
            bundle,
            pixels,
            threads=threads,
            sweep=sweep,
            baselines=options.baselines,
            against=options.against,
            checkpoint=options.checkpoint,
            progress=progress,
        )
        running = {ENGINE: scorer.session.run, AGAIN: scorer.session.run} | variants.running
        batches = []
        for each in pixels:
            batches.append(_batch_times(running, each, options.repeats, progress))
            watch.look()
        gpus_after = gpus()  # now, because a GPU that rests is not throttled
        alone = _alone(scorer, images, pixels, options, progress)
        roofline = _roofline(scorer, threads)
        profile = _profile(scorer, images[0], options, variants.left_out, progress)
        return BenchReport(
            command=options.command,
            machine=machine,
            source=source,
            bundle=described(bundle, scorer),
            weights="random" if options.checkpoint is None else sha256_of(options.checkpoint),
            cold_start=cold,
            memory=memory,
            gpus_after=gpus_after,
            against=variants.against,
            agreement=variants.agreement,
            batches=tuple(batches),
            engine_gpu=alone.engine_gpu,
            image=alone.image,
            energy=alone.energy,
            scenarios=alone.scenarios,
            roofline=roofline,
            profile=profile,
            left_out=variants.left_out,
            warm_ups=WARM_UP,
            conditions=watch.conditions(),
        )


def _check_weights(bundle: Path, scorer: Scorer, checkpoint: Path, progress: Progress) -> None:
    """Raises UserError for a checkpoint that is not the bundle's."""
    from drexperts.export.proof.prove import check_same_weights
    from drexperts.model.checkpoint import load_checkpoint

    progress("comparing the checkpoint with the bundle")
    check_same_weights(bundle, scorer.manifest, load_checkpoint(checkpoint))


def _batch_times(
    running: Mapping[str, Run], pixels: NDArray[np.uint8], rounds: int, progress: Progress
) -> BatchTimes:
    calls = {name: lambda run=run: run(pixels) for name, run in running.items()}
    batch = len(pixels)
    return BatchTimes(batch, alternately(calls, rounds, Prefixed(progress, f"batch {batch}")))


class _Alone(NamedTuple):
    """What is measured of the engine by itself."""

    engine_gpu: tuple[BatchTimes, ...]
    image: ImageTimes
    energy: Energy
    scenarios: Scenarios


def _alone(
    scorer: Scorer,
    images: Sequence[bytes],
    pixels: Sequence[NDArray[np.uint8]],
    options: BenchOptions,
    progress: Progress,
) -> _Alone:
    compute = []
    for batch in pixels:
        progress(f"batch {len(batch)}: the computation alone")
        taken = _compute_times(scorer, batch, options.repeats)
        compute.append(BatchTimes(len(batch), {ENGINE: taken}))
    progress("images, from their bytes to their Scores")
    own = options.images is not None
    image, energy = image_times(scorer, images, options.repeats, own=own)
    single_s = median(image.image_e2e)
    measured = scenarios.measure(
        options.scenarios,
        scorer,
        images,
        single_s=single_s,
        bound_s=options.p99_bound or BOUND * single_s,
        time_limit=options.seconds,
        progress=progress,
    )
    return _Alone(tuple(compute), image, energy, measured)


def _compute_times(scorer: Scorer, pixels: NDArray[np.uint8], rounds: int) -> tuple[float, ...]:
    session, times = scorer.session, []
    assert isinstance(session, (OnnxSession, OpenvinoSession, TensorrtSession))
    for _ in range(WARM_UP + rounds):
        time.sleep(SETTLE)
        times.append(session.compute_seconds(pixels))
    return tuple(times[WARM_UP:])


def image_times(
    scorer: Scorer, images: Sequence[bytes], repeats: int, *, own: bool = True
) -> tuple[ImageTimes, Energy]:
    """Images one by one, in turn, and the energy of scoring them.

    Decoding and cropping use one core. Both are repeated at least `repeats` times; images are
    scored for at least `WINDOW` seconds.

    own: whether the images are the user's
    """
    spec = scorer.preprocessing
    turns = itertools.cycle(images)
    counts = [len(crops_from_image(decode(image), spec).pixels) for image in images]
    prepare = [seconds(lambda: crops_from_image(decode(next(turns)), spec)) for _ in range(repeats)]
    scorer.score(images[0])  # warm
    whole: list[float] = []
    with Window(_gpu(scorer)) as window:
        end = time.perf_counter() + WINDOW
        while len(whole) < repeats or time.perf_counter() < end:
            whole.append(seconds(lambda: scorer.score(next(turns))))
    photographs = len(images) if own else 0
    times = ImageTimes(photographs, tuple(counts), tuple(prepare), tuple(whole))
    return times, window.energy(len(whole))


def _profile(
    scorer: Scorer,
    image: bytes,
    options: BenchOptions,
    left_out: dict[str, str],
    progress: Progress,
) -> Profile | None:
    """None where it was not asked for or cannot be made; the reason goes to `left_out`."""
    if not options.profile:
        return None
    from drexperts.bench.profile import profile_engine

    try:
        return profile_engine(scorer, rounds=options.repeats, image=image, progress=progress)
    except UserError as reason:
        left_out["profile"] = str(reason)
        return None


def _roofline(scorer: Scorer, threads: int) -> Roofline | None:
    """None without PyTorch, which counts the operations."""
    try:
        from drexperts.bench import roofline
        from drexperts.model.config import DRExpertsConfig
    except ModuleNotFoundError:
        return None
    config, engine = DRExpertsConfig.from_dict(scorer.manifest.config), scorer.engine
    # What ONNX Runtime computes in on a CPU is not known, and float32 is the common roof.
    types = {"openvino": tuple(engine.products), "onnx": ()}.get(
        engine.backend, (engine.precision,)
    )
    return roofline.measure(config, engine.precision, threads, device_of(scorer), types=types)


def _pixels(scorer: Scorer, batches: Sequence[int] | None) -> list[NDArray[np.uint8]]:
    """Random pixels of each batch size. Raises UserError for one that the bundle does not take."""
    most, side = scorer.session.max_batch, scorer.preprocessing.crop
    sizes = [size for size in BATCHES if size <= most] if batches is None else batches
    if any(not 1 <= size <= most for size in sizes):
        raise UserError(
            f"this bundle is certified for batches of 1 to {most}, asked for {list(sizes)}: larger "
            "ones need an export that proves them"
        )
    draw = np.random.default_rng(0).integers
    return [draw(0, 256, (size, 3, side, side), dtype=np.uint8) for size in sizes]


def _photographs(folder: Path) -> list[bytes]:
    """The first readable images of a folder. Raises UserError where there is none."""
    readable = filter(_is_readable, find_images([str(folder)]).paths)
    found = [path.read_bytes() for path in itertools.islice(readable, MOST_IMAGES)]
    if not found:
        raise UserError(f"{folder} holds no readable image: name a folder of photographs")
    return found


def _is_readable(path: Path) -> bool:
    try:
        decode(path)
    except ImageError:
        return False
    return True


def _gpu(scorer: Scorer) -> str | None:
    """The GPU of an engine as NVML names it, which does not follow CUDA_VISIBLE_DEVICES."""
    if device_of(scorer) == "cpu":
        return None
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
