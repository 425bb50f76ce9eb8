"""Whether this machine can run a TensorRT engine, asked before a byte of it is deserialised."""

import importlib
import platform
import re
import sys
from dataclasses import dataclass
from typing import Any

from drexperts.runtime.cuda import call
from drexperts.runtime.errors import CudaError, MissingDependencyError
from drexperts.runtime.manifest import Engine, EnginePlan


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    capability: its compute capability, such as "8.9"
    memory: bytes
    driver: the newest CUDA that its driver runs, such as "13.0"
    """

    index: int
    name: str
    capability: str
    memory: int
    driver: str


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA offers this process; none where there is no driver or no cuda-python."""
    return _survey()[0]


def why_no_gpu() -> str | None:
    """Why `gpus` is empty; None where it is not."""
    return _survey()[1]


def library(engine: Engine) -> Any | None:
    """The installed module that runs an engine with a plan; None where there is none.

    TensorRT's lean runtime runs only version-compatible plans, and only where TensorRT is absent.
    """
    names = {"tensorrt": ["tensorrt"], "tensorrt-rtx": ["tensorrt_rtx"]}[engine.backend]
    if engine.backend == "tensorrt" and _plan(engine).version_compatible:
        names.append("tensorrt_lean")
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):  # OSError: the module is there, its library is not
            continue
    return None


def library_version(engine: Engine) -> str | None:
    """The version of the library that would run an engine; None where there is none."""
    module = library(engine)
    return None if module is None else str(module.__version__)


def this_platform() -> str:
    """As a plan records it, such as "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine().lower()}"


def obstacle(engine: Engine, gpu: Gpu | None, library_version: str | None) -> str | None:
    """Why an engine with a plan cannot run on `gpu` with a library of this version, and the remedy.

    None where nothing known is against it, and for engines without a plan.
    """
    if engine.plan is None:
        return None
    if library_version is None:
        return (
            f"{engine.file} needs {engine.backend} {engine.plan.version}, which is not installed: "
            f'pip install "drexperts[{engine.backend}]"'
        )
    if gpu is None:
        return f"{engine.file} needs a GPU of compute capability {_capabilities(engine.plan)}: " + (
            why_no_gpu() or "this machine has none of the index asked for"
        )
    mismatch = _mismatch(engine, engine.plan, gpu, library_version)
    rebuild = f"rebuild it here with `drx build BUNDLE --backend {engine.backend}`"
    return None if mismatch is None else f"{engine.file} {mismatch}; {rebuild}"


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
        return f"takes batches from {smallest}, the runtime sends any from 1"
    return None


def _version_fits(engine: Engine, plan: EnginePlan, version: str) -> bool:
    if version == plan.version:
        return True
    if engine.backend != "tensorrt" or not plan.version_compatible:
        return False
    built, here = _release(plan.version), _release(version)
    # Forwards within a major release and into the next one, never backwards.
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


def _plan(engine: Engine) -> EnginePlan:
    assert engine.plan is not None, "the manifest gives every TensorRT engine a plan"
    return engine.plan


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
