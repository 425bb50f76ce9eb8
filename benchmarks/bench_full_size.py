"""Measure the full-size model on this machine, with random weights, and write a receipt.

    python benchmarks/bench_full_size.py [--preset official|paper] [--receipt FILE]

Random weights cost what trained ones do. The bundle is exported and verified like any other.
"""

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console

from drexperts.bench import NAMES, bench_bundle, print_report
from drexperts.checkpoint import Checkpoint, default_preprocessing, save_checkpoint
from drexperts.config import DRExpertsConfig
from drexperts.export.bundle import export_bundle
from drexperts.model import new_model
from drexperts.runtime.manifest import ScoreScale


def random_checkpoint(preset: str) -> Checkpoint:
    """A full-size model whose every parameter is away from its initial value."""
    torch.manual_seed(0)
    model = new_model(getattr(DRExpertsConfig, preset)())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    scale = ScoreScale(-1.0, 1.0, higher_is_better=True)
    return Checkpoint(model, scale, default_preprocessing(model.config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=("official", "paper"), default="official")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--receipt", type=Path)
    arguments = parser.parse_args()
    console = Console()
    checkpoint = random_checkpoint(arguments.preset)
    weights = arguments.runs / f"full-size-{arguments.preset}.safetensors"
    bundle = arguments.runs / f"full-size-{arguments.preset}"
    save_checkpoint(checkpoint, weights)
    with console.status("") as status:
        manifest = export_bundle(checkpoint, bundle, progress=status.update)
        console.print(manifest.engines[0].parity, manifest.engines[0].invariance)
        report = bench_bundle(bundle, baselines=NAMES, progress=status.update)
    print_report(report, console)
    if arguments.receipt:
        arguments.receipt.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"wrote {arguments.receipt}")


if __name__ == "__main__":
    main()
