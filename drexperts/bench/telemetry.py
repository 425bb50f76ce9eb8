"""Memory and energy of a piece of work, where the platform reports them."""

import sys
import time
from pathlib import Path
from typing import NamedTuple, Self

import psutil
import pynvml

from drexperts.bench.reports import Energy, Memory

POWERCAP = Path("/sys/class/powercap")
STATUS = Path("/proc/self/status")
MOST_WATTS = 1000.0  # of a CPU package: it bounds how soon a counter can wrap around twice


class UnreportedError(Exception):
    """Why the platform does not report something."""


class Window:
    """Energy and memory of the work done inside this context.

    Energy is that of whole chips, whatever else they do meanwhile. For work on a GPU it is the
    GPU's and the CPU's, or the GPU's alone where the kernel hides the CPU's; the source says which.

    gpu: index or UUID of the GPU that does the work; None where the CPU does
    powercap: where the kernel shows its counters
    """

    def __init__(self, gpu: str | None = None, powercap: Path = POWERCAP) -> None:
        self._gpu, self._powercap = gpu, powercap
        self._joules: dict[str, float] = {}  # by source
        self._gpu_reason: str | None = None  # why the GPU's energy is not known
        self._cpu_reason: str | None = None
        self._device_bytes: int | None = None

    def __enter__(self) -> Self:
        self._meter: GpuMeter | None = None
        self._rapl: Rapl | None = None
        try:
            self._meter = None if self._gpu is None else GpuMeter(self._gpu)
        except UnreportedError as reason:
            self._gpu_reason = str(reason)
        try:
            self._rapl = Rapl(self._powercap)
        except UnreportedError as reason:
            self._cpu_reason = str(reason)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._start
        if self._meter is not None:
            self._device_bytes = self._meter.used_bytes()
            try:
                self._joules[self._meter.source] = self._meter.joules()
            except UnreportedError as reason:
                self._gpu_reason = str(reason)
        if self._rapl is not None:
            try:
                self._joules[self._rapl.source] = self._rapl.joules(seconds)
            except UnreportedError as reason:
                self._cpu_reason = str(reason)

    def energy(self, images: int) -> Energy:
        """The energy in which so many images were scored. Known once the context is left."""
        if self._gpu_reason is not None or not self._joules:
            return Energy(None, images, self._gpu_reason or self._cpu_reason or "")
        without = "" if self._cpu_reason is None else f"; without the CPU: {self._cpu_reason}"
        return Energy(sum(self._joules.values()), images, " + ".join(self._joules) + without)

    def memory(self) -> Memory:
        """The most that this process has held, and what the GPU held at the end."""
        return Memory(host_peak_bytes(), self._device_bytes)


class Zone(NamedTuple):
    """A part of the CPU whose energy the kernel counts, such as "package-0"."""

    name: str
    counter: Path  # a file that holds microjoules
    range_uj: int  # where the counter starts over


class Rapl:
    """Energy of the CPU packages and of their memory: RAPL, of Intel and AMD.

    No library reads it, so it is read as the kernel shows it (Documentation/power/powercap). A
    package includes its cores and graphics, but not "dram". Raises UnreportedError where there is
    no package, or only root may read it.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones = _zones(root)
        self._before = [int(_read(zone.counter)) for zone in self._zones]
        self.source = f"RAPL {', '.join(zone.name for zone in self._zones)}"

    def joules(self, seconds: float) -> float:
        """Energy over the seconds that have passed. Raises UnreportedError."""
        return sum(
            _joules(before, int(_read(zone.counter)), zone.range_uj, seconds)
            for zone, before in zip(self._zones, self._before, strict=True)
        )


class GpuMeter:
    """A GPU's energy and memory as NVML counts them, of all processes together.

    Raises UnreportedError where NVML does not know the GPU.
    """

    def __init__(self, gpu: str) -> None:
        try:
            pynvml.nvmlInit()
            if gpu.isdecimal():
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(int(gpu))
            else:
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(gpu)
        except pynvml.NVMLError as cause:
            raise UnreportedError(f"NVML does not report GPU {gpu}: {cause}") from cause
        self.source = f"NVML's energy counter of GPU {gpu}"
        self._before = self._millijoules()

    def joules(self) -> float:
        """Energy since it was made. Raises UnreportedError."""
        after = self._millijoules()
        if self._before is None or after is None:
            raise UnreportedError("the GPU does not count its energy")
        return 1e-3 * (after - self._before)

    def used_bytes(self) -> int | None:
        """Memory in use now; None where the GPU does not report it."""
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        except pynvml.NVMLError:
            return None

    def _millijoules(self) -> int | None:
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except pynvml.NVMLError:
            return None


def resident_bytes() -> int:
    """The memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def host_peak_bytes(status: Path = STATUS) -> int | None:
    """The most memory that this process has held; None where the platform does not report it.

    On Linux it is read from the kernel: psutil does not know it, and `getrusage` includes
    the peak of the process that started this one.
    """
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        most = lines.get("VmHWM")  # some containers do not have it
        return None if most is None else 1024 * int(most.split()[0])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _zones(root: Path) -> list[Zone]:
    """Zones to add up. The kernel lists those inside a package beside it, too."""
    zones = []
    for folder in sorted(root.glob("intel-rapl:*")):
        name = _read(folder / "name")
        if name == "dram" or name.startswith("package-"):
            most = int(_read(folder / "max_energy_range_uj"))
            zones.append(Zone(name, folder / "energy_uj", most))
    if not zones:
        raise UnreportedError("the kernel counts no CPU package's energy (RAPL)")
    return zones


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError as cause:
        raise UnreportedError(f"only root may read {path}") from cause
    except OSError as cause:
        raise UnreportedError(f"cannot read {path}: {cause.strerror}") from cause


def _joules(before: int, after: int, range_uj: int, seconds: float) -> float:
    """Energy between two readings of a counter that started over once at most."""
    if seconds * MOST_WATTS > 1e-6 * range_uj:
        raise UnreportedError(f"in {seconds:.0f} s an energy counter may have wrapped twice")
    return 1e-6 * (after - before if after >= before else after - before + range_uj)
