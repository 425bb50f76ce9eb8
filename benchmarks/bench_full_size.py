"""Measure the full-size model on this machine, with random weights.

    python benchmarks/bench_full_size.py [--precision int8 --precision fp32] [--receipt FILE]

Random weights cost what trained ones do. The bundle is exported and verified like any other, then
measured beside every baseline that runs here, in every scenario, and by its parts. Of several
precisions the first is the engine, and the others are timed in the same rounds. With --quick it is
a trial of the script, whose numbers mean nothing.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from drexperts.bench.bundle import ROUNDS, BenchOptions, bench
from drexperts.bench.json_files import write_json
from drexperts.bench.report import print_report
from drexperts.bench.reports import ENGINE
from drexperts.bench.scenarios import SCENARIOS
from drexperts.bench.variants import names_of
from drexperts.benchmarks.random_weights import random_checkpoint
from drexperts.benchmarks.receipt_types.full_size_receipt import FullSizeReceipt, Proofs
from drexperts.benchmarks.receipt_types.receipt import add_receipt_option
from drexperts.export.bundle import ExportPrecision, export_bundle
from drexperts.export.proof.photographs import verification_images
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.runtime.manifest import read_manifest
from drexperts.runtime.progress import Progress
from drexperts.ui.screen import Screen
from drexperts.ui.tables import proof_table

QUICK_IMAGES, QUICK_ROUNDS, QUICK_SECONDS = 4, 3, 4.0


def exported(
    checkpoint: Checkpoint,
    precision: ExportPrecision,
    folder: Path,
    *,
    quick: bool,
    progress: Progress,
) -> Path:
    """A bundle in one precision."""
    bundle = folder / f"full-size-{checkpoint.model.config.preset}-{precision}"
    images = verification_images()[:QUICK_IMAGES] if quick else None
    export_bundle(checkpoint, bundle, images=images, precision=precision, progress=progress)
    return bundle


def proofs(bundle: Path) -> Proofs:
    """How the engine of a bundle was proven."""
    engine = read_manifest(bundle).engines[0]
    return Proofs(engine.parity, engine.invariance)


def arguments_of(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=("paper", "official"), default="official")
    parser.add_argument("--precision", choices=("fp32", "int8", "auto"), action="append")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--quick", action="store_true", help="a trial of the script")
    add_receipt_option(parser)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    arguments = arguments_of(given)
    console, quick, runs = Console(), arguments.quick, arguments.runs
    checkpoint = random_checkpoint(arguments.preset)
    runs.mkdir(parents=True, exist_ok=True)
    save_checkpoint(checkpoint, runs / f"full-size-{arguments.preset}.safetensors")
    with Screen().progress() as progress:
        first, *others = [
            exported(checkpoint, precision, runs, quick=quick, progress=progress)
            for precision in arguments.precision or ["fp32"]
        ]
        for bundle in (first, *others):
            console.print(proof_table(read_manifest(bundle).engines[0]))
        options = BenchOptions(
            baselines=("all",),
            against=names_of(others),
            repeats=QUICK_ROUNDS if quick else ROUNDS,
            scenarios=SCENARIOS,
            seconds=QUICK_SECONDS if quick else None,
            profile=True,
        )
        report = bench(first, options, progress)
    print_report(report, console)
    bundles = {ENGINE: first, **options.against}
    receipt = FullSizeReceipt(
        replace(report, command=_command(arguments)), {n: proofs(b) for n, b in bundles.items()}
    )
    if arguments.receipt:
        write_json(receipt, arguments.receipt)
        console.print(f"wrote {arguments.receipt}")


def _command(arguments: argparse.Namespace) -> str:
    words = ["python benchmarks/bench_full_size.py", f"--preset {arguments.preset}"]
    words += [f"--precision {precision}" for precision in arguments.precision or []]
    return " ".join(words + ["--quick"] * arguments.quick)


if __name__ == "__main__":
    main()
