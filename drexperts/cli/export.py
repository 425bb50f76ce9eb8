"""`drx export`: a checkpoint to a verified bundle."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import Outcome, add_crops_per_side, add_scale, add_verb, scale_of
from drexperts.cli.proofs import add_images, new_engine_outcome

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "export", run, "write a checkpoint as a verified bundle", "export")
    verb.add_argument("checkpoint", type=Path, help="the checkpoint to export")
    verb.add_argument(
        "--out", type=Path, required=True, metavar="BUNDLE", help="folder to write the bundle to"
    )
    add_images(verb)
    add_scale(verb)
    add_crops_per_side(verb)
    verb.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8", "auto"),
        default="fp32",
        help="precision of the transformer blocks; auto searches for the lowest that keeps parity, "
        "part by part (default: fp32)",
    )
    verb.add_argument(
        "--target",
        choices=("cpu", "gpu"),
        default="cpu",
        help="what --precision auto is for: int8 on a cpu, fp16 on a gpu (default: cpu)",
    )
    verb.add_argument(
        "--no-maps", action="store_true", help="leave out the distortion maps, an output by default"
    )
    verb.add_argument(
        "--max-batch",
        type=int,
        default=8,
        metavar="N",
        help="largest batch to verify and allow (default: 8)",
    )


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.export import export_bundle

    with screen.progress() as progress:
        manifest = export_bundle(
            arguments.checkpoint,
            arguments.out,
            images=arguments.images,
            scale=None if arguments.scale is None else scale_of(arguments.scale),
            crops_per_side=arguments.crops_per_side,
            precision=arguments.precision,
            target=arguments.target,
            maps=not arguments.no_maps,
            max_batch=arguments.max_batch,
            progress=progress,
        )
    return new_engine_outcome(arguments.out, manifest, manifest.engines[0], screen)
