"""Result files with given scores, as runs of `drx score` write them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from drexperts.runtime.results import open_results
from drexperts.runtime.score import Score
from support.result_rows import NAMES, scored


def result_file(
    path: Path, scores: Mapping[str, float | str], fingerprint: str = "f" * 16, **changes: Any
) -> Path:
    """Write a file of scores by source; a text in place of a score is an error."""
    opening = open_results(path, fingerprint=fingerprint, distortions=NAMES, overwrite=True)
    with opening as results:
        for source, value in scores.items():
            results.append(replace(_score(source, value, fingerprint), **changes))
    return path


def _score(source: str, value: float | str, fingerprint: str) -> Score:
    error = value if isinstance(value, str) else None
    made: Score = scored(source, error, fingerprint)
    return replace(made, value=math.nan if isinstance(value, str) else value)
