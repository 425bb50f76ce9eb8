"""Scores with everything that a row can hold, and names that are hard to write."""

import math
import os

from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.score import Score

NAMES = tuple(f"distortion {i}" for i in range(10))
AWKWARD = [
    "plain.jpg",
    'quo"te,comma.jpg',
    "two\nlines\r.jpg",
    "照片.jpg",
    os.fsdecode(b"\xff.jpg"),
]


def scored(source, error=None, fingerprint="f" * 16):
    failed = error is not None
    return Score(
        source=source,
        value=math.nan if failed else 0.1 + 0.2,
        std=math.nan if failed else 1.5,
        raw=() if failed else (0.1, 0.2 + 0.3),
        distortions={} if failed else {name: i / 7 for i, name in enumerate(NAMES)},
        scale=ScoreScale(0.0, 100.0, higher_is_better=True),
        fingerprint=fingerprint,
        error=error,
    )
