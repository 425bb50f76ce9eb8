"""Memory and energy of a piece of work, where the platform reports them."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

POWERCAP = Path("/sys/class/powercap")
STATUS = Path("/proc/self/status")

SMI_PERIOD = 0.1  # seconds between two readings of a GPU's power
FEWEST_READINGS = 10  # of it: the driver averages over up to a second
MOST_WATTS = 1000.0  # of a CPU package; it says how soon a counter can have gone round twice
MIB = 1 << 20


class UnreportedError(Exception):
    """Why the platform does not say."""


class Meter(Protocol):
    """Counts the energy of a chip from when it was made.

    source: what is counted, and by whom
    """

    source: str

    def joules(self, seconds: float) -> float:
        """Over the seconds that went by. Raises UnreportedError."""
        ...

    def close(self) -> None:
        """Stop counting."""
        ...


class Window:
    """Energy and memory of the work done inside this context.

    Energy is of whole chips, whatever else they do meanwhile. Of work on a GPU it is the GPU's and
    the CPU's, or the GPU's alone where the kernel hides the CPU's; the source says which.

    gpu: index or UUID of the GPU that does the work; None where the CPU does
    powercap: where the kernel shows its counters
    """

    def __init__(self, gpu: int | str | None = None, powercap: Path = POWERCAP) -> None:
        self._gpu, self._powercap = gpu, powercap
        self._meters: list[Meter] = []
        self._smi: Smi | None = None
        self._joules: dict[str, float] = {}  # by source
        self._reasons: list[str] = []

    def __enter__(self) -> Self:
        try:
            if self._gpu is not None:
                self._smi = Smi(self._gpu)
                self._meters.append(self._smi)
        except UnreportedError as reason:
            self._reasons.append(str(reason))
        try:
            self._meters.append(Rapl(self._powercap))
        except UnreportedError as reason:
            self._reasons.append(str(reason))
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._start
        for meter in self._meters:
            try:
                self._joules[meter.source] = meter.joules(seconds)
            except UnreportedError as reason:
                self._reasons.append(str(reason))
            finally:
                meter.close()

    def energy(self, images: int) -> dict[str, Any]:
        """joules_per_image of the images scored meanwhile, or None; source, or why there is none.

        Known once the context is left.
        """
        gpu_is_missing = self._gpu is not None and (
            self._smi is None or self._smi.source not in self._joules
        )
        if gpu_is_missing or not self._joules:
            return {"joules_per_image": None, "source": "; ".join(self._reasons)}
        source = " + ".join(self._joules)
        left_out = "".join(f"; without the CPU: {reason}" for reason in self._reasons)
        each = sum(self._joules.values()) / images
        return {"joules_per_image": each, "source": source + left_out}

    def memory(self) -> dict[str, int | None]:
        """host_peak_bytes of this process so far; device_peak_bytes in use inside the context."""
        used = self._smi.used_bytes if self._smi else []
        return {"host_peak_bytes": host_peak_bytes(), "device_peak_bytes": max(used, default=None)}


class Zone(NamedTuple):
    """A part of the CPU whose energy the kernel counts, such as "package-0"."""

    name: str
    counter: Path  # a file with microjoules
    range_uj: int  # where the counter starts over


class Rapl:
    """Energy of the CPU packages and of the memory beside them: RAPL, of Intel and AMD.

    As the kernel shows it, Documentation/power/powercap. A package holds its cores and graphics but
    not "dram". Raises UnreportedError where there is no package, or only root may read it.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones = _zones(root)
        self._before = [int(_read(zone.counter)) for zone in self._zones]
        self.source = f"RAPL {', '.join(zone.name for zone in self._zones)}"

    def joules(self, seconds: float) -> float:
        return sum(
            _joules(before, int(_read(zone.counter)), zone.range_uj, seconds)
            for zone, before in zip(self._zones, self._before, strict=True)
        )

    def close(self) -> None:
        """Nothing is open."""


class Smi:
    """A GPU's power and memory as `nvidia-smi` reads them, of the whole GPU, whoever uses it.

    Raises UnreportedError without nvidia-smi.

    watts, used_bytes: readings so far; none of what the GPU does not report
    """

    def __init__(self, gpu: int | str) -> None:
        program = shutil.which("nvidia-smi")
        if program is None:
            raise UnreportedError("there is no nvidia-smi")
        self.source = f"nvidia-smi power.draw of GPU {gpu}"
        self.watts: list[float] = []
        self.used_bytes: list[int] = []
        query = ("--query-gpu=power.draw,memory.used", "--format=csv,noheader,nounits")
        period = ("-lms", str(round(1e3 * SMI_PERIOD)))
        self._process = subprocess.Popen(
            [program, "-i", str(gpu), *query, *period],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def joules(self, seconds: float) -> float:
        if len(self.watts) < FEWEST_READINGS:
            raise UnreportedError(
                f"nvidia-smi gave {len(self.watts)} readings of power in {seconds:.1f} s, fewer "
                f"than {FEWEST_READINGS}"
            )
        return float(np.mean(self.watts)) * seconds

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                power, _, memory = line.partition(",")
                if (watts := _number(power)) is not None:
                    self.watts.append(watts)
                if (mebibytes := _number(memory)) is not None:
                    self.used_bytes.append(round(mebibytes * MIB))


def host_peak_bytes(status: Path = STATUS) -> int | None:
    """The most memory that this process has held; None where the platform does not say."""
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        most = lines.get("VmHWM")  # not there in some containers
        return None if most is None else 1024 * int(most.split()[0])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _zones(root: Path) -> list[Zone]:
    """Zones to be added up. The kernel lists those below a package beside it, too."""
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
        raise UnreportedError(f"in {seconds:.0f} s an energy counter may have gone round twice")
    return 1e-6 * (after - before if after >= before else after - before + range_uj)


def _number(text: str) -> float | None:
    """What is not reported reads "[N/A]" or "[Not Supported]"."""
    try:
        return float(text)
    except ValueError:
        return None
