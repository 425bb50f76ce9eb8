"""Whether this machine can run an engine, checked before the engine is deserialised."""

import importlib
import platform
import re
import sys
from dataclasses import dataclass
from typing import Any

from drexperts.runtime.cuda import call
from drexperts.runtime.errors import CudaError, MissingDependencyError
from drexperts.runtime.installing import install_command
from drexperts.runtime.manifest import Engine, EnginePlan
from drexperts.runtime.openvino_library import forcing_variable
from drexperts.runtime.wording import rebuild


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    capability: compute capability, such as "8.9"
    memory: bytes
    driver: the newest CUDA version that the driver supports, such as "13.0"
    """

    index: int
    name: str
    capability: str
    memory: int
    driver: str


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA offers this process; none without a driver or cuda-python."""
    return _survey()[0]


def why_no_gpu() -> str | None:
    """Why `gpus()` is empty; None if it is not."""
    return _survey()[1]


def library(engine: Engine) -> Any | None:
    """The installed module that runs a TensorRT engine; None if there is none.

    The lean runtime is used only for version-compatible plans, and only if TensorRT is absent.
    """
    names = {"tensorrt": ["tensorrt"], "tensorrt-rtx": ["tensorrt_rtx"]}[engine.backend]
    if engine.backend == "tensorrt" and engine.plan and engine.plan.version_compatible:
        names.append("tensorrt_lean")
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):  # OSError: its shared library is missing
            continue
    return None


def library_version(engine: Engine) -> str | None:
    """The version of the library that would run a TensorRT engine; None if there is none."""
    module = library(engine)
    return None if module is None else str(module.__version__)


def this_platform() -> str:
    """Operating system and architecture as a plan records them, such as "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine().lower()}"


def obstacle(engine: Engine, gpu: Gpu | None, library_version: str | None) -> str | None:
    """Why a TensorRT engine cannot run on `gpu` with this library version, and what to do.

    None if no reason is known, and for other engines.
    """
    if engine.plan is None:
        return None
    if library_version is None:
        return (
            f"{engine.file} needs {engine.backend} {engine.plan.version}, which is not installed: "
            + install_command(engine.backend)
        )
    if gpu is None:
        return f"{engine.file} needs a GPU of compute capability {_capabilities(engine.plan)}: " + (
            why_no_gpu() or "this machine has no GPU with that number"
        )
    mismatch = _mismatch(engine, engine.plan, gpu, library_version)
    return None if mismatch is None else f"{engine.file} {mismatch}; {rebuild(engine.backend)} here"


def openvino_obstacle(engine: Engine, installed: str | None) -> str | None:
    """Why an OpenVINO engine cannot run with this version of it, and what to do; None if it can.

    installed: the version, such as "2026.4.1"; None if there is none
    """
    wanted = engine.versions["openvino"]
    if installed is None:
        return f"{engine.file} needs openvino {wanted}, which is not installed: " + install_command(
            "openvino"
        )
    if forced := forcing_variable():
        return f"{engine.file} cannot be computed as it was proven: {forced}"
    if installed != wanted:  # each version chooses for itself how it computes a product
        return (
            f"{engine.file} was built with openvino {wanted}, {installed} is installed here; "
            f"{rebuild(engine.backend)} here"
        )
    return None


def _mismatch(engine: Engine, plan: EnginePlan, gpu: Gpu, version: str) -> str | None:
    if plan.platform != this_platform():
        return f"was built for {plan.platform}, this machine is {this_platform()}"
    if not _version_fits(engine, plan, version):
        return f"was built with {engine.backend} {plan.version}, {version} is installed here"
    if not _capability_fits(engine, plan, gpu.capability):
        return (
            f"was built for compute capability {_capabilities(plan)}, "
            f"{gpu.name} has {gpu.capability}"
        )
    smallest = min(profile.min for profile in plan.profiles)
    if smallest > 1:
        return f"takes batches of at least {smallest}, but the runtime also sends single images"
    return None


def _version_fits(engine: Engine, plan: EnginePlan, version: str) -> bool:
    if version == plan.version:
        return True
    if engine.backend != "tensorrt" or not plan.version_compatible:
        return False
    built, here = _release(plan.version), _release(version)
    # TensorRT promises compatibility with later versions up to the next major release.
    return built <= here and here[0] - built[0] <= 1


def _release(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _capability_fits(engine: Engine, plan: EnginePlan, capability: str) -> bool:
    if engine.backend == "tensorrt" and plan.hardware_compatibility == "ampere+":
        return int(capability.split(".")[0]) >= 8
    return capability in plan.capabilities


def _capabilities(plan: EnginePlan) -> str:
    if plan.hardware_compatibility == "ampere+":
        return "8.0 or later"
    return " or ".join(plan.capabilities)


def _survey() -> tuple[tuple[Gpu, ...], str | None]:
    try:
        newest = call("cudaDriverGetVersion")
        driver = f"{newest // 1000}.{newest % 1000 // 10}"
        found = tuple(_gpu(index, driver) for index in range(call("cudaGetDeviceCount")))
    except (MissingDependencyError, CudaError) as reason:
        return (), str(reason)
    return found, None if found else "CUDA offers this process no GPU"


def _gpu(index: int, driver: str) -> Gpu:
    properties = call("cudaGetDeviceProperties", index)
    return Gpu(
        index=index,
        name=properties.name.split(b"\0")[0].decode(errors="replace"),
        capability=f"{properties.major}.{properties.minor}",
        memory=properties.totalGlobalMem,
        driver=driver,
    )
