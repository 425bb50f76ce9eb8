"""Measure the full-size model on this machine, with random weights.

    python benchmarks/bench_full_size.py [--precision fp32 --precision auto] [--receipt FILE]
        [--openvino fp32 --openvino bf16 --openvino auto] [--engine FILE] [--keep]

Random weights cost what trained ones do. A bundle is exported and verified like any other, and
gets an engine for OpenVINO in each precision that is named. One engine is measured in every
scenario and by its parts; the others are timed in the same rounds, beside the baselines. Of each
engine the start is measured, with and without a compiled model in the cache, and an image from its
bytes to its Score; of one for OpenVINO also two callers at once, in one stream and in two. Proofs
take most of the time, so with --keep the engines that --runs already has are measured as they are:
make them first, and measure when nothing else runs. With --quick it is a trial of the script on a
small model, whose numbers mean nothing.
"""

import argparse
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from drexperts import runtime
from drexperts.bench.bundle import ROUNDS, BenchOptions, bench, image_times
from drexperts.bench.cold_start import cold_start
from drexperts.bench.json_files import write_json
from drexperts.bench.report import print_report
from drexperts.bench.reports import ENGINE, ColdStart
from drexperts.bench.scenarios import SCENARIOS
from drexperts.bench.timing import alternately, photograph
from drexperts.bench.variants import names_of
from drexperts.benchmarks.random_weights import SCALE, random_checkpoint, random_model
from drexperts.benchmarks.receipt_types.full_size_receipt import (
    EngineCosts,
    FullSizeReceipt,
    Proofs,
    StreamTimes,
)
from drexperts.benchmarks.receipt_types.receipt import add_receipt_option
from drexperts.export.bundle import ExportPrecision, export_bundle
from drexperts.export.engines.build import build_engine
from drexperts.export.proof.photographs import Images, verification_images
from drexperts.model.checkpoint import Checkpoint, default_preprocessing, save_checkpoint
from drexperts.model.config import ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.runtime.cpus import available_cores
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import FILE_NAME, Engine, read_manifest
from drexperts.runtime.progress import Progress
from drexperts.runtime.session import Session
from drexperts.ui.screen import Screen
from drexperts.ui.tables import proof_table

BASELINES = ("eager-dense", "eager-reduced", "onnx-dense", "openvino", "openvino-fp32", "backbones")
SECONDS, QUICK_SECONDS = 30.0, 2.0  # for each scenario
QUICK_IMAGES, QUICK_ROUNDS = 12, 3
CALLERS = 2  # at once, when streams are compared
CALLS = 4  # of each caller in a round


def quick_checkpoint(preset: str) -> Checkpoint:
    """A small model of a preset, which shows whether the script works."""
    encoder = EncoderConfig(image_size=64, patch_size=16, width=32, depth=2, heads=2)
    controller = ControllerConfig(48, 16, width=48, depth=2, heads=3, embedding=24)
    config = getattr(DRExpertsConfig, preset)().with_sizes(encoder, controller)
    return Checkpoint(random_model(config), SCALE, default_preprocessing(config))


def exported(
    checkpoint: Checkpoint,
    precision: ExportPrecision,
    folder: Path,
    *,
    quick: bool,
    keep: bool,
    progress: Progress,
) -> Path:
    """A bundle in one precision, unless the folder has it and it is to be kept."""
    bundle = folder / f"full-size-{checkpoint.model.config.preset}-{precision}"
    if keep and (bundle / FILE_NAME).is_file():
        return bundle
    export_bundle(
        checkpoint, bundle, images=pictures(quick), precision=precision, progress=progress
    )
    return bundle


def pictures(quick: bool) -> Images:
    """What engines are proven on: few photographs in a trial."""
    return verification_images()[:QUICK_IMAGES] if quick else None


def has_openvino(bundle: Path, precision: str) -> bool:
    """Whether a bundle has an engine for OpenVINO in a precision; that of "auto" was searched."""
    return any(
        each.precision == precision or (precision == "auto" and each.frontier)
        for each in read_manifest(bundle).engines
        if each.backend == "openvino"
    )


def with_openvino(
    bundle: Path, checkpoint: Checkpoint, precisions: list[str], *, quick: bool, progress: Progress
) -> dict[str, str]:
    """Add an engine for OpenVINO in each precision; return why those are missing that cannot be."""
    left_out = {}
    for precision in precisions:
        try:
            build_engine(
                bundle,
                "openvino",
                precision=precision,  # type: ignore[arg-type]
                checkpoint=checkpoint,
                images=pictures(quick),
                progress=progress,
            )
        except UserError as reason:
            left_out[f"openvino {precision}"] = str(reason)
    return left_out


def proofs(engine: Engine) -> Proofs:
    """How an engine was proven."""
    return Proofs(engine.parity, engine.invariance, bool(engine.frontier))


def engine_costs(bundle: Path, engine: Engine, rounds: int) -> EngineCosts:
    """The start of an engine in a process of its own, and one image in this process."""
    threads = available_cores()

    def start() -> ColdStart:
        return cold_start(bundle, 1, threads, None, engine.file)[0]

    with empty_cache():
        cold, warm = start(), tuple(start() for _ in range(min(rounds, 3)))
    with runtime.load(bundle, engine=engine.file, threads=threads, allow_unverified=True) as scorer:
        image, _ = image_times(scorer, [photograph()], rounds, own=False)
    return EngineCosts(cold, warm, image)


@contextmanager
def empty_cache() -> Iterator[None]:
    """Processes that are started inside this context have a cache and a state of their own."""
    names = ("XDG_CACHE_HOME", "XDG_STATE_HOME")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {name: str(Path(folder, name)) for name in names}
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                os.environ |= {} if value is None else {name: value}


def stream_times(bundle: Path, engine: Engine, rounds: int, tell: Progress) -> StreamTimes:
    """Several callers at once, each with one crop after another, by the number of streams."""
    threads, manifest = available_cores(), read_manifest(bundle)
    side = manifest.preprocessing.crop
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), np.uint8)
    opened = {
        str(streams): runtime.open_engine(bundle, manifest, engine, threads, streams=streams)
        for streams in dict.fromkeys((1, threads))
    }
    calls = {
        name: lambda session=scorer.session: _at_once(session, pixels)
        for name, scorer in opened.items()
    }
    taken = alternately(calls, rounds, tell)
    for scorer in opened.values():
        scorer.close()
    return StreamTimes(engine.file, threads, CALLERS * CALLS, taken)


def _at_once(session: Session, pixels: np.ndarray) -> None:
    def call() -> None:
        for _ in range(CALLS):
            session.run(pixels)

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


def chosen_engine(bundle: Path, name: str | None) -> Engine:
    """The engine that is measured most: the one that is named, else OpenVINO's nearest to bfloat16.

    Without one for OpenVINO it is the bundle's own.
    """
    engines = read_manifest(bundle).engines
    if name is not None:
        return next(each for each in engines if name in (each.backend, each.file))
    of_openvino = {each.precision: each for each in engines if each.backend == "openvino"}
    found = (of_openvino.get(precision) for precision in ("bf16", "fp32", "int8"))
    return next((each for each in found if each is not None), engines[0])


def arguments_of(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=("paper", "official"), default="official")
    parser.add_argument("--precision", choices=("fp32", "int8", "auto"), action="append")
    parser.add_argument("--openvino", choices=("fp32", "bf16", "int8", "auto"), action="append")
    parser.add_argument(
        "--engine", help="the one that is measured most (default: bf16 by OpenVINO)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--keep", action="store_true", help="measure what --runs already has")
    parser.add_argument("--quick", action="store_true", help="a trial of the script")
    add_receipt_option(parser)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    arguments = arguments_of(given)
    console, quick, runs = Console(), arguments.quick, arguments.runs
    checkpoint = (quick_checkpoint if quick else random_checkpoint)(arguments.preset)
    runs.mkdir(parents=True, exist_ok=True)
    save_checkpoint(checkpoint, runs / f"full-size-{arguments.preset}.safetensors")
    with Screen().progress() as progress:
        first, *others = [
            exported(
                checkpoint, precision, runs, quick=quick, keep=arguments.keep, progress=progress
            )
            for precision in arguments.precision or ["fp32"]
        ]
        asked = [
            precision
            for precision in arguments.openvino or []
            if not (arguments.keep and has_openvino(first, precision))
        ]
        missing = with_openvino(first, checkpoint, asked, quick=quick, progress=progress)
        for bundle in (first, *others):
            for engine in read_manifest(bundle).engines:
                console.print(proof_table(engine))
        receipt = measured(first, others, arguments, progress)
    receipt = replace(
        receipt,
        report=replace(
            receipt.report,
            command=_command(arguments),
            left_out=receipt.report.left_out | missing,
        ),
    )
    print_report(receipt.report, console)
    if arguments.receipt:
        write_json(receipt, arguments.receipt)
        console.print(f"wrote {arguments.receipt}")


def measured(
    first: Path, others: list[Path], arguments: argparse.Namespace, progress: Progress
) -> FullSizeReceipt:
    """All engines of the first bundle and the best of each other one, and the baselines."""
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    most = chosen_engine(first, arguments.engine)
    options = BenchOptions(
        engine=most.file,
        baselines=BASELINES,
        against=names_of(others),
        repeats=rounds,
        scenarios=SCENARIOS,
        seconds=QUICK_SECONDS if arguments.quick else SECONDS,
        profile=True,
    )
    report = bench(first, options, progress)
    places = {engine.file: (first, engine) for engine in read_manifest(first).engines}
    named = {ENGINE: places[most.file]}
    for name, described in report.against.items():
        bundle = options.against.get(name)
        named[name] = places[described.engine] if bundle is None else _only_engine(bundle)
    costs = {}
    for name, (bundle, engine) in named.items():
        progress(f"{name}: its start, and an image")
        costs[name] = engine_costs(bundle, engine, QUICK_ROUNDS)
    streams = stream_times(first, most, rounds, progress) if most.backend == "openvino" else None
    proven = {name: proofs(engine) for name, (_, engine) in named.items()}
    return FullSizeReceipt(report, proven, costs, streams)


def _only_engine(bundle: Path) -> tuple[Path, Engine]:
    return bundle, read_manifest(bundle).engines[0]


def _command(arguments: argparse.Namespace) -> str:
    words = ["python benchmarks/bench_full_size.py", f"--preset {arguments.preset}"]
    words += [f"--precision {precision}" for precision in arguments.precision or []]
    words += [f"--openvino {precision}" for precision in arguments.openvino or []]
    words += [] if arguments.engine is None else [f"--engine {arguments.engine}"]
    return " ".join(words + ["--quick"] * arguments.quick)


if __name__ == "__main__":
    main()
