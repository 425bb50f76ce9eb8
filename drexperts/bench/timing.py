"""Times, and the statistics that are computed from them when a report is shown."""

import io
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image

from drexperts.runtime.progress import SILENT, Progress

# Worker threads of PyTorch and ONNX Runtime spin for a while after a call, and that slows down
# whatever runs next on the same cores.
SETTLE = 0.1  # seconds between two calls
WARM_UP = 1  # rounds before any is timed
PHOTO = (1024, 768)
QUANTILES = (20, 50, 80, 90, 95, 99)


@dataclass(frozen=True)
class Summary:
    """Percentiles, mean and coefficient of variation of samples, in the samples' unit."""

    p20: float
    p50: float
    p80: float
    p90: float
    p95: float
    p99: float
    mean: float
    cv: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """The summary of one sample or more; percentiles are interpolated linearly."""
        values = np.asarray(samples, float)
        quantiles = {f"p{q}": float(np.percentile(values, q)) for q in QUANTILES}
        mean = float(values.mean())
        return cls(**quantiles, mean=mean, cv=float(values.std() / mean))


@dataclass(frozen=True)
class Ratio:
    """The median and the middle 60 % of ratios. As text: "2.50 (2.41-2.62)"."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Self:
        """Of two series that were timed in the same rounds, so each ratio is of one round."""
        return cls(*map(float, np.percentile(np.divide(numerators, denominators), (20, 50, 80))))

    def __str__(self) -> str:
        return f"{self.p50:.2f} ({self.p20:.2f}-{self.p80:.2f})"


def alternately(
    calls: Mapping[str, Callable[[], object]], rounds: int, progress: Progress = SILENT
) -> dict[str, tuple[float, ...]]:
    """Seconds of each call: one in every round, in random order."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    for i in range(-WARM_UP, rounds):
        progress(f"round {max(0, i + 1)} of {rounds}")
        turns = list(calls)
        shuffle(turns)
        for name in turns:
            time.sleep(SETTLE)
            taken = seconds(calls[name])
            if i >= 0:
                times[name].append(taken)
    return {name: tuple(taken) for name, taken in times.items()}


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def photograph() -> bytes:
    """A JPEG that is made here, with the mix of smooth and fine detail that photographs have."""
    width, height = PHOTO
    rng = np.random.default_rng(0)
    layers = [
        np.asarray(
            Image.fromarray(
                rng.integers(0, 256, (height // s, width // s, 3), dtype=np.uint8)
            ).resize(PHOTO, Image.Resampling.BICUBIC),
            float,
        )
        for s in (96, 24, 6, 2)
    ]
    mixed = sum(w * layer for w, layer in zip((0.5, 0.3, 0.15, 0.05), layers, strict=True))
    stream = io.BytesIO()
    Image.fromarray(np.asarray(mixed).round().astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()
