"""Measure the full-size model on this machine, with random weights, and write a receipt.

    python benchmarks/bench_full_size.py [--precision int8 --precision fp32] [--receipt FILE]

Random weights cost what trained ones do. The bundle is exported and verified like any other, then
measured beside every baseline that runs here, in every scenario, and by its parts. Of several
precisions the first is the engine, and the others are timed in the same rounds. With --quick
everything is done a little, to see whether it runs: its numbers say nothing.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from drexperts.bench.bundle import ROUNDS, SCENARIOS, Settings, bench_bundle, print_report
from drexperts.bench.lineup import ENGINE, names_of
from drexperts.export.bundle import export_bundle
from drexperts.export.proof.photographs import verification_images
from drexperts.model.checkpoint import Checkpoint, default_preprocessing, save_checkpoint
from drexperts.model.config import DRExpertsConfig
from drexperts.model.dr_experts import new_model
from drexperts.runtime.files import written_whole
from drexperts.runtime.manifest import ScoreScale, read_manifest
from drexperts.runtime.progress import Progress
from drexperts.ui.screen import Screen
from drexperts.ui.tables import proof_table

QUICK_IMAGES, QUICK_ROUNDS, QUICK_SECONDS = 4, 3, 4.0


def random_checkpoint(preset: str) -> Checkpoint:
    """A full-size model whose every parameter is away from its initial value."""
    torch.manual_seed(0)
    model = new_model(DRExpertsConfig.preset_named(preset))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    scale = ScoreScale(-1.0, 1.0, higher_is_better=True)
    return Checkpoint(model, scale, default_preprocessing(model.config))


def exported(
    checkpoint: Checkpoint, precision: str, folder: Path, *, quick: bool, progress: Progress
) -> Path:
    """A bundle of one precision."""
    bundle = folder / f"full-size-{checkpoint.model.config.preset}-{precision}"
    images = verification_images()[:QUICK_IMAGES] if quick else None
    export_bundle(checkpoint, bundle, images, precision, progress=progress)
    return bundle


def proofs(bundles: dict[str, Path]) -> dict[str, Any]:
    """What was measured of each bundle against the model that it was exported from, None if not."""
    engines = {name: read_manifest(bundle).engines[0] for name, bundle in bundles.items()}
    found = {
        name: {"parity": engine.parity, "invariance": engine.invariance}
        for name, engine in engines.items()
    }
    return {
        name: {kind: None if proof is None else asdict(proof) for kind, proof in proven.items()}
        for name, proven in found.items()
    }


def gates(proven: dict[str, Any]) -> dict[str, bool]:
    """Whether each of the `proofs` was passed; one that is missing was not."""
    return {
        f"{kind} of {name}": proof is not None and proof["passed"]
        for name, proofs_of in proven.items()
        for kind, proof in proofs_of.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=("paper", "official"), default="official")
    parser.add_argument("--precision", choices=("fp32", "int8", "auto"), action="append")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--receipt", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    console, quick = Console(), arguments.quick
    checkpoint = random_checkpoint(arguments.preset)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    save_checkpoint(checkpoint, arguments.runs / f"full-size-{arguments.preset}.safetensors")
    with Screen().progress() as progress:
        first, *others = [
            exported(checkpoint, p, arguments.runs, quick=quick, progress=progress)
            for p in arguments.precision or ["fp32"]
        ]
        for bundle in (first, *others):
            console.print(proof_table(read_manifest(bundle).engines[0]))
        settings = Settings(
            baselines=("all",),
            others=names_of(others),
            repeats=QUICK_ROUNDS if quick else ROUNDS,
            scenarios=SCENARIOS,
            seconds=QUICK_SECONDS if quick else None,
            profile=True,
        )
        report = bench_bundle(first, settings, progress)
    report["proofs"] = proofs({ENGINE: first, **settings.others})
    report["gates"] = gates(report["proofs"])
    report["command"] = _command(arguments)
    print_report(report, console)
    if arguments.receipt:
        with written_whole(arguments.receipt) as aside:
            aside.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        console.print(f"wrote {arguments.receipt}")


def _command(arguments: argparse.Namespace) -> str:
    words = ["python benchmarks/bench_full_size.py", f"--preset {arguments.preset}"]
    words += [f"--precision {precision}" for precision in arguments.precision or []]
    return " ".join(words + ["--quick"] * arguments.quick)


if __name__ == "__main__":
    main()
