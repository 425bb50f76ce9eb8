"""How fast long work goes on, and how long it will take."""

import itertools
from collections import deque

_SAMPLES = 12  # so many reports back, so that a change of pace shows


class Pace:
    """The rate of one phase of work, from what is done at each report."""

    def __init__(self) -> None:
        self._phase = ""
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def report(self, phase: str, done: int, now: float) -> None:
        """Take note of how many steps of a phase are done, at a time in seconds."""
        if phase != self._phase or (self._samples and done < self._samples[-1][1]):
            self._samples.clear()
        self._phase = phase
        self._samples.append((now, done))

    @property
    def rate(self) -> float | None:
        """Steps per second; None while it is not known."""
        if len(self._samples) < 2:
            return None
        (start, before), (now, done) = self._samples[0], self._samples[-1]
        return (done - before) / (now - start) if now > start and done > before else None

    def text(self, done: int, total: int | None) -> str:
        """Such as "120 of 1000, 2.5/s, 5 min 52 s left"; what is not known is left out."""
        parts = [f"{done} done" if total is None else f"{done} of {total}"]
        if self.rate is not None:
            parts.append(per_second(self.rate))
            if total is not None:
                parts.append(f"{duration((total - done) / self.rate)} left")
        return ", ".join(parts)


def per_second(rate: float) -> str:
    """Such as "2.51/s", with three digits."""
    return f"{rate:.3g}/s" if rate < 1000 else f"{rate:.0f}/s"


def duration(seconds: float) -> str:
    """Such as "42 s", "5 min 52 s", "3 h 20 min" or "4 d 3 h"."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    for (unit, size), (smaller, part) in itertools.pairwise(units):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"
