"""The proof that an engine is the model: parity through the shipping Scorer, batch invariance."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from drexperts.export.proof.agreement import (
    finite,
    largest_difference,
    leading_flips,
    maps_correlation,
    score_agreement,
    weights_agreement,
)
from drexperts.export.proof.photographs import distorted_crops
from drexperts.model.backbones import normalised
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import (
    MIN_IMAGES,
    BatchInvariance,
    Manifest,
    Parity,
    Profile,
    ScoreScale,
    SetParity,
    invariance_limits,
    within,
)
from drexperts.runtime.preprocess import Preprocessing, Source, crops_from_image, decode
from drexperts.runtime.progress import Progress
from drexperts.runtime.scorer import Scorer, Session

Array = NDArray[np.float64]

REFERENCE = "PyTorch float32 eager, CLS-row form"
AT_ONCE = 4 * 3 * 384**2  # samples in one eager call; more only costs memory on a CPU

# What an engine may differ by, for each precision of the graph. Distances are the largest ones: of
# scores as a share of the span, of weights of the largest reference weight. Flips are shares: of
# pairs, of pairs clearly apart, of images whose leading distortion changes. `_low` is the low end
# of a correlation's interval over images, which is there for enough of them.
# float32 leaves only the order of summation. The blocks' activations keep 11 bits in float16 and 8
# in bfloat16, which a dozen blocks add up. int8 has 8 bits a matrix product on scales that are
# fixed for each tensor: what is asked is that it ranks as float32 does.
# Correlations of weights are the worst expert's, those of maps the worst crop's. Of the model of
# `drx demo`, whose maps are sharp, they were at worst 0.99999 and 0.9998 in float16, 0.9976 (SRCC)
# and 0.949 in int8; a crop with maps of its own has about 0. bfloat16 rounds eight times coarser
# than float16, which puts correlations up to 64 times as far from 1. Single places of a map differ
# most, where a sharp softmax chooses between two that tie: there by 1e-4 in float32, 0.026 in
# float16, and 0.54 in int8, which has no limit on them.
LIMITS = {
    "fp32": {
        "score_max": 1e-4,
        "srcc": 0.9999,
        "srcc_low": 0.9995,
        "plcc": 0.9999,
        "plcc_low": 0.9995,
        "order_flips": 1e-3,
        "clear_flips": 0.0,
        "weights_max": 1e-3,
        "weights_srcc": 0.9999,
        "weights_plcc": 0.9999,
        "leading_flips": 1e-2,
        "maps_max": 3e-4,
        "maps_plcc": 0.9999,
    },
    "fp16": {
        "score_max": 1e-2,
        "srcc": 0.995,
        "srcc_low": 0.99,
        "plcc": 0.999,
        "plcc_low": 0.998,
        "order_flips": 2e-2,
        "clear_flips": 1e-3,
        "weights_max": 5e-2,
        "weights_srcc": 0.995,
        "weights_plcc": 0.999,
        "leading_flips": 5e-2,
        "maps_max": 5e-2,
        "maps_plcc": 0.999,
    },
    "bf16": {
        "score_max": 4e-2,
        "srcc": 0.98,
        "srcc_low": 0.97,
        "plcc": 0.99,
        "plcc_low": 0.98,
        "order_flips": 5e-2,
        "clear_flips": 1e-2,
        "weights_max": 2e-1,
        "weights_srcc": 0.98,
        "weights_plcc": 0.99,
        "leading_flips": 1e-1,
        "maps_max": 4e-1,
        "maps_plcc": 0.95,
    },
    "int8": {
        "score_max": 3e-2,
        "srcc": 0.999,
        "srcc_low": 0.998,
        "plcc": 0.999,
        "plcc_low": 0.998,
        "order_flips": 2e-2,
        "clear_flips": 5e-3,
        "weights_max": 2e-1,
        "weights_srcc": 0.99,
        "weights_plcc": 0.99,
        "leading_flips": 1e-1,
        "maps_plcc": 0.9,
    },
}
# A static int8 graph computes each row alone, on scales that no batch changes.
INVARIANCE = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 8e-3, "int8": 1e-5}


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

    Beside the images themselves, crops of them under every distortion at every level.

    Raises:
        UserError: images that are too few or too much alike, see `parity_sets`, `eager_outputs`.
    """
    spec = scorer.manifest.preprocessing
    sources, sizes = parity_sets(images, spec)
    expected = eager_outputs(model, sources, spec, tell, sizes)
    got = engine_outputs(scorer, sources, tell)
    return compare(expected, got, scorer.manifest.scale, LIMITS[precision], sizes)


def parity_sets(
    images: Sequence[Source], preprocessing: Preprocessing
) -> tuple[list[Source], dict[str, int]]:
    """What parity is measured on, made from photographs: all images, and how many each set has.

    Raises UserError for fewer than three photographs, and for fewer than `MIN_IMAGES` different
    images in all, which no engine could pass its limits on.
    """
    if len(images) < 3:
        raise UserError(f"parity needs at least 3 readable images, got {len(images)}")
    crops = distorted_crops(images, preprocessing)
    different = _different(images, crops)
    if different < MIN_IMAGES:
        raise UserError(
            f"parity needs {MIN_IMAGES} different images, and these {len(images)} with crops of "
            f"them under every distortion make {different}: name more photographs with --images, "
            "in colour and of something, or leave it out"
        )
    return [*images, *crops], {"photographs": len(images), "synthetic": len(crops)}


def _different(images: Sequence[Source], crops: Sequence[Source]) -> int:
    """How many different images there are among crops, all different, and images, up to enough."""
    if len(crops) >= MIN_IMAGES:
        return len(crops)
    return len({decode(image).tobytes() for image in images}) + len(crops)


def _check_scores(scores: Array, sizes: Mapping[str, int]) -> None:
    """A correlation needs scores that are numbers and that differ, in each set that has limits."""
    if not np.isfinite(scores).all():
        raise UserError("the checkpoint gives scores that are no numbers: train it again")
    parts = {name: scores[part] for name, part in _parts(sizes).items()}
    gated = {name: part for name, part in parts.items() if len(part) >= MIN_IMAGES}
    for name, part in ({"images": scores} | gated).items():
        if np.ptp(part) == 0:
            raise UserError(
                f"the model gives all {len(part)} {name} the score {part[0]:g}: name different "
                "photographs with --images, or check the checkpoint"
            )


def _parts(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Where each set is among all images."""
    ends = np.cumsum(list(sizes.values()), dtype=int).tolist()
    return {
        name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def eager_outputs(
    model: DRExperts,
    images: Sequence[Source],
    preprocessing: Preprocessing,
    tell: Progress,
    sizes: Mapping[str, int] | None = None,
) -> Outputs:
    """The float32 model on the runtime's own crops.

    Args:
        sizes: of the sets the images are made of, as from `parity_sets`.

    Raises:
        UserError: scores that are no numbers, or all the same, in all or in a set with limits.
    """
    counts, waiting, rows = [], [], []
    for i, image in enumerate(images, 1):
        tell(f"parity: eager model, image {i} of {len(images)}")
        waiting.append(crops_from_image(decode(image), preprocessing).pixels)
        counts.append(len(waiting[-1]))
        if sum(map(np.size, waiting)) >= AT_ONCE or i == len(images):
            rows.append(eager_rows(model, np.concatenate(waiting)))
            waiting = []
    scores, weights, maps = (np.concatenate(part) for part in zip(*rows, strict=True))
    means, mean_weights = _image_means(scores, counts), _image_means(weights, counts)
    _check_scores(means, sizes or {})
    return Outputs(means, mean_weights, maps, len(maps))


def _image_means(rows: Array, counts: list[int]) -> Array:
    """Means over the crops of each image, of which there are `counts`."""
    return np.array([part.mean(0) for part in np.split(rows, np.cumsum(counts)[:-1])])


def eager_rows(model: DRExperts, pixels: NDArray[np.uint8]) -> tuple[Array, Array, Array]:
    """Scores [B], weights [B, 10] and maps of crops, by the float32 model."""
    with torch.inference_mode():
        chunks = [
            model(normalised(chunk))
            for chunk in torch.split(torch.from_numpy(pixels), -(-AT_ONCE // pixels[0].size))
        ]
    score, weight, maps = (torch.cat(part).double().numpy() for part in zip(*chunks, strict=True))
    return score, weight, maps


def engine_outputs(scorer: Scorer, images: Sequence[Source], tell: Progress) -> Outputs:
    """The same through the Scorer, as an application gets it."""
    with_maps = "maps" in scorer.manifest.outputs
    rows = []
    for i, row in enumerate(scorer.score_stream(images, maps=with_maps), 1):
        tell(f"parity: engine, image {i} of {len(images)}")
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


def compare(
    expected: Outputs,
    got: Outputs,
    scale: ScoreScale,
    limits: dict[str, float],
    sizes: Mapping[str, int] | None = None,
) -> Parity:
    """The parity report of `got` against `expected` under `limits`.

    Fewer than `MIN_IMAGES` have no intervals, and pass no limits on those; what is no number
    passes none.

    Args:
        sizes: how many of the images, in their order, each set has; all of them together.
    """
    scores = score_agreement(expected.scores, got.scores, scale.span)
    drift = np.abs(got.scores - expected.scores) / scale.span
    report = Parity(
        **vars(scores),
        rows=got.rows,
        reference=REFERENCE,
        score_mean=finite(float(drift.mean())),
        score_p99=_p99(drift),
        score_units=finite(scores.score_max * scale.span),
        weights_max=finite(
            largest_difference(got.weights, expected.weights) / _largest(expected.weights)
        ),
        **weights_agreement(expected.weights, got.weights),
        leading_flips=leading_flips(expected.weights, got.weights),
        **_maps_agreement(expected.maps, got.maps),
        limits=limits,
        passed=False,
        sets=_set_by_set(expected.scores, got.scores, scale.span, sizes or {}),
    )
    return replace(report, passed=report.within_limits)


def _p99(drift: Array) -> float:
    with np.errstate(invalid="ignore"):  # beside an infinity
        return finite(float(np.quantile(drift, 0.99)))


def _set_by_set(
    expected: Array, got: Array, span: float, sizes: Mapping[str, int]
) -> dict[str, SetParity]:
    return {
        name: score_agreement(expected[part], got[part], span)
        for name, part in _parts(sizes).items()
    }


def _maps_agreement(expected: Array | None, got: Array | None) -> dict[str, Any]:
    """By the names of the fields in `Parity`; None for an engine without maps."""
    if expected is None or got is None:
        return {"maps_max": None, "maps_plcc": None}
    return {
        "maps_max": finite(largest_difference(got, expected)),
        "maps_plcc": maps_correlation(expected, got),
    }


def measure_invariance(
    open_session: Callable[[int | None], Session],
    images: Sequence[Source],
    manifest: Manifest,
    precision: str,
    tell: Progress,
    profiles: Sequence[Profile] = (),
) -> BatchInvariance:
    """Score the same crops alone, in every batch that the engine admits, and once more otherwise.

    At each batch size the crops travel repeated (one crop fills the batch), beside neighbours that
    differ with the size, with those permuted, and between black, white and noise, which widen
    whatever range an engine takes of a whole batch. Then an engine with optimisation profiles
    scores from several threads at once, and any other on one thread.

    Args:
        open_session: opens the engine with a number of threads, None for its default.
        profiles: of a TensorRT engine. Each has kernels of its own, so that the ends and the
            optimum of each are among the batch sizes.
    """
    session = open_session(None)
    crops = _different_crops(images, manifest.preprocessing, session.max_batch)
    alone = _alone(session, crops)
    sizes = batch_sizes(session.max_batch, profiles)
    drifts = []
    for size in sizes:
        tell(f"batch invariance, {size} of {sizes[-1]}")
        drifts += batch_drifts(session, crops, alone, size)
    tell("batch invariance, threads")
    if profiles:
        again, case = _at_once(session, crops), "at once"
    else:
        again, case = _alone(open_session(1), crops), "threads"
    worst = _worst([*drifts, _drift(again, alone)], alone, manifest)
    tolerance = INVARIANCE[precision]
    return BatchInvariance(
        batches=tuple(sizes),
        cases=("repeated", "neighbours", "permuted", "extremes", case),
        tolerance=tolerance,
        passed=within(worst, {n: v for n, v in invariance_limits(tolerance).items() if n in worst}),
        **worst,
    )


def _worst(
    drifts: Sequence[Mapping[str, float]], alone: Mapping[str, Array], manifest: Manifest
) -> dict[str, float]:
    """The worst drift of each output in its unit, by the names of `BatchInvariance`."""
    unit = {"score": manifest.scale.span, "weights": _largest(alone["weights"]), "maps": 1.0}
    return {
        f"{name}_max": finite(float(np.max([drift[name] for drift in drifts])) / unit[name])
        for name in manifest.outputs
    }


def _alone(session: Session, crops: NDArray[np.uint8]) -> dict[str, Array]:
    """The outputs of each crop in a batch of its own, as one batch."""
    return _joined([session.run(crop[None]) for crop in crops])


def _joined(rows: Sequence[Mapping[str, NDArray[np.float32]]]) -> dict[str, Array]:
    """The outputs of several calls as one batch."""
    return {name: np.concatenate([row[name] for row in rows]).astype(float) for name in rows[0]}


def _at_once(session: Session, crops: NDArray[np.uint8]) -> dict[str, Array]:
    """Each crop alone, from as many threads as the session admits and as many again waiting."""
    with ThreadPoolExecutor(2 * session.concurrency) as pool:
        return _joined(list(pool.map(lambda crop: session.run(crop[None]), crops)))


def _drift(got: Mapping[str, NDArray[Any]], alone: Mapping[str, Array]) -> dict[str, float]:
    """The worst |difference| of each output."""
    return {
        name: largest_difference(got[name].astype(float), expected)
        for name, expected in alone.items()
    }


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


def batch_drifts(
    session: Session, crops: NDArray[np.uint8], alone: Mapping[str, Array], size: int
) -> list[dict[str, float]]:
    """How far the rows of batches of `size` are from the same crops alone."""
    order = (np.arange(size) + size) % len(crops)
    shuffled = np.random.default_rng(size).permutation(order)
    repeated = np.full(size, size % len(crops))
    return [
        *(_row_drift(session, crops[i], alone, i) for i in (repeated, order, shuffled)),
        _row_drift(session, _between_extremes(crops[order]), alone, order, np.s_[::2]),
    ]


def _row_drift(
    session: Session,
    batch: NDArray[np.uint8],
    alone: Mapping[str, Array],
    crops: NDArray[np.int64],
    rows: slice = np.s_[:],
) -> dict[str, float]:
    """How far some rows of a batch are from what each of its crops gives alone."""
    got = session.run(batch)
    return _drift(
        {name: got[name][rows] for name in alone},
        {name: values[crops[rows]] for name, values in alone.items()},
    )


def _between_extremes(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A batch whose every second image is black, white or noise in turn."""
    noise = np.random.default_rng(0).integers(0, 256, batch.shape[1:], np.uint8)
    extremes = np.stack([np.zeros_like(noise), np.full_like(noise, 255), noise])
    changed, places = batch.copy(), np.arange(1, len(batch), 2)
    changed[places] = extremes[places // 2 % 3]
    return changed
