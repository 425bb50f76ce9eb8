"""Latency of a bundle's engine, alone or alternately with others in one run, and what it costs."""

import itertools
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from drexperts import runtime
from drexperts.bench import scenarios
from drexperts.bench import tables as bench_tables
from drexperts.bench.caveats import boundaries, warnings
from drexperts.bench.cold_start import cold_start
from drexperts.bench.lineup import ENGINE, Entrants, card, device_of, enter, named
from drexperts.bench.provenance import gpu_cards, head, physical_cores
from drexperts.bench.tables import AGAIN
from drexperts.bench.telemetry import Window
from drexperts.bench.timing import SETTLE, photograph, ratio, ratio_text, seconds, statistics
from drexperts.runtime.errors import ImageError, UserError
from drexperts.runtime.manifest import sha256_of
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.preprocess import crops_from_image, decode
from drexperts.runtime.progress import SILENT, Prefixed, Progress
from drexperts.runtime.results import find_images
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.tensorrt_session import TensorrtSession
from drexperts.ui import markdown as page

WARM_UP = 1  # calls of each contender before any is timed, beside those that admitted it
ROUNDS = 15
BATCHES = (1, 4)
SCENARIOS = ("single_stream", "multi_stream", "server", "offline")
BOUND = 3.0  # of the server's p99 where none is given, in times of an image alone
MOST_IMAGES = 100  # of a folder of photographs
WINDOW = 2.0  # seconds of scoring, which the readings of a GPU's power need

# Whose source the numbers speak of.
MODULES = (
    "drexperts.model.dr_experts",
    "drexperts.model.experts",
    "drexperts.model.backbones",
    "drexperts.kernels",
    "drexperts.bench.bundle",
    "drexperts.bench.cold_start",
    "drexperts.bench.baselines",
    "drexperts.bench.lineup",
    "drexperts.bench.graph_parts",
    "drexperts.bench.profile",
    "drexperts.bench.roofline",
    "drexperts.bench.scenarios",
    "drexperts.bench.telemetry",
    "drexperts.bench.timing",
    "drexperts.export.graph.calibration",
    "drexperts.export.graph.fold",
    "drexperts.export.graph.int8_products",
    "drexperts.export.graph.precision",
    "drexperts.export.graph.sensitivity",
    "drexperts.export.graph.to_onnx",
    "drexperts.runtime.cuda",
    "drexperts.runtime.onnx_providers",
    "drexperts.runtime.onnx_session",
    "drexperts.runtime.preprocess",
    "drexperts.runtime.scorer",
    "drexperts.runtime.tensorrt_plan",
    "drexperts.runtime.tensorrt_session",
)


@dataclass(frozen=True)
class Settings:
    """What is measured beside the engine, and how often.

    baselines: see `entrants.named`; they need the `export` extra
    others: bundles of the same model, by the names they are to have
    batches: crops in a call; None is 1 and 4, as far as the bundle admits them
    repeats: rounds for each batch
    threads: of every engine and of PyTorch; None is one a physical core
    checkpoint: what the bundle was exported from: the weights of the baselines; None makes random
        ones, which cost the same
    images: a folder of photographs, of which 100 are used at most; None makes one photograph
    scenarios: of `SCENARIOS`
    p99_bound: seconds, of the server; None is 3 times what an image alone takes
    seconds: of each scenario; None is 20, and 240 for the server
    profile: also where the time goes

    Raises UserError for what cannot be.
    """

    baselines: tuple[str, ...] = ()
    others: Mapping[str, Path] = field(default_factory=dict)
    batches: tuple[int, ...] | None = None
    repeats: int = ROUNDS
    threads: int | None = None
    checkpoint: Path | None = None
    images: Path | None = None
    scenarios: tuple[str, ...] = ()
    p99_bound: float | None = None
    seconds: float | None = None
    profile: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"a measurement needs one repeat at least, got {self.repeats}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"a measurement needs one thread at least, got {self.threads}")
        unknown = sorted(set(self.scenarios) - set(SCENARIOS))
        if unknown:
            raise UserError(f"unknown scenario {', '.join(unknown)}: take {', '.join(SCENARIOS)}")
        for name, value in (("the p99 bound", self.p99_bound), ("seconds", self.seconds)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be above 0 and finite, got {value}")

    @property
    def command(self) -> str:
        """What measures the same again; paths are left out."""
        words = ["drx bench BUNDLE"]
        words += [f"--baseline {name}" for name in self.baselines]
        words += [f"--against {name.upper()}" for name in self.others]
        words += [f"--scenario {name}" for name in self.scenarios]
        numbers = {
            "batch": None if self.batches is None else ",".join(map(str, self.batches)),
            "repeats": None if self.repeats == ROUNDS else self.repeats,
            "threads": self.threads,
            "p99-bound": self.p99_bound,
            "seconds": self.seconds,
            "checkpoint": None if self.checkpoint is None else "FILE",
            "images": None if self.images is None else "DIR",
        }
        words += [f"--{name} {value}" for name, value in numbers.items() if value is not None]
        return " ".join(words + ["--profile"] * self.profile)


def bench_bundle(
    bundle: Path, settings: Settings | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Measure a bundle's engine on this machine.

    Engine and contenders see the same pixels and run once each in every round, in random order, so
    that whatever else the machine does falls on all of them. Ratios are taken within a round. The
    engine has a second turn in each, `bench_tables.AGAIN`: how far it is from itself is the noise.

    Returns:
        A JSON-ready report; times in seconds. "left_out" is who cannot run, or computes something
        else, with the reasons; "agreement" how far their scores are apart, see
        `contenders.difference`; "gpus_after" the GPUs right after the last round of the last batch.

    Raises UserError for what cannot be measured, or does not fit together.
    """
    settings = settings or Settings()
    # Told to all, for by themselves they take different numbers.
    threads = physical_cores() if settings.threads is None else settings.threads
    if settings.baselines:
        named(settings.baselines)  # a mistake is told before anything is measured
    images = [photograph()] if settings.images is None else _photographs(settings.images)
    with runtime.load(bundle, threads=threads) as scorer:
        pixels = _pixels(scorer, settings.batches)
        if settings.checkpoint is not None:
            _check_weights(bundle, scorer, settings.checkpoint, progress)
        progress("cold start in a process of its own")
        largest = max(len(batch) for batch in pixels)
        report = head("bench", settings.command, MODULES, threads)
        report |= {
            "bundle": card(bundle, scorer),
            "weights": "random" if settings.checkpoint is None else sha256_of(settings.checkpoint),
            "boundaries": boundaries(scorer),
            **cold_start(bundle, largest, threads, _gpu(scorer)),
        }
        report |= _side_by_side(scorer, bundle, pixels, settings, threads, progress)
        report |= _alone(scorer, images, pixels, settings, progress)
        report["roofline"] = _roofline(scorer, threads)
        report["profile"] = None
        if settings.profile:
            try:
                report["profile"] = _profile(scorer, images[0], settings.repeats, progress)
            except UserError as reason:
                report["left_out"]["profile"] = str(reason)
    report["warnings"] = warnings(report, report["machine"]["gpus"], report["gpus_after"])
    return report


def _check_weights(bundle: Path, scorer: Scorer, checkpoint: Path, progress: Progress) -> None:
    """Raises UserError for a checkpoint that is not the bundle's."""
    from drexperts.export.proof.prove import check_same_weights
    from drexperts.model.checkpoint import load_checkpoint

    progress("holding the checkpoint against the bundle")
    check_same_weights(bundle, scorer.manifest, scorer.engine, load_checkpoint(checkpoint))


def alternately(
    contenders: Mapping[str, Callable[[], object]], rounds: int, tell: Progress = SILENT
) -> dict[str, list[float]]:
    """Seconds of each contender's calls: one in every round, in random order."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    shuffle = random.Random(0).shuffle
    for i in range(-WARM_UP, rounds):
        tell(f"round {max(0, i + 1)} of {rounds}")
        turns = list(contenders)
        shuffle(turns)
        for name in turns:
            time.sleep(SETTLE)
            taken = seconds(contenders[name])
            if i >= 0:
                times[name].append(taken)
    return times


def _side_by_side(
    scorer: Scorer,
    bundle: Path,
    pixels: Sequence[NDArray[np.uint8]],
    settings: Settings,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    """Everybody who can run, batch by batch."""
    entrants = enter(
        scorer,
        bundle,
        pixels,
        baselines=settings.baselines,
        others=settings.others,
        threads=threads,
        checkpoint=settings.checkpoint,
        progress=progress,
    )
    batches = [_batch_times(entrants, batch, settings.repeats, progress) for batch in pixels]
    return {
        "gpus_after": gpu_cards(),  # first, for a GPU that rests is not throttled
        "against": entrants.against,
        "agreement": entrants.agreement,
        "noise_floor": batches[0]["ratio"][AGAIN],
        "left_out": entrants.left_out,
        "batches": batches,
    }


def _batch_times(
    entrants: Entrants, pixels: NDArray[np.uint8], rounds: int, progress: Progress
) -> dict[str, Any]:
    running = {ENGINE: entrants.running[ENGINE], AGAIN: entrants.running[ENGINE]}
    running |= entrants.running
    calls = {name: lambda run=run: run(pixels) for name, run in running.items()}
    batch = len(pixels)
    times = alternately(calls, rounds, Prefixed(progress, f"batch {batch}"))
    return {
        "batch": batch,
        "boundary": "engine_e2e",
        "latency": {name: statistics(taken) for name, taken in times.items()},
        "ratio": {n: ratio(taken, times[ENGINE]) for n, taken in times.items() if n != ENGINE},
    }


def _alone(
    scorer: Scorer,
    images: Sequence[bytes],
    pixels: Sequence[NDArray[np.uint8]],
    settings: Settings,
    progress: Progress,
) -> dict[str, Any]:
    """What is measured of the engine by itself."""
    compute = []
    for batch in pixels:
        progress(f"batch {len(batch)}: the compute alone")
        taken = _compute_times(scorer, batch, settings.repeats)
        compute.append({"batch": len(batch), "latency": {ENGINE: statistics(taken)}})
    progress("images, from their bytes to their Scores")
    image = image_times(scorer, images, settings.repeats)
    image["image"]["photographs"] = 0 if settings.images is None else len(images)
    single_s = image["image"]["image_e2e"]["p50"]
    return {
        "engine_gpu": compute,
        **image,
        "scenarios": _scenarios(scorer, images, single_s, settings, progress),
    }


def _compute_times(scorer: Scorer, pixels: NDArray[np.uint8], rounds: int) -> list[float]:
    session, times = scorer.session, []
    assert isinstance(session, (OnnxSession, TensorrtSession))
    for _ in range(WARM_UP + rounds):
        time.sleep(SETTLE)
        times.append(session.compute_seconds(pixels))
    return times[WARM_UP:]


def image_times(scorer: Scorer, images: Sequence[bytes], repeats: int) -> dict[str, Any]:
    """Images one by one, in turn: "image", their times, and "energy", that of each.

    Decoding and cropping are on one core. There are `repeats` of either at least; images are
    scored until there is enough to read a GPU's power.
    """
    spec = scorer.manifest.preprocessing
    turns = itertools.cycle(images)
    counts = [len(crops_from_image(decode(image), spec).pixels) for image in images]
    prepare = [seconds(lambda: crops_from_image(decode(next(turns)), spec)) for _ in range(repeats)]
    scorer.score(images[0])  # warm
    whole: list[float] = []
    with Window(_gpu(scorer)) as window:
        end = time.perf_counter() + WINDOW
        while len(whole) < repeats or time.perf_counter() < end:
            whole.append(seconds(lambda: scorer.score(next(turns))))
    times = {"preprocess": statistics(prepare), "image_e2e": statistics(whole)}
    crops = round(fmean(counts), 2) if len(images) > 1 else counts[0]
    return {"image": {"crops": crops} | times, "energy": window.energy(len(whole))}


def _scenarios(
    scorer: Scorer,
    images: Sequence[bytes],
    single_s: float,
    settings: Settings,
    progress: Progress,
) -> dict[str, Any]:
    """single_s: seconds for an image alone."""
    limit: dict[str, float] = {} if settings.seconds is None else {"time_limit": settings.seconds}
    bound = settings.p99_bound or BOUND * single_s
    found: dict[str, Any] = {}
    for name in SCENARIOS:
        if name in settings.scenarios:
            given = (bound, single_s) if name == "server" else ()
            run = getattr(scenarios, name)
            found[name] = run(scorer, images, *given, progress=progress, **limit)
    return found


def _profile(scorer: Scorer, image: bytes, rounds: int, progress: Progress) -> dict[str, Any]:
    from drexperts.bench.profile import profile_engine

    return profile_engine(scorer, rounds=rounds, image=image, progress=progress)


def _roofline(scorer: Scorer, threads: int) -> dict[str, Any] | None:
    """None without PyTorch, which counts the operations."""
    try:
        from drexperts.bench import roofline
        from drexperts.model.config import DRExpertsConfig
    except ModuleNotFoundError:
        return None
    config = DRExpertsConfig.from_dict(scorer.manifest.config)
    return roofline.measure(config, scorer.engine.precision, threads, device_of(scorer))


def _pixels(scorer: Scorer, batches: Sequence[int] | None) -> list[NDArray[np.uint8]]:
    """Random pixels of each batch size. Raises UserError for one that the bundle does not admit."""
    most, side = scorer.session.max_batch, scorer.manifest.preprocessing.crop
    sizes = [size for size in BATCHES if size <= most] if batches is None else batches
    if any(not 1 <= size <= most for size in sizes):
        raise UserError(f"this bundle admits batches of 1 to {most}, asked for {list(sizes)}")
    draw = np.random.default_rng(0).integers
    return [draw(0, 256, (size, 3, side, side), dtype=np.uint8) for size in sizes]


def _photographs(folder: Path) -> list[bytes]:
    """The first readable images of a folder. Raises UserError where there is none."""
    readable = filter(_is_readable, find_images([str(folder)]))
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
    """The GPU of an engine as nvidia-smi names it, which knows of no CUDA_VISIBLE_DEVICES."""
    if device_of(scorer) == "cpu":
        return None
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"


def print_report(report: dict[str, Any], console: Console) -> None:
    """The report as tables."""
    machine = report["machine"]
    console.print(f"{machine['cpu']}, {machine['cores']} cores; {report['bundle']['session']}")
    console.print(_latencies(report))
    console.print(bench_tables.noise_floor(report))
    for title, table in (
        ("computing alone, engine_gpu", bench_tables.latency(report["engine_gpu"])),
        ("a photograph", bench_tables.image(report)),
        ("scenarios", bench_tables.scenarios(report)),
        ("the server's trials", bench_tables.server_trials(report)),
        ("where the time of an image goes", bench_tables.parts(report)),
        ("the dearest layers", bench_tables.layers(report)),
        ("what is timed", bench_tables.boundaries(report)),
        ("what it costs", bench_tables.costs(report)),
        ("roofline", bench_tables.roofline(report)),
        ("left out", bench_tables.left_out(report)),
    ):
        if table.rows:
            console.print(_rich(table, title))
    for warning in report["warnings"]:
        console.print(f"warning: {warning}")


def _latencies(report: dict[str, Any]) -> Table:
    quantiles = ("p50", "p90", "p95", "p99", "mean")
    headings = ("batch", "", *(f"{q} ms" for q in quantiles), "cv", "crops/s", "times the engine")
    table = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"  # in a narrow terminal nothing is cut
    for entry in report["batches"]:
        for name, times in bench_tables.contenders(entry).items():
            milliseconds = [bench_tables.milliseconds(times[q]) for q in quantiles]
            rate = bench_tables.text(entry["batch"] / times["p50"])
            shown = ratio_text(entry["ratio"].get(name))
            row = [str(entry["batch"]), name, *milliseconds, f"{times['cv']:.0%}", rate, shown]
            table.add_row(*row)
    return table


def _rich(table: page.Table, title: str) -> Table:
    """A table for the terminal. One of names and values has no headings."""
    columns = table.headings or ("",) * len(table.rows[0])
    made = Table(
        *columns,
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_header=bool(table.headings),
    )
    for row in table.rows:
        made.add_row(*row)
    return made
