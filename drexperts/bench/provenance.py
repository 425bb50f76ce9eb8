"""Where a measurement is from: the machine, the state of its GPUs, and the source that was run."""

import hashlib
import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA = 1  # of the head of a report
CPUS = Path("/sys/devices/system/cpu")

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
GPU_FIELDS = (
    "name",
    "driver_version",
    "compute_cap",
    "memory.total",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "pstate",
    "clocks_throttle_reasons.active",
)


def head(kind: str, command: str, modules: tuple[str, ...], threads: int | None) -> dict[str, Any]:
    """What every report of a measurement begins with.

    Args:
        kind: of report, which says how the rest is read: "bench", "kernels", ...
        command: that makes it again.
        modules: whose source the numbers speak of; see `source_card`.
        threads: on which the engine and PyTorch were told to run; None is their default.
    """
    return {
        "kind": kind,
        "schema": SCHEMA,
        "command": command,
        "machine": machine_card(threads),
        "source": source_card(*modules),
    }


def machine_card(threads: int | None) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": _cores(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in LIBRARIES if (found := _version(name))},
        "gpus": gpu_cards(),
    }


def gpu_cards() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU: driver, clocks, power, throttling. Empty without one."""
    fields = ",".join(GPU_FIELDS)
    said = _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    rows = [line.split(", ") for line in (said or "").splitlines()]
    return [dict(zip(GPU_FIELDS, row, strict=True)) for row in rows if len(row) == len(GPU_FIELDS)]


def source_card(*modules: str) -> dict[str, Any]:
    """Which source the numbers speak of.

    Args:
        modules: dotted names; that of a package stands for all files in its folder.

    Returns:
        Their names, one SHA-256 over names and contents, and the commit where there is one.
    """
    return {"modules": list(modules), "sha256": source_hash(*modules), "commit": _commit()}


def source_hash(*modules: str) -> str:
    """SHA-256 over the names and contents of modules' files; see `source_card`."""
    digest = hashlib.sha256()
    for name, path in sorted(_files(modules)):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _files(modules: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for module in modules:
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            raise ModuleNotFoundError(f"no module {module}", name=module)
        path = Path(found.origin)
        files = path.parent.glob("*.py") if path.name == "__init__.py" else [path]
        yield from ((f"{module}/{file.name}", file) for file in files)


def _commit() -> str | None:
    """The commit of a checkout of ours; an installed copy may lie within another repository."""
    here = Path(__file__)
    git = ("git", "-C", str(here.parent))
    ours = _output(*git, "ls-files", "--error-unmatch", here.name) is not None
    return _output(*git, "describe", "--always", "--dirty") if ours else None


def _output(*command: str) -> str | None:
    """What a command prints, None where it cannot be run or fails."""
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """Cores that this process may use; hardware threads of one core count once on Linux."""
    if not hasattr(os, "sched_getaffinity"):
        return _cores()
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    """The hardware threads of a core; where the kernel does not say, it has one."""
    try:
        return (CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
