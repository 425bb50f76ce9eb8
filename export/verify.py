"""The proof that an engine is the model: parity through the shipping Scorer, batch invariance."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from drexperts.backbone import normalised
from drexperts.evaluate import plcc, srcc
from drexperts.model import DRExperts
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import (
    BatchInvariance,
    Manifest,
    Parity,
    Profile,
    ScoreScale,
    invariance_limits,
    within,
)
from drexperts.runtime.preprocess import Preprocessing, Source, crops_from_image, decode
from drexperts.runtime.scorer import Scorer, Session

Array = NDArray[np.float64]
Progress = Callable[[str], None]

REFERENCE = "PyTorch float32 eager, CLS-row form"
CHUNK = 4  # crops in one eager call; more only costs memory on a CPU

# What an engine may differ by, for each precision of the graph. Scores are fractions of the
# score's span, weights of the largest reference weight, flips of all pairs. float32 leaves only
# the order of summation; the blocks' activations keep 11 bits in float16, and 8 in bfloat16.
LIMITS = {
    "fp32": {
        "score_max": 1e-4,
        "weights_max": 1e-3,
        "maps_max": 1e-4,
        "srcc": 0.9999,
        "plcc": 0.9999,
        "order_flips": 1e-3,
    },
    "fp16": {
        "score_max": 1e-2,
        "weights_max": 5e-2,
        "maps_max": 1e-2,
        "srcc": 0.995,
        "plcc": 0.999,
        "order_flips": 2e-2,
    },
    "bf16": {
        "score_max": 4e-2,
        "weights_max": 2e-1,
        "maps_max": 4e-2,
        "srcc": 0.98,
        "plcc": 0.99,
        "order_flips": 5e-2,
    },
}
NO_NUMBER = float(np.finfo(np.float64).max)
INVARIANCE = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 8e-3}


class Outputs(NamedTuple):
    """What a model or an engine says of images cut into crops."""

    scores: Array  # [images], means over the crops
    weights: Array  # [images, 10]
    maps: Array | None  # [crops, 10, grid, grid]
    rows: int  # crops in all


def measure_parity(
    scorer: Scorer, model: DRExperts, images: Sequence[Source], precision: str, tell: Progress
) -> Parity:
    """Score images through the Scorer and through the eager model, and compare.

    Raises:
        UserError: fewer than three images, of which no rank correlation can be had.
    """
    if len(images) < 3:
        raise UserError(f"parity needs at least 3 readable images, got {len(images)}")
    expected = eager_outputs(model, images, scorer.manifest.preprocessing, tell)
    _check_scores(expected.scores)
    got = engine_outputs(scorer, images, tell)
    return compare(expected, got, scorer.manifest.scale, LIMITS[precision])


def _check_scores(scores: Array) -> None:
    """A correlation needs scores that are numbers and that differ."""
    if not np.isfinite(scores).all():
        raise UserError("the checkpoint gives scores that are no numbers: train it again")
    if np.ptp(scores) == 0:
        raise UserError(
            f"the model gives all {len(scores)} images the score {scores[0]:g}: name different "
            "photographs with --images, or check the checkpoint"
        )


def eager_outputs(
    model: DRExperts, images: Sequence[Source], preprocessing: Preprocessing, tell: Progress
) -> Outputs:
    """The float32 model on the runtime's own crops."""
    scores, weights, maps = [], [], []
    for i, image in enumerate(images, 1):
        tell(f"parity: eager model, image {i} of {len(images)}")
        pixels = crops_from_image(decode(image), preprocessing).pixels
        score, weight, each = eager_rows(model, pixels)
        scores.append(score.mean())
        weights.append(weight.mean(0))
        maps.append(each)
    crops = np.concatenate(maps)
    return Outputs(np.array(scores), np.array(weights), crops, len(crops))


def eager_rows(model: DRExperts, pixels: NDArray[np.uint8]) -> tuple[Array, Array, Array]:
    """Scores [B], weights [B, 10] and maps of crops, by the float32 model."""
    with torch.inference_mode():
        chunks = [
            model(normalised(chunk)) for chunk in torch.split(torch.from_numpy(pixels), CHUNK)
        ]
    score, weight, maps = (torch.cat(part).double().numpy() for part in zip(*chunks, strict=True))
    return score, weight, maps


def engine_outputs(scorer: Scorer, images: Sequence[Source], tell: Progress) -> Outputs:
    """The same through the Scorer, as an application gets it."""
    with_maps = "maps" in scorer.manifest.outputs
    rows = []
    for i, image in enumerate(images, 1):
        tell(f"parity: engine, image {i} of {len(images)}")
        (row,) = scorer.score([image], maps=with_maps)
        rows.append(row)
    failed = [row for row in rows if row.error is not None]
    if failed:  # an image that the eager model could score
        return _no_numbers(len(rows), len(scorer.manifest.distortions))
    scores = np.array([row.value for row in rows], float)
    weights = np.array([list(row.distortions.values()) for row in rows], float)
    maps = [row.maps.values for row in rows if row.maps is not None]
    crops = np.concatenate(maps).astype(float) if maps else None
    return Outputs(scores, weights, crops, sum(len(row.raw) for row in rows))


def _no_numbers(images: int, experts: int) -> Outputs:
    """What is said of an engine that does not score every image."""
    return Outputs(np.full(images, np.nan), np.full((images, experts), np.nan), None, images)


def compare(expected: Outputs, got: Outputs, scale: ScoreScale, limits: dict[str, float]) -> Parity:
    """The parity report of `got` against `expected` under `limits`."""
    drift = np.abs(got.scores - expected.scores) / scale.span
    flips, pairs = order_flips(expected.scores, got.scores)
    measured: dict[str, float | None] = {
        "score_max": float(drift.max()),
        "score_mean": float(drift.mean()),
        "score_p99": float(np.quantile(drift, 0.99)),
        # An engine whose scores do not vary has no correlation, and passes no gate.
        "srcc": float(np.nan_to_num(srcc(expected.scores, got.scores))),
        "plcc": float(np.nan_to_num(plcc(expected.scores, got.scores))),
        "weights_max": _relative(got.weights, expected.weights),
        "maps_max": _maps_drift(got.maps, expected.maps),
    }
    measured = {name: _finite(value) for name, value in measured.items()}
    passed = within(measured | {"order_flips": flips / pairs}, limits)
    counts = {"images": len(drift), "rows": got.rows, "order_flips": flips, "pairs": pairs}
    return Parity(**counts, reference=REFERENCE, limits=limits, passed=passed, **measured)  # type: ignore[arg-type]


def _finite(value: float | None) -> float | None:
    """What is no number is as far off as can be: a manifest holds finite numbers alone."""
    return value if value is None or np.isfinite(value) else NO_NUMBER


def order_flips(expected: Array, got: Array) -> tuple[int, int]:
    """How many pairs `got` ranks the other way round than `expected`, and of how many."""
    first, second = np.triu_indices(len(expected), 1)
    before = expected[first] - expected[second]
    after = got[first] - got[second]
    return int(np.sum(before * after < 0)), len(first)


def _worst(got: Array, expected: Array) -> float:
    return float(np.abs(got - expected).max())


def _maps_drift(got: Array | None, expected: Array | None) -> float | None:
    return None if got is None or expected is None else _worst(got, expected)


def _relative(got: Array, expected: Array) -> float:
    return _worst(got, expected) / _largest(expected)


def measure_invariance(
    open_session: Callable[[int | None], Session],
    images: Sequence[Source],
    manifest: Manifest,
    precision: str,
    tell: Progress,
    profiles: Sequence[Profile] = (),
) -> BatchInvariance:
    """Score the same crops alone, in every batch that the engine admits, and once more otherwise.

    At each batch size the crops travel repeated (one crop fills the batch), beside neighbours, and
    with those permuted. Then an engine with optimisation profiles scores from several threads at
    once, and any other on one thread.

    Args:
        open_session: opens the engine with a number of threads, None for its default.
        profiles: of a TensorRT engine. Each has kernels of its own, so that the ends and the
            optimum of each are among the batch sizes.
    """
    session = open_session(None)
    crops = _different_crops(images, manifest.preprocessing, session.max_batch)
    alone = _joined([session.run(crop[None]) for crop in crops])
    sizes = batch_sizes(session.max_batch, profiles)
    drifts = []
    for size in sizes:
        tell(f"batch invariance, {size} of {sizes[-1]}")
        drifts += _batch_drifts(session, crops, alone, size)
    tell("batch invariance, threads")
    if profiles:
        again, case = _at_once(session, crops), "at once"
    else:
        single = open_session(1)
        again, case = _joined([single.run(crop[None]) for crop in crops]), "threads"
    drifts.append(_drift(again, alone))
    scale = {"score": manifest.scale.span, "weights": _largest(alone["weights"]), "maps": 1.0}
    worst = {
        f"{name}_max": _finite(float(np.max([drift[name] for drift in drifts])) / scale[name])
        for name in manifest.outputs
    }
    tolerance = INVARIANCE[precision]
    passed = within(worst, {n: v for n, v in invariance_limits(tolerance).items() if n in worst})
    cases = ("repeated", "neighbours", "permuted", case)
    return BatchInvariance(
        batches=tuple(sizes),
        cases=cases,
        tolerance=tolerance,
        passed=passed,
        **worst,  # type: ignore[arg-type]
    )


def _joined(rows: Sequence[Mapping[str, NDArray[np.float32]]]) -> dict[str, Array]:
    """The outputs of several calls as one batch."""
    return {name: np.concatenate([row[name] for row in rows]).astype(float) for name in rows[0]}


def _at_once(session: Session, crops: NDArray[np.uint8]) -> dict[str, Array]:
    """Each crop alone, from as many threads as the session admits and as many again waiting."""
    with ThreadPoolExecutor(2 * session.concurrency) as pool:
        return _joined(list(pool.map(lambda crop: session.run(crop[None]), crops)))


def _drift(got: Mapping[str, NDArray[Any]], alone: Mapping[str, Array]) -> dict[str, float]:
    """The worst |difference| of each output."""
    return {name: _worst(got[name].astype(float), expected) for name, expected in alone.items()}


def _largest(values: Array) -> float:
    return max(float(np.abs(values).max()), 1e-12)


def _different_crops(
    images: Sequence[Source], preprocessing: Preprocessing, most: int
) -> NDArray[np.uint8]:
    """One crop of each image in turn, at most `most`."""
    chosen = [crops_from_image(decode(image), preprocessing).pixels[0] for image in images[:most]]
    return np.stack(chosen)


def batch_sizes(most: int, profiles: Sequence[Profile] = ()) -> list[int]:
    """Every size to 8, then powers of two, the largest, and where the profiles begin and end."""
    powers = [2**k for k in range(4, most.bit_length())]
    named = [size for p in profiles for size in (p.min, p.opt, p.max)]
    return sorted({*range(1, min(8, most) + 1), *powers, *named, most} & set(range(1, most + 1)))


def _batch_drifts(
    session: Session, crops: NDArray[np.uint8], alone: Mapping[str, Array], size: int
) -> list[dict[str, float]]:
    """How far the rows of batches of `size` are from the same crops alone."""
    order = np.resize(np.arange(len(crops)), size)
    shuffled = np.random.default_rng(size).permutation(order)
    repeated = np.full(size, size % len(crops))
    return [
        _drift(session.run(crops[i]), {name: values[i] for name, values in alone.items()})
        for i in (repeated, order, shuffled)
    ]
