"""Two sets of scores of the same images, such as before and after an upgrade: what has changed."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drexperts.evaluation.flips import order_flips
from drexperts.evaluation.metrics import plcc, srcc
from drexperts.evaluation.sides import ScoredSide, Side, check_sides, opened_side
from drexperts.evaluation.upgrade_result import (
    Distribution,
    FailedImage,
    MovedImage,
    ResultComparison,
)
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.proof import CLEAR_DIFFERENCE
from drexperts.runtime.wording import remedy

Array = NDArray[np.float64]
_Places = NDArray[np.intp]

_MOST = 20  # images that are named
_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def compare_results(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
    *,
    across: bool = False,
    threshold: float | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> ResultComparison:
    """Compare two sets of scores of the same images.

    Each side is a `.jsonl`, `.csv` or `.parquet` file that scores were written to, or the URL of
    one, or the folder of a bundle, which then scores `images`. Rows belong together if they have
    the same source, however its path is spelled. It takes about 200 bytes of memory per image, so
    that millions can be compared.

    Args:
        images: what bundles score, see `runtime.score_files`.
        across: compare also what does not mean the same: scores on other scales, of other crop
            grids or, of two bundles, of another preprocessing.
        threshold: how large a change matters, in units of the scale of `a`; None is 1 % of its
            span, which people do not tell apart.
        device: for bundles, as `runtime.load` takes it.

    Example:
        found = compare_results("before.parquet", "after.parquet")
        print(found.srcc, found.moved, found.most_moved[0])

    Raises UserError for a file without scores, with rows of several runs or two rows of an image,
    for contracts that differ, and if no image has a score in both; and what `runtime.load` and
    `runtime.score_files` raise.
    """
    named = [images] if isinstance(images, (str, os.PathLike)) else images
    paths = [os.fspath(path) for path in named]
    names = os.fspath(a), os.fspath(b)
    bundles = check_sides(names, paths)
    if len(bundles) == len(names) and not across:  # before hours of scoring
        _check_alike(_differing(*bundles))
    if threshold is not None and not 0 <= threshold < float("inf"):
        raise UserError(f"the threshold must be a number of at least 0, got {threshold}")
    with (
        tempfile.TemporaryDirectory(prefix="drexperts-") as kept_a,
        tempfile.TemporaryDirectory(prefix="drexperts-") as kept_b,
    ):
        first = opened_side(names[0], paths, device, Path(kept_a), progress)
        second = opened_side(names[1], paths, device, Path(kept_b), progress)
        differing = _differing(first.side, second.side)
        if not across:
            _check_alike(differing)
        return _compared(first, second, differing, threshold)


def _differing(a: Side, b: Side) -> tuple[str, ...]:
    """In what the contracts of two sides differ, so that their scores mean something else."""
    pairs: list[tuple[str, object, object]] = [("scale", a.scale, b.scale)]
    if a.fingerprint != b.fingerprint:  # an equal one says that the grid is, whoever chose it
        pairs.append(("crops per side", a.grid, b.grid))
    if a.preprocessing is not None and b.preprocessing is not None:
        one, other = map(asdict, (a.preprocessing, b.preprocessing))
        pairs += [(f"{name} of the preprocessing", one[name], other[name]) for name in one]
    return tuple(f"{what}: {one} in A, {other} in B" for what, one, other in pairs if one != other)


def _check_alike(differing: tuple[str, ...]) -> None:
    if differing:
        allow = remedy("pass --across", "pass across=True")
        raise UserError(
            f"the scores of A and B do not mean the same ({'; '.join(differing)}): score alike, or "
            f"{allow} to compare them all the same, with B mapped to the scale of A"
        )


def _compared(
    a: ScoredSide, b: ScoredSide, differing: tuple[str, ...], threshold: float | None
) -> ResultComparison:
    in_a, in_b = _joined(a, b)
    values = np.stack([a.columns.values[in_a], _mapped(b, a.side.scale)[in_b]])
    failed_a, failed_b = np.isnan(values)
    scored = ~(failed_a | failed_b)
    if not scored.any():
        raise _nothing_in_common(a, b, len(in_a))
    first, second = values = values[:, scored]
    changes = second - first
    limit = CLEAR_DIFFERENCE * a.side.scale.span if threshold is None else threshold
    return ResultComparison(
        a=a.side,
        b=b.side,
        differing=differing,
        only_a=a.side.images - len(in_a),
        only_b=b.side.images - len(in_b),
        failed_a=int(np.sum(failed_a & ~failed_b)),
        failed_b=int(np.sum(failed_b & ~failed_a)),
        failed_both=int(np.sum(failed_a & failed_b)),
        images=len(changes),
        srcc=srcc(first, second),
        plcc=plcc(first, second),
        threshold=limit,
        flips=order_flips(first, second),
        clear_flips=order_flips(first, second, limit),
        moved=int(np.sum(np.abs(changes) > limit)),
        largest=float(np.abs(changes).max()),
        scores_a=_distribution(first),
        scores_b=_distribution(second),
        changes=_distribution(changes),
        most_moved=_most_moved(a, in_a[scored], values),
        newly_failed=_newly_failed(b, in_b[failed_b & ~failed_a]),
        values=values,
    )


def _joined(a: ScoredSide, b: ScoredSide) -> tuple[_Places, _Places]:
    """The rows of the images that both sides have, in the order of a."""
    found = np.intersect1d(
        a.columns.identities, b.columns.identities, assume_unique=True, return_indices=True
    )
    order = np.argsort(found[1])
    return found[1][order], found[2][order]


def _mapped(side: ScoredSide, scale: ScoreScale) -> Array:
    """The scores of a side, on another scale if that is not its own."""
    own, values = side.side.scale, side.columns.values
    if own == scale:
        return values
    share = (values - own.low) / own.span
    if own.higher_is_better != scale.higher_is_better:
        share = 1 - share
    return scale.low + share * scale.span


def _distribution(values: Array) -> Distribution:
    return Distribution(float(values.mean()), *np.quantile(values, _QUANTILES).tolist())


def _most_moved(a: ScoredSide, rows: _Places, values: Array) -> tuple[MovedImage, ...]:
    """rows: the rows of a in which the values [2, n] are"""
    first, second = values
    changes = second - first
    order = np.argsort(-np.abs(changes), kind="stable")[:_MOST]
    order = order[changes[order] != 0]
    found = a.columns.rows(rows[order].tolist())
    return tuple(
        MovedImage(found[int(rows[i])].source, float(first[i]), float(second[i]), float(changes[i]))
        for i in order
    )


def _newly_failed(b: ScoredSide, rows: _Places) -> tuple[FailedImage, ...]:
    found = b.columns.rows(rows[:_MOST].tolist()).values()
    return tuple(FailedImage(row.source, row.error or "it has no score") for row in found)


def _nothing_in_common(a: ScoredSide, b: ScoredSide, shared: int) -> UserError:
    if shared:
        return UserError(f"none of the {shared} images in both A and B has a score in both")
    first, second = (side.columns.rows([0])[0].source for side in (a, b))
    return UserError(
        f"no image is in both A and B: sources such as {first!r} and {second!r} are compared as "
        "paths; score both with the same paths, from the same folder"
    )
