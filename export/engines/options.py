"""The options of a build, and which of the two TensorRT libraries supports each."""

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drexperts.runtime import compatibility
from drexperts.runtime.errors import ConfigError, MissingDependencyError, UserError
from drexperts.runtime.installing import install_command
from drexperts.runtime.manifest import BatchProfile
from drexperts.runtime.wording import remedy

TURING = "7.5"

HARDWARE = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True)
class EngineOptions:
    """How to build an engine.

    Attributes:
        profiles: batch sizes; a plan has kernels of its own for each profile.
        workspace: bytes of GPU memory that a layer may use beside its tensors; None is no limit.
        optimization_level: 0 to 5, how long the library searches for kernels; None is its default,
            3. `tensorrt` only.
        capabilities: compute capabilities to build for, such as "8.9"; `tensorrt-rtx` only. Empty
            means all that the library supports but "7.5", which has no float32 products and needs a
            plan of its own, see `half_products`.
        version_compatible: let later versions of the library run the plan. It is slower, and holds
            a lean runtime, which the runtime that loads it must be told to trust. `tensorrt` only.
        hardware_compatibility: which other GPUs run the plan. "none"; "same-capability", those of
            the same compute capability; "ampere+", all from 8.0, with at most 48 KiB of shared
            memory and fewer fusions. `tensorrt` only.
        stripped: leave the weights out; they are put back from the same graph. Needs a GPU.
        timing_cache: a file of kernel timings, read if it exists and written after the build.
            `tensorrt` only.
        plugin: "require", "prefer" or "off": whether our Triton kernel replaces the function body
            of the pooling node. `tensorrt` only.
    """

    profiles: tuple[BatchProfile, ...] = (BatchProfile(1, 8, 64),)
    workspace: int | None = None
    optimization_level: int | None = None
    capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    stripped: bool = False
    timing_cache: Path | None = None
    plugin: str = "prefer"

    def __post_init__(self) -> None:
        """Raises ConfigError for invalid values."""
        level, workspace = self.optimization_level, self.workspace
        if not (level is None or 0 <= level <= 5):
            raise ConfigError(f"the optimisation level must be 0 to 5, got {level}")
        if not (workspace is None or 0 < workspace < 2**50):
            raise ConfigError(
                f"the workspace must be positive and less than 1 PiB, got {workspace}"
            )
        if self.hardware_compatibility not in ("none", *HARDWARE):
            raise ConfigError(
                f"hardware compatibility must be none, {' or '.join(HARDWARE)}, "
                f"got {self.hardware_compatibility!r}"
            )
        if self.plugin not in ("require", "prefer", "off"):
            raise ConfigError(f"plugin must be require, prefer or off, got {self.plugin!r}")


@dataclass(frozen=True)
class Library:
    """What differs between the two libraries.

    Attributes:
        oldest: the oldest version that is supported.
        targets: whether it builds for given compute capabilities, without a GPU.
        refused: the options that it does not support, with their flags and the reason.
    """

    name: str
    module: str
    extra: str
    oldest: tuple[int, ...]
    targets: bool
    refused: dict[str, tuple[str, str]]


_ONE_FOR_ALL = "its plans run on each capability they name, with the version that built them"
_NOT_TUNED = "it chooses kernels on the machine that runs the plan, not during the build"

LIBRARIES = {
    "tensorrt": Library(
        name="TensorRT",
        module="tensorrt",
        extra="tensorrt",
        oldest=(10, 13),
        targets=False,
        refused={"capabilities": ("--capability", "it builds for the GPU of this machine")},
    ),
    "tensorrt-rtx": Library(
        name="TensorRT for RTX",
        module="tensorrt_rtx",
        extra="tensorrt-rtx",
        oldest=(1, 4),
        targets=True,
        refused={
            "version_compatible": ("--version-compatible", _ONE_FOR_ALL),
            "hardware_compatibility": ("--hardware-compatibility", _ONE_FOR_ALL),
            "optimization_level": ("--opt-level", _NOT_TUNED),
            "timing_cache": ("--timing-cache", _NOT_TUNED),
        },
    ),
}


def parse_profiles(texts: Sequence[str]) -> tuple[BatchProfile, ...]:
    """Profiles from texts such as "MIN:OPT:MAX", or "N" for the one batch size N.

    Raises:
        UserError: a text is neither, or a batch size below the largest is in no profile.
    """
    profiles = tuple(_profile_from_text(text) for text in texts)
    _check_gaps(profiles)
    return profiles


def _profile_from_text(text: str) -> BatchProfile:
    sizes = text.split(":")
    if len(sizes) not in (1, 3) or not all(size.isascii() and size.isdigit() for size in sizes):
        raise UserError(
            f"{text!r} is no profile: give MIN:OPT:MAX, such as 1:8:64, or one batch size"
        )
    least, usual, most = map(int, sizes * (3 // len(sizes)))
    return BatchProfile(least, usual, most)


def _check_gaps(profiles: tuple[BatchProfile, ...]) -> None:
    if not profiles:
        raise UserError("there is no profile: give the batches MIN:OPT:MAX, such as 1:8:64")
    most = max(profile.max for profile in profiles)
    for size in range(1, most + 1):
        if not any(profile.includes(size) for profile in profiles):
            raise UserError(
                f"no profile includes a batch of {size}, and one includes {most}: "
                f"add the profile {size}:{size}:{most}, or lower the minimum of one"
            )


def check_options(library: Library, options: EngineOptions) -> None:
    """Raises UserError for options that the library does not support."""
    _check_gaps(options.profiles)
    default = EngineOptions()
    for name, (option, reason) in library.refused.items():
        if getattr(options, name) != getattr(default, name):
            refused = remedy(option, name)
            raise UserError(f"{library.name} does not support {refused}: {reason}; leave it out")
    if library.targets and options.plugin == "require":
        raise UserError(f"{library.name} has no plugins: do not require one")


def import_library(library: Library) -> Any:
    """The library's module. Raises MissingDependencyError, or UserError if it is too old."""
    try:
        trt = importlib.import_module(library.module)
    except ImportError as missing:
        raise MissingDependencyError(
            f"building with {library.name} needs {library.module} ({missing}): "
            + install_command(library.extra)
        ) from missing
    version = tuple(map(int, re.findall(r"\d+", trt.__version__)[:2]))
    if version < library.oldest:
        raise UserError(
            f"{library.name} {trt.__version__} is too old, "
            f"{'.'.join(map(str, library.oldest))} or later is needed: "
            + install_command(library.extra)
        )
    return trt


def capabilities(trt: Any, library: Library, options: EngineOptions) -> tuple[str, ...]:
    """The compute capabilities to build for. Raises UserError if the library cannot."""
    if library.targets:
        if options.stripped and gpu_capability() is None:
            raise UserError(
                f"{library.name} strips plans only on a machine with a GPU, and there is none here"
            )
        targets = _targets(trt, library, options.capabilities)
        if options.stripped and TURING in targets:
            raise UserError(
                f"weights cannot be put back into a plan for {TURING}, whose graph is not the "
                f"bundle's: build without {remedy('--strip', 'stripped=True')}"
            )
        return targets
    capability = gpu_capability()
    if capability is None:
        raise UserError(
            "TensorRT builds on the GPU that it builds for, and there is none here: "
            "use the backend tensorrt-rtx, or build on the machine that is to run the engine"
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
