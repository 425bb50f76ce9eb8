"""How fast an engine is on this machine: a short measurement for whoever just made it."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drexperts import runtime
from drexperts.runtime.manifest import Engine, Manifest

WARM_UP, CALLS = 2, 20
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
    side = manifest.preprocessing.crop
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), np.uint8)
    with runtime.open_engine(bundle, manifest, engine) as scorer:
        session = scorer.session
        for _ in range(WARM_UP):
            session.run(pixels)
        taken: list[float] = []
        while len(taken) < CALLS and (len(taken) < 3 or sum(taken) < LONGEST):
            start = time.perf_counter()
            session.run(pixels)
            taken.append(time.perf_counter() - start)
        return CropSpeed(1e3 * statistics.median(taken), len(taken), session.description)
