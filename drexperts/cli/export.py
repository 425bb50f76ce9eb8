"""`drx export`: a checkpoint to a verified bundle."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import Outcome, add_scale, add_verb, scale_of
from drexperts.cli.proofs import proof_outcome

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "export", run, "a checkpoint to a verified bundle", "export")
    verb.add_argument("checkpoint", type=Path)
    verb.add_argument("--out", type=Path, required=True, metavar="BUNDLE")
    verb.add_argument("--images", type=Path, metavar="DIR", help="photographs to verify on")
    add_scale(verb)
    verb.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8", "auto"),
        default="fp32",
        help="of the transformer blocks; auto takes the lowest that keeps its parity, part by part",
    )
    verb.add_argument(
        "--target", choices=("cpu", "gpu"), default="cpu", help="of auto: int8 or fp16"
    )
    verb.add_argument("--no-maps", action="store_true", help="leave the distortion maps out")
    verb.add_argument("--max-batch", type=int, default=8, metavar="N")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.export.bundle import export_checkpoint

    with screen.progress() as progress:
        manifest = export_checkpoint(
            arguments.checkpoint,
            arguments.out,
            images=arguments.images,
            scale=None if arguments.scale is None else scale_of(arguments.scale),
            precision=arguments.precision,
            target=arguments.target,
            maps=not arguments.no_maps,
            max_batch=arguments.max_batch,
            progress=progress,
        )
    return proof_outcome(arguments.out, manifest, screen)
