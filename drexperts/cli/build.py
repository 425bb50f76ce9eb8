"""`drx build`: an engine for OpenVINO or for GPUs into a bundle."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import Outcome, add_verb, byte_count
from drexperts.cli.proofs import add_images, new_engine_outcome

if TYPE_CHECKING:
    from drexperts.cli.arguments import Parser, Verbs
    from drexperts.ui.screen import Screen

DEFAULT_PROFILE = "1:8:64"


def add(verbs: "Verbs") -> None:
    verb = add_verb(
        verbs, "build", run, "add an engine to a bundle, for OpenVINO on CPUs or for GPUs", "export"
    )
    verb.add_argument("bundle", type=Path, help="the bundle's folder")
    backends = ("openvino", "tensorrt", "tensorrt-rtx", "onnx-cuda", "onnx-tensorrt")
    verb.add_argument(
        "--backend", choices=backends, required=True, help="the library that runs the engine"
    )
    verb.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16", "int8", "auto"),
        help="precision of the transformer blocks; auto, with openvino, is the fastest mixture "
        "that keeps parity (default: the bundle's; with openvino, int8 for a bundle in int8, "
        "otherwise bf16 on a CPU that has it and fp32 on others)",
    )
    verb.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="the exported checkpoint, needed to measure parity, and to make what the bundle's own "
        "graph does not give (default: none)",
    )
    add_images(verb)
    _add_engine_options(verb)
    _add_builder_options(verb)


def _add_engine_options(verb: "Parser") -> None:
    """What the engine is to be."""
    verb.add_argument(
        "--batch",
        action="append",
        metavar="MIN:OPT:MAX",
        help="batch sizes of an optimisation profile; repeat for more profiles "
        f"(default: {DEFAULT_PROFILE})",
    )
    verb.add_argument(
        "--capability",
        action="append",
        default=[],
        metavar="X.Y",
        help="compute capability to build for, such as 8.9, with tensorrt-rtx; repeat for several "
        "(default: all but 7.5)",
    )
    verb.add_argument(
        "--plugin",
        choices=("require", "prefer", "off"),
        default="prefer",
        help="whether our Triton kernel computes the pooling, with tensorrt (default: prefer)",
    )
    verb.add_argument(
        "--no-fused-attention",
        action="store_true",
        help="keep the builder from fusing attention, for GPUs on which that gives wrong scores",
    )
    verb.add_argument("--strip", action="store_true", help="leave the weights out of the engine")


def _add_builder_options(verb: "Parser") -> None:
    """How the library builds it, and where it can run."""
    verb.add_argument(
        "--workspace",
        type=byte_count,
        metavar="SIZE",
        help="most scratch memory that a layer may use, such as 4G (default: no limit)",
    )
    verb.add_argument(
        "--opt-level",
        type=int,
        choices=range(6),
        help="how long the builder searches for kernels, with tensorrt (default: the library's, 3)",
    )
    verb.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="file of kernel timings to reuse and update, with tensorrt (default: none)",
    )
    verb.add_argument(
        "--version-compatible",
        action="store_true",
        help="let later TensorRT versions run the engine, perhaps more slowly",
    )
    verb.add_argument(
        "--hardware-compatibility",
        choices=("none", "ampere+", "same-capability"),
        default="none",
        help="other GPUs that can run the engine, perhaps more slowly, with tensorrt "
        "(default: none)",
    )


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.export import EngineOptions, build_engine
    from drexperts.export.engines.options import parse_profiles

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
    return new_engine_outcome(arguments.bundle, manifest, manifest.engines[-1], screen)
