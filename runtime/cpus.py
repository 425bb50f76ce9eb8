"""The CPUs: how many this process may use, and which they are."""

import contextlib
import itertools
import math
import os
import platform
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

CPUINFO = Path("/proc/cpuinfo")
# What decides which instructions a library computes with: a level, and Linux's names of what a CPU
# must have for it. Best first.
CPU_LEVELS = {
    "amx": ("amx_tile", "amx_bf16", "amx_int8"),
    "avx512-bf16": ("avx512f", "avx512_bf16"),
    "avx512-vnni": ("avx512f", "avx512_vnni"),
    "avx512": ("avx512f",),
    "avx2-vnni": ("avx2", "avx_vnni"),
    "avx2": ("avx2",),
    "sve-bf16": ("sve", "bf16"),  # of ARM from here
    "bf16": ("asimd", "bf16"),
}
_PROC = Path("/proc/self")
_TOPOLOGY = Path("/sys/devices/system/cpu")


def cpu_name() -> str:
    """The processor's name. `platform.processor` is empty on most Linux systems."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_facts() -> dict[str, str]:
    """What Linux says of the first CPU, by its own names. Empty on other systems."""
    try:
        first = CPUINFO.read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_capability(facts: Mapping[str, str] | None = None, machine: str | None = None) -> str:
    """Architecture and instructions, such as "x86_64-amx"; the architecture where no more is known.

    facts: of the CPU, as `cpu_facts` gives them; None for this machine's
    machine: the architecture; None for this machine's
    """
    facts = cpu_facts() if facts is None else facts
    flags = set(facts.get("flags", facts.get("Features", "")).split())  # of x86, of ARM
    architecture = (machine or platform.machine()).lower()
    levels = (level for level, needed in CPU_LEVELS.items() if flags.issuperset(needed))
    return "-".join([architecture, *itertools.islice(levels, 1)])


def available_cpus() -> int:
    """CPUs that this process may use, by its affinity and by its control groups' quotas of time.

    A quota is rounded up: with half a CPU's time there is one CPU.
    """
    return _within_quotas(len(_allowed()))


def available_cores() -> int:
    """The same, with the hardware threads of one core counted once, where Linux says which."""
    return _within_quotas(len({_siblings(cpu) for cpu in _allowed()}))


def _allowed() -> Collection[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _siblings(cpu: int) -> str:
    try:
        return (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _within_quotas(cpus: int) -> int:
    return max(1, min([cpus, *map(math.ceil, cpu_quotas())]))


def cpu_quotas(proc: Path = _PROC) -> Iterator[float]:
    """The CPUs' worth of time that each control group of a process allows; none without a limit.

    proc: the process's folder in /proc
    """
    for group in _groups(proc):
        for folder in (group.folder, *group.folder.parents):
            quota = _quota(folder)
            if quota is not None:
                yield quota
            if folder == group.mount:
                break


class _Group(NamedTuple):
    """A control group: its folder, and where its hierarchy is mounted."""

    folder: Path
    mount: Path


def _groups(proc: Path) -> Iterator[_Group]:
    """The process's groups of version 2, and of version 1's controller of CPU time."""
    with contextlib.suppress(OSError, ValueError):  # no control groups, or none that we understand
        paths = {}
        for line in (proc / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            paths.update(dict.fromkeys(controllers.split(","), path))
        for line in (proc / "mountinfo").read_text().splitlines():
            fields, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
            if controller in paths and controller in ("", *options.split(",")):
                root, mount = fields.split(" ")[3:5]
                yield _Group(_below(mount, root, paths[controller]), Path(mount))


def _below(mount: str, root: str, path: str) -> Path:
    """A group's folder; the mount itself where a container shows only its own part of the tree."""
    inner = os.path.relpath(path, root)
    return Path(mount) if inner.startswith("..") else Path(mount, inner)


def _quota(folder: Path) -> float | None:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            time, period = " ".join((folder / name).read_text() for name in names).split()
            if int(time) > 0:
                return int(time) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # it has none: "max" or -1
            continue
    return None
