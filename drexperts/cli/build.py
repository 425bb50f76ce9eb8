"""`drx build`: an engine for GPUs into a bundle."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import Outcome, add_verb, byte_count
from drexperts.cli.proofs import proof_outcome

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen

DEFAULT_PROFILE = "1:8:64"


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "build", run, "an engine for GPUs into a bundle", "export")
    verb.add_argument("bundle", type=Path)
    backends = ("tensorrt", "tensorrt-rtx", "onnx-cuda", "onnx-tensorrt")
    verb.add_argument("--backend", choices=backends, required=True)
    verb.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help="another than the bundle's"
    )
    verb.add_argument("--checkpoint", type=Path, help="for parity, and for another precision")
    verb.add_argument("--images", type=Path, metavar="DIR", help="photographs to verify on")
    verb.add_argument(
        "--batch",
        action="append",
        metavar="MIN:OPT:MAX",
        help=f"batch sizes of an optimisation profile, repeatable; {DEFAULT_PROFILE}",
    )
    verb.add_argument(
        "--capability",
        action="append",
        default=[],
        metavar="8.9",
        help="a compute capability to build for, repeatable; tensorrt-rtx only",
    )
    verb.add_argument(
        "--plugin",
        choices=("require", "prefer", "off"),
        default="prefer",
        help="the pooling as our Triton kernel; tensorrt only",
    )
    verb.add_argument("--no-fused-attention", action="store_true", help="if it gives wrong scores")
    verb.add_argument("--workspace", type=byte_count, metavar="4G", help="most scratch memory")
    verb.add_argument("--opt-level", type=int, choices=range(6), help="of the builder")
    verb.add_argument("--timing-cache", type=Path, metavar="FILE", help="kept and reused")
    verb.add_argument(
        "--version-compatible", action="store_true", help="also for newer TensorRT; may be slower"
    )
    verb.add_argument(
        "--hardware-compatibility",
        choices=("none", "ampere+", "same-capability"),
        default="none",
        help="also for other GPUs; may be slower",
    )
    verb.add_argument("--strip", action="store_true", help="leave the weights out")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.export.engines.build import build_engine
    from drexperts.export.engines.options import EngineOptions, parse_profiles

    options = EngineOptions(
        profiles=parse_profiles(arguments.batch or [DEFAULT_PROFILE]),
        workspace=arguments.workspace,
        optimization_level=arguments.opt_level,
        capabilities=tuple(arguments.capability),
        version_compatible=arguments.version_compatible,
        hardware_compatibility=arguments.hardware_compatibility,
        stripped=arguments.strip,
        timing_cache=arguments.timing_cache,
        plugin=arguments.plugin,
    )
    with screen.progress() as progress:
        manifest = build_engine(
            arguments.bundle,
            arguments.backend,
            options,
            precision=arguments.precision,
            fused_attention=not arguments.no_fused_attention,
            checkpoint=arguments.checkpoint,
            images=arguments.images,
            progress=progress,
        )
    return proof_outcome(arguments.bundle, manifest, screen)
