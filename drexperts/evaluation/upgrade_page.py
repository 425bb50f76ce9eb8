"""A comparison of two sets of scores as one HTML page, with the pictures that moved most.

No script, nothing fetched: pictures are inside it. It needs the extra `report`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from drexperts.evaluation.upgrade_result import MovedImage, ResultComparison
from drexperts.evaluation.upgrade_tables import (
    agreement_table,
    change,
    correlation,
    distribution_table,
    failed_table,
    shown,
    sides_table,
)
from drexperts.runtime.decoding.workers import IsolatedDecoder
from drexperts.runtime.files import written_whole
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.quoting import printable
from drexperts.ui.charts import Words, density
from drexperts.ui.pages import render
from drexperts.ui.pictures import SIDE, Picture, thumbnail

_CHART = Words("scores of B against those of A", "score in A", "score in B")
# The smallest whole copy of a picture that a decoder makes.
_SMALL = Preprocessing(crop=1, short_side_min=1, short_side_max=SIDE, crops_per_side=1)


def write_comparison_page(comparison: ResultComparison, path: str | os.PathLike[str]) -> None:
    """Write a page of what `compare_results` found, atomically.

    Pictures are those of sources that are image files here and now, seen from the current folder.
    They are decoded in a process of its own. Sources without a picture, such as members of
    archives, are named.

    Raises OSError.
    """
    with written_whole(Path(path)) as aside:
        aside.write_text(_page(comparison), encoding="utf-8")


def _page(found: ResultComparison) -> str:
    return render(
        "upgrade.html.j2",
        title="Scores of A and B",
        found=found,
        tiles=dict(_tiles(found)),
        chart=density(found.values[0], found.values[1], _CHART),
        agreement=agreement_table(found),
        distribution=distribution_table(found),
        failed=failed_table(found),
        pictures=_pictures(found),
        sides=sides_table(found),
    )


def _tiles(found: ResultComparison) -> Iterator[tuple[str, str]]:
    """What a reader asks first."""
    yield "rank correlation (SRCC)", correlation(found.srcc)
    yield "median change, B - A", change(found.changes.median, found.a.scale)
    yield "largest change", shown(found.largest, found.a.scale)
    yield f"moved by more than {found.threshold:g}", f"{found.moved / found.images:.2%}"


def _pictures(found: ResultComparison) -> list[Picture]:
    decoder = IsolatedDecoder(_SMALL, count=1)
    try:
        return [_picture(moved, found, decoder) for moved in found.most_moved]
    finally:
        decoder.close()


def _picture(moved: MovedImage, found: ResultComparison, decoder: IsolatedDecoder) -> Picture:
    scale = found.a.scale
    scores = f"{shown(moved.a, scale)} → {shown(moved.b, scale)}"
    said = f"{scores} ({change(moved.change, scale)})"
    return Picture(printable(moved.source), said, thumbnail(Path(moved.source), decoder.resized))
