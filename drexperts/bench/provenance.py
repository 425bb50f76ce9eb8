"""Where a measurement is from: the machine, the state of its GPUs, and the source that was run.

Nothing but the standard library is needed. What only an absent library knows is None, and
`Machine.missing` gives the reason.
"""

import importlib
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from drexperts.runtime.cpus import available_cpus, cpu_facts, cpu_name

LIBRARIES = (
    "drexperts",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "timm",
    "triton",
    "tensorrt",
    "tensorrt-rtx",
)
# As x86 and ARM name them in /proc/cpuinfo.
_CPU_ID = (
    *("vendor_id", "cpu family", "model", "stepping", "microcode"),
    *("CPU implementer", "CPU variant", "CPU part", "CPU revision"),
)
# NVML's bits for the reasons why a GPU runs below the clock that was asked for. An idle GPU and
# clocks that a user has set have bits too, but they are not throttling.
_THROTTLED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU and its state at one moment; a field that the driver does not report is None.

    throttled: why the clocks are lowered, empty if they are not
    """

    name: str
    driver: str | None = None
    compute_capability: str | None = None
    memory_bytes: int | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    max_sm_mhz: int | None = None
    watts: float | None = None
    limit_watts: float | None = None
    celsius: int | None = None
    throttled: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Machine:
    """What a measurement ran on.

    cores: logical processors that this process may use
    threads: that engines and PyTorch were set to use; None is their default
    versions: of the installed libraries that matter for speed
    gpus: empty without an NVIDIA GPU, None where that is not known
    missing: the reason for each field that is not known, or not completely
    cpu_id: the numbers by which the CPU's maker tells models apart that share a name
    """

    cpu: str | None
    cores: int
    threads: int | None
    system: str
    python: str
    versions: dict[str, str]
    gpus: tuple[Gpu, ...] | None
    missing: dict[str, str] = field(default_factory=dict)
    cpu_id: str | None = None


@dataclass(frozen=True)
class Source:
    """The source that a measurement ran.

    commit: None outside a checkout
    dirty: whether files of the packages differed from the commit; None without one
    packages: dotted names of the packages or modules that the numbers depend on
    """

    commit: str | None
    dirty: bool | None
    packages: tuple[str, ...]


Staleness = Literal["current", "stale", "unknown"]


def this_machine(threads: int | None = None) -> Machine:
    """The machine that runs this process.

    threads: that engines and PyTorch are set to use; None is their default
    """
    found, reason = _gpus()
    cpu = cpu_facts()
    return Machine(
        cpu=cpu_name() or None,
        cpu_id=", ".join(f"{name} {cpu[name]}" for name in _CPU_ID if cpu.get(name)) or None,
        cores=available_cpus(),
        threads=threads,
        system=platform.platform(),
        python=platform.python_version(),
        versions={name: version for name in LIBRARIES if (version := _version(name))},
        gpus=found,
        missing={} if reason is None else {"gpus": reason},
    )


def gpus() -> tuple[Gpu, ...]:
    """The state of each GPU now; empty without one, or where that is not known."""
    return _gpus()[0] or ()


def this_source(*packages: str) -> Source:
    """The source of this process.

    packages: dotted names, of packages with all that is below them, or of single modules

    Raises ModuleNotFoundError for an unknown name.
    """
    paths = _paths(packages)
    if not _is_checkout():
        return Source(None, None, packages)
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", *paths)
    return Source(commit, None if changes is None else bool(changes), packages)


def staleness(source: Source) -> Staleness:
    """Whether a measured source is still the one in this checkout.

    "unknown" outside a checkout, for a commit that this checkout does not have, and for a source
    that no commit holds because it had changes.
    """
    if source.commit is None or source.dirty is not False or not _is_checkout():
        return "unknown"
    try:
        paths = _paths(source.packages)
    except ModuleNotFoundError:  # removed since
        return "stale"
    if _git("cat-file", "-e", f"{source.commit}^{{commit}}") is None:
        return "unknown"
    unchanged = _git("diff", "--quiet", source.commit, "--", *paths) is not None
    return "current" if unchanged else "stale"


def _gpus() -> tuple[tuple[Gpu, ...] | None, str | None]:
    """The GPUs, and why they or their state are not known."""
    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        reason = "the state of GPUs needs nvidia-ml-py, which is not installed"
        return _gpus_of_torch(), reason
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as cause:
        absent = nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded
        return ((), None) if isinstance(cause, absent) else (None, f"NVML: {cause}")
    try:
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        return tuple(_gpu(nvml, handle) for handle in handles), None
    except nvml.NVMLError as cause:
        return None, f"NVML: {cause}"
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> Gpu:
    def reported(call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except nvml.NVMLError:  # this GPU does not report it
            return None

    capability = reported(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    memory = reported(nvml.nvmlDeviceGetMemoryInfo, handle)
    power = reported(nvml.nvmlDeviceGetPowerUsage, handle)  # milliwatts, as the limit
    limit = reported(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    active = reported(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        driver=reported(nvml.nvmlSystemGetDriverVersion),
        compute_capability=None if capability is None else ".".join(map(str, capability)),
        memory_bytes=None if memory is None else memory.total,
        sm_mhz=reported(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        memory_mhz=reported(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        max_sm_mhz=reported(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        watts=None if power is None else 1e-3 * power,
        limit_watts=None if limit is None else 1e-3 * limit,
        celsius=reported(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        throttled=None if active is None else tuple(_throttled(active)),
    )


def _throttled(active: int) -> Iterator[str]:
    yield from (reason for bit, reason in _THROTTLED.items() if active & bit)


def _gpus_of_torch() -> tuple[Gpu, ...] | None:
    """What PyTorch knows of the GPUs, where it is imported; it does not know their state."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return tuple(
        Gpu(each.name, None, f"{each.major}.{each.minor}", each.total_memory) for each in found
    )


def _paths(packages: tuple[str, ...]) -> list[str]:
    """The folder of each package and the file of each module, links resolved, as git has them."""
    paths = []
    for name in packages:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise ModuleNotFoundError(f"no module {name}", name=name)
        path = Path(found.origin).resolve()
        paths.append(str(path.parent if path.name == "__init__.py" else path))
    return paths


def _is_checkout() -> bool:
    """Whether this file is tracked; an installed copy may lie within another repository."""
    return _git("ls-files", "--error-unmatch", Path(__file__).name) is not None


def _git(*arguments: str) -> str | None:
    """What git prints, None where it cannot be run or fails."""
    command = ("git", "-C", str(Path(__file__).parent), *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
