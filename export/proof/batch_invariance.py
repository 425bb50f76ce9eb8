"""Batch invariance: an image's outputs do not depend on the batch that it is scored in."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from drexperts.export.proof.agreement import finite, largest_difference
from drexperts.export.proof.parity import largest
from drexperts.runtime.decoding import Source, decode
from drexperts.runtime.manifest import BatchProfile, Engine, Manifest, ScoreScale
from drexperts.runtime.preprocess import Preprocessing, crops_from_image
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.proof import TOLERANCES, BatchInvariance, invariance_limits, within
from drexperts.runtime.session import Session

Rows = Mapping[str, NDArray[Any]]  # outputs by name, one row for each crop
Pixels = NDArray[np.uint8]

CASES = ("repeated", "neighbours", "permuted", "extremes")


class Runs(Protocol):
    """What runs crops, uint8 [B, 3, H, W]: a Session, or another program."""

    def run(self, pixels: Pixels) -> Rows:
        """The outputs by name."""
        ...


def measure_invariance(
    open_session: Callable[[int | None], Session],
    images: Sequence[Source],
    manifest: Manifest,
    engine: Engine,
    progress: Progress = SILENT,
) -> BatchInvariance:
    """Score the same crops alone and in batches of every size, see `batch_drifts`.

    Then an engine with optimisation profiles scores from several threads at once, and any other is
    opened again with one thread.

    Args:
        open_session: opens the engine with a number of threads, None for its default.
    """
    profiles = () if engine.plan is None else engine.plan.profiles
    session = open_session(None)
    crops = _different_crops(images, manifest.preprocessing, session.max_batch)
    alone = _one_by_one(session, crops)
    sizes = batch_sizes(session.max_batch, profiles)
    drifts = []
    for size in sizes:
        progress(f"batch invariance, {size} of {sizes[-1]}")
        drifts += batch_drifts(session, crops, alone, size)
    progress("batch invariance, threads")
    if profiles:
        again, case = _at_once(session, crops), "at once"
    else:
        again, case = _one_by_one(open_session(1), crops), "threads"
    worst = worst_drift([*drifts, _drift(again, alone)], alone, manifest.scale)
    tolerance = TOLERANCES[engine.precision]
    limits = invariance_limits(tolerance)
    return BatchInvariance(
        batches=tuple(sizes),
        cases=(*CASES, case),
        tolerance=tolerance,
        passed=within(worst, {name: limits[name] for name in worst}),
        **worst,
    )


def batch_sizes(most: int, profiles: Sequence[BatchProfile] = ()) -> list[int]:
    """Every size to 8, then powers of two, the largest, and the ends and optimum of each profile.

    A TensorRT engine has kernels of its own for each profile.
    """
    powers = [2**k for k in range(4, most.bit_length())]
    named = [size for p in profiles for size in (p.min, p.opt, p.max)]
    return sorted({*range(1, min(8, most) + 1), *powers, *named, most} & set(range(1, most + 1)))


def batch_drifts(session: Runs, crops: Pixels, alone: Rows, size: int) -> list[dict[str, float]]:
    """How far the rows of batches of `size` are from the same crops alone, in each of `CASES`.

    One crop fills the batch; the crops have neighbours that differ with the size; those are
    permuted; and every second row is black, white or noise, which widens any range that an engine
    takes over a whole batch.
    """
    order = (np.arange(size) + size) % len(crops)
    shuffled = np.random.default_rng(size).permutation(order)
    repeated = np.full(size, size % len(crops))
    return [
        *(_row_drift(session, crops[rows], alone, rows) for rows in (repeated, order, shuffled)),
        _row_drift(session, _between_extremes(crops[order]), alone, order, np.s_[::2]),
    ]


def worst_drift(
    drifts: Sequence[Mapping[str, float]], alone: Rows, scale: ScoreScale
) -> dict[str, float]:
    """The worst drift of each output in its unit, by the names of `BatchInvariance`."""
    units = {"score": scale.span, "weights": largest(alone["weights"]), "maps": 1.0}
    columns = {name: [drift[name] for drift in drifts] for name in alone}
    return {f"{name}_max": finite(float(np.max(columns[name])) / units[name]) for name in alone}


def _different_crops(images: Sequence[Source], preprocessing: Preprocessing, most: int) -> Pixels:
    """The first crop of each image, at most `most`."""
    chosen = [crops_from_image(decode(image), preprocessing).pixels[0] for image in images[:most]]
    return np.stack(chosen)


def _one_by_one(session: Session, crops: Pixels) -> dict[str, NDArray[Any]]:
    """The outputs of each crop in a batch of its own, joined."""
    return _joined([session.run(crop[None]) for crop in crops])


def _at_once(session: Session, crops: Pixels) -> dict[str, NDArray[Any]]:
    """Each crop alone, from as many threads as the session allows and as many again waiting."""
    with ThreadPoolExecutor(2 * session.concurrency) as pool:
        return _joined(list(pool.map(lambda crop: session.run(crop[None]), crops)))


def _joined(rows: Sequence[Rows]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([row[name] for row in rows]).astype(float) for name in rows[0]}


def _row_drift(
    session: Runs, batch: Pixels, alone: Rows, crops: NDArray[np.int64], rows: slice = np.s_[:]
) -> dict[str, float]:
    """How far some rows of a batch are from the outputs of each of its crops alone."""
    got = session.run(batch)
    return _drift(
        {name: got[name][rows] for name in alone},
        {name: values[crops[rows]] for name, values in alone.items()},
    )


def _drift(got: Rows, alone: Rows) -> dict[str, float]:
    """The worst |difference| of each output."""
    return {
        name: largest_difference(got[name].astype(float), expected)
        for name, expected in alone.items()
    }


def _between_extremes(batch: Pixels) -> Pixels:
    """A copy of a batch whose every second image is black, white or noise in turn."""
    noise = np.random.default_rng(0).integers(0, 256, batch.shape[1:], np.uint8)
    extremes = np.stack([np.zeros_like(noise), np.full_like(noise, 255), noise])
    changed, places = batch.copy(), np.arange(1, len(batch), 2)
    changed[places] = extremes[places // 2 % 3]
    return changed
