"""What can be asked of a build, and which of the two libraries can follow it."""

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drexperts.runtime import compatibility
from drexperts.runtime.errors import ConfigError, MissingDependencyError, UserError
from drexperts.runtime.manifest import Profile

TURING = "7.5"

HARDWARE = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True)
class EngineOptions:
    """How to build.

    Attributes:
        profiles: the batch sizes admitted; a plan has kernels of its own for each.
        workspace: bytes of GPU memory that a layer may use beside its tensors; None is no limit.
        optimization_level: 0 to 5, how long kernels are sought; None is the library's default, 3.
            `tensorrt` only.
        capabilities: what to build for, "8.9"; `tensorrt-rtx` only. Empty is all that the library
            has but "7.5", which has no float32 products: it is a plan of its own, see
            `half_products`.
        version_compatible: also for later versions of the library. Costs speed, and the lean
            runtime in the plan, which its runtime must be told to trust.
            `tensorrt` only.
        hardware_compatibility: "none"; "same-capability", other GPUs of the capability built on;
            "ampere+", all from 8.0, with 48 KiB of shared memory at most and fewer fusions.
            `tensorrt` only.
        stripped: leave the weights out, to be put back from the same graph. Needs a GPU.
        timing_cache: a file of kernel timings, used where it is there and written after the build.
            `tensorrt` only.
        plugin: "require", "prefer" or "off", the Triton kernel in place of the pooling node's
            function body. `tensorrt` only.
    """

    profiles: tuple[Profile, ...] = (Profile(1, 8, 64),)
    workspace: int | None = None
    optimization_level: int | None = None
    capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    stripped: bool = False
    timing_cache: Path | None = None
    plugin: str = "prefer"

    def __post_init__(self) -> None:
        """Raises ConfigError for values that cannot be."""
        level, workspace = self.optimization_level, self.workspace
        if not (level is None or 0 <= level <= 5):
            raise ConfigError(f"the optimisation level must be 0 to 5, got {level}")
        if not (workspace is None or 0 < workspace < 2**50):
            raise ConfigError(f"the workspace must be some bytes, less than a PiB, got {workspace}")
        if self.hardware_compatibility not in ("none", *HARDWARE):
            raise ConfigError(
                f"hardware compatibility must be none, {' or '.join(HARDWARE)}, "
                f"got {self.hardware_compatibility!r}"
            )
        if self.plugin not in ("require", "prefer", "off"):
            raise ConfigError(f"plugin must be require, prefer or off, got {self.plugin!r}")


@dataclass(frozen=True)
class Library:
    """What one of the two libraries is, where they differ.

    Attributes:
        oldest: the oldest version that this file knows.
        targets: whether it is told the compute capabilities to build for, and needs no GPU.
        refused: options that it cannot follow; their flags, and why.
    """

    name: str
    module: str
    extra: str
    oldest: tuple[int, ...]
    targets: bool
    refused: dict[str, str]


_ONE_FOR_ALL = "its plans are for every capability they name, and for the version that built them"
_NOT_TUNED = "it chooses kernels on the machine that runs the plan, not during the build"

LIBRARIES = {
    "tensorrt": Library(
        name="TensorRT",
        module="tensorrt",
        extra="tensorrt",
        oldest=(10, 13),
        targets=False,
        refused={"capabilities": "--capability: it builds for the GPU of this machine"},
    ),
    "tensorrt-rtx": Library(
        name="TensorRT for RTX",
        module="tensorrt_rtx",
        extra="tensorrt-rtx",
        oldest=(1, 4),
        targets=True,
        refused={
            "version_compatible": f"--version-compatible: {_ONE_FOR_ALL}",
            "hardware_compatibility": f"--hardware-compatibility: {_ONE_FOR_ALL}",
            "optimization_level": f"--opt-level: {_NOT_TUNED}",
            "timing_cache": f"--timing-cache: {_NOT_TUNED}",
        },
    ),
}


def parse_profiles(texts: Sequence[str]) -> tuple[Profile, ...]:
    """Profiles out of "MIN:OPT:MAX" each, or "N" for the one batch size N.

    Raises:
        UserError: a text is neither, or a batch size up to the largest is in no profile.
    """
    profiles = tuple(_profile_from_text(text) for text in texts)
    _check_gaps(profiles)
    return profiles


def _profile_from_text(text: str) -> Profile:
    sizes = text.split(":")
    if len(sizes) not in (1, 3) or not all(size.isascii() and size.isdigit() for size in sizes):
        raise UserError(f"--batch {text}: give MIN:OPT:MAX, such as 1:8:64, or one batch size")
    least, usual, most = map(int, sizes * (3 // len(sizes)))
    return Profile(least, usual, most)


def _check_gaps(profiles: tuple[Profile, ...]) -> None:
    if not profiles:
        raise UserError("there is no profile: give --batch MIN:OPT:MAX, such as 1:8:64")
    most = max(profile.max for profile in profiles)
    for size in range(1, most + 1):
        if not any(profile.includes(size) for profile in profiles):
            raise UserError(
                f"no profile admits a batch of {size}, and another admits {most}: "
                f"add --batch {size}:{size}:{most}, or lower a profile's MIN"
            )


def check_options(library: Library, options: EngineOptions) -> None:
    """Raises UserError for what the library cannot follow."""
    _check_gaps(options.profiles)
    default = EngineOptions()
    for name, reason in library.refused.items():
        if getattr(options, name) != getattr(default, name):
            raise UserError(f"{library.name} takes no {reason}; leave it out")
    if library.targets and options.plugin == "require":
        raise UserError(f"{library.name} takes no plugins: build with --plugin prefer")


def import_library(library: Library) -> Any:
    """The library's module. Raises MissingDependencyError, or UserError if it is too old."""
    try:
        trt = importlib.import_module(library.module)
    except ImportError as missing:
        raise MissingDependencyError(
            f"building with {library.name} needs {library.module} ({missing}): "
            f'pip install "drexperts[{library.extra}]"'
        ) from missing
    version = tuple(map(int, re.findall(r"\d+", trt.__version__)[:2]))
    if version < library.oldest:
        raise UserError(
            f"{library.name} {trt.__version__} is too old, "
            f"{'.'.join(map(str, library.oldest))} or later is needed: "
            f'pip install --upgrade "drexperts[{library.extra}]"'
        )
    return trt


def capabilities(trt: Any, library: Library, options: EngineOptions) -> tuple[str, ...]:
    """The compute capabilities to build for. Raises UserError where they cannot be."""
    if library.targets:
        if options.stripped and gpu_capability() is None:
            raise UserError(f"{library.name} strips plans on a machine with a GPU; here is none")
        targets = _targets(trt, library, options.capabilities)
        if options.stripped and TURING in targets:
            raise UserError(
                f"the graph for {TURING} is not the bundle's, so that weights cannot be put back: "
                "leave --strip out"
            )
        return targets
    capability = gpu_capability()
    if capability is None:
        raise UserError(
            "TensorRT builds on the GPU that it builds for, and here is none: "
            "use --backend tensorrt-rtx, or build on the machine that is to run the engine"
        )
    return (capability,)


def _targets(trt: Any, library: Library, asked: tuple[str, ...]) -> tuple[str, ...]:
    numbers = [re.fullmatch(r"SM(\d+)(\d)", name) for name in trt.ComputeCapability.__members__]
    listed = [f"{number[1]}.{number[2]}" for number in numbers if number]
    chosen = tuple(dict.fromkeys(asked)) or tuple(name for name in listed if name != TURING)
    if unknown := [name for name in chosen if name not in listed]:
        raise UserError(
            f"{library.name} {trt.__version__} builds for {', '.join(listed)}, "
            f"not for {', '.join(unknown)}"
        )
    if TURING in chosen and len(chosen) > 1:
        raise UserError(
            f"{TURING} has no float32 products and needs a graph, and a plan, of its own: "
            "build it alone, and the others in a second engine"
        )
    return chosen


def gpu_capability() -> str | None:
    """The compute capability of this machine's first GPU; None without one."""
    found = compatibility.gpus()
    return found[0].capability if found else None
