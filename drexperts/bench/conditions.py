"""When a measurement ran, and what else its machine did meanwhile."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil


@dataclass(frozen=True)
class Conditions:
    """The time of a measurement, and how busy its machine was.

    started: in UTC, as ISO 8601 writes it
    seconds: how long it took
    load_before: threads that ran or waited for a CPU, averaged over the minute before
    loads: the same average after each batch and at the end, the measurement itself included
    steal: the share of all CPUs' time in which a virtual machine's CPUs waited for their host, 0 to
        1; None where the kernel does not count it
    """

    started: str
    seconds: float
    load_before: float | None
    loads: tuple[float, ...]
    steal: float | None


class Watch:
    """Observes the machine from its making until `conditions` is called."""

    def __init__(self) -> None:
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._start = time.perf_counter()
        self._before, self._load_before = psutil.cpu_times(), _load()
        self._loads: list[float] = []

    def look(self) -> None:
        """Read the load."""
        found = _load()
        self._loads += [] if found is None else [found]

    def conditions(self) -> Conditions:
        """What was observed until now."""
        self.look()
        seconds = time.perf_counter() - self._start
        steal = _steal(self._before, psutil.cpu_times())
        return Conditions(self._started, seconds, self._load_before, tuple(self._loads), steal)


def _load() -> float | None:
    try:
        return float(psutil.getloadavg()[0])
    except OSError:  # the platform does not tell
        return None


def _steal(before: tuple[float, ...], after: tuple[float, ...]) -> float | None:
    """Its share of the time between two readings of /proc/stat; other systems do not have it."""
    if not hasattr(after, "steal"):
        return None
    parts = after._fields  # type: ignore[attr-defined]
    passed = {name: getattr(after, name) - getattr(before, name) for name in parts}
    # A guest's time is in its user time, too.
    total = sum(spent for name, spent in passed.items() if not name.startswith("guest"))
    return max(0.0, passed["steal"]) / total if total > 0 else 0.0
