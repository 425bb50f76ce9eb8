"""How fast an engine is on this machine: a short measurement for whoever just made it."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drexperts import runtime
from drexperts.runtime.manifest import Engine, Manifest
from drexperts.runtime.session import Session

WARM_UP, CALLS = 2, 20
ROUNDS = 15  # of sessions that are compared
LONGEST = 2.0  # seconds after which no further call begins; there are at least three


@dataclass(frozen=True)
class CropSpeed:
    """How long an engine takes for one crop, from pixels to results on the host.

    ms: milliseconds, the median of `calls` calls of one crop each
    session: the library and the device that ran it
    """

    ms: float
    calls: int
    session: str

    def __str__(self) -> str:
        return f"{self.ms:.3g} ms per crop (median of {self.calls} calls; {self.session})"


def crop_speed(bundle: str | Path, manifest: Manifest, engine: Engine) -> CropSpeed:
    """Time an engine of a bundle for at most some seconds; `drx bench` measures thoroughly.

    Raises what `open_engine` does.
    """
    with runtime.open_engine(bundle, manifest, engine) as scorer:
        return session_speed(scorer.session, manifest.preprocessing.crop)


def session_speed(session: Session, side: int) -> CropSpeed:
    """Time a session on single crops of `side` pixels."""
    pixels = _noise(side)
    for _ in range(WARM_UP):
        session.run(pixels)
    taken: list[float] = []
    while len(taken) < CALLS and (len(taken) < 3 or sum(taken) < LONGEST):
        taken.append(_seconds(session, pixels))
    return CropSpeed(1e3 * statistics.median(taken), len(taken), session.description)


def by_speed(sessions: Mapping[str, Session], side: int) -> list[str]:
    """The names of sessions, the fastest first, by the medians of alternate calls with one crop."""
    pixels = _noise(side)
    rounds = [
        {name: _seconds(session, pixels) for name, session in sessions.items()}
        for _ in range(WARM_UP + ROUNDS)
    ][WARM_UP:]
    return sorted(sessions, key=lambda name: statistics.median(each[name] for each in rounds))


def _noise(side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (1, 3, side, side), np.uint8)


def _seconds(session: Session, pixels: NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    session.run(pixels)
    return time.perf_counter() - start
