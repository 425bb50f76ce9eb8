"""Parity: how far an engine is from the float32 eager model, measured through the Scorer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drexperts.evaluation.predict import TorchSession
from drexperts.export.proof.agreement import (
    finite,
    largest_difference,
    leading_flips,
    maps_correlation,
    score_agreement,
    weights_agreement,
)
from drexperts.export.proof.photographs import distorted_crops
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.decoding import Source, decode
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing, crops_from_image
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.proof import LIMITS, MIN_IMAGES, Parity
from drexperts.runtime.scorer import Scorer

Array = NDArray[np.float64]

REFERENCE = "PyTorch float32 eager, CLS-row form"
AT_ONCE = 4 * 3 * 384**2  # samples in one eager call; more only costs memory on a CPU


class Outputs(NamedTuple):
    """What a model or an engine computes for images cut into crops."""

    scores: Array  # [images], means over the crops
    weights: Array  # [images, 10]
    maps: Array | None  # [crops, 10, grid, grid]
    rows: int  # the number of crops


class Reference:
    """The outputs of the float32 eager model, with which engines are compared.

    The model scores the images once, when the first engine is compared. The images are those given
    and crops of them under every distortion at every level, see `parity_sets`.
    """

    def __init__(
        self,
        model: DRExperts,
        images: Sequence[Source],
        preprocessing: Preprocessing,
        progress: Progress = SILENT,
    ) -> None:
        """Raises UserError for images that are too few or too much alike."""
        self._model, self._preprocessing, self._progress = model, preprocessing, progress
        self.images, self.sizes = parity_sets(images, preprocessing)

    @cached_property
    def outputs(self) -> Outputs:
        """The model's outputs. Raises UserError as `eager_outputs`."""
        return eager_outputs(
            self._model, self.images, self._preprocessing, self._progress, self.sizes
        )

    def parity(self, scorer: Scorer, progress: Progress = SILENT) -> Parity:
        """The parity of an engine, under the limits of its precision."""
        expected = self.outputs
        got = engine_outputs(scorer, self.images, progress)
        limits = LIMITS[scorer.engine.precision]
        return compare(expected, got, scorer.manifest.scale, limits, self.sizes)


def parity_sets(
    images: Sequence[Source], preprocessing: Preprocessing
) -> tuple[list[Source], dict[str, int]]:
    """What parity is measured on, made from photographs: all images, and the size of each set.

    Raises UserError for fewer than three photographs, and for fewer than `MIN_IMAGES` different
    images in all, on which no engine could pass its limits.
    """
    if len(images) < 3:
        raise UserError(f"parity needs at least 3 readable images, got {len(images)}")
    crops = distorted_crops(images, preprocessing)
    different = _different(images, crops)
    if different < MIN_IMAGES:
        raise UserError(
            f"parity needs {MIN_IMAGES} different images, and these {len(images)} with crops of "
            f"them under every distortion make {different}: pass more photographs, in colour and "
            "with some detail, or none of your own"
        )
    return [*images, *crops], {"photographs": len(images), "synthetic": len(crops)}


def _different(images: Sequence[Source], crops: Sequence[Source]) -> int:
    """How many images differ, counted until there are enough; the crops all do."""
    if len(crops) >= MIN_IMAGES:
        return len(crops)
    return len({decode(image).tobytes() for image in images}) + len(crops)


def check_scores(scores: Array, sizes: Mapping[str, int]) -> None:
    """Raises UserError for scores that are not finite, or all equal in a set that has limits."""
    if not np.isfinite(scores).all():
        raise UserError("the checkpoint gives scores that are not finite: train it again")
    parts = {name: scores[part] for name, part in _parts(sizes).items()}
    gated = {name: part for name, part in parts.items() if len(part) >= MIN_IMAGES}
    for name, part in ({"images": scores} | gated).items():
        if np.ptp(part) == 0:
            raise UserError(
                f"the model gives all {len(part)} {name} the score {part[0]:g}: pass different "
                "photographs, or check the checkpoint"
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
    progress: Progress = SILENT,
    sizes: Mapping[str, int] | None = None,
) -> Outputs:
    """The outputs of the float32 model on the runtime's own crops.

    Args:
        sizes: of the sets that the images are made of, as from `parity_sets`.

    Raises:
        UserError: the scores are not finite, or all equal, among all or in a set with limits.
    """
    session = TorchSession(model)
    counts, waiting, rows = [], [], []
    for i, image in enumerate(images, 1):
        progress(f"parity: eager model, image {i} of {len(images)}")
        waiting.append(crops_from_image(decode(image), preprocessing).pixels)
        counts.append(len(waiting[-1]))
        if sum(map(np.size, waiting)) >= AT_ONCE or i == len(images):
            crops = np.concatenate(waiting)
            pieces = range(0, len(crops), -(-AT_ONCE // crops[0].size))
            rows += [session.run(crops[at : at + pieces.step]) for at in pieces]
            waiting = []
    joined = {name: np.concatenate([row[name] for row in rows]).astype(float) for name in rows[0]}
    scores, weights = (_image_means(joined[name], counts) for name in ("score", "weights"))
    check_scores(scores, sizes or {})
    return Outputs(scores, weights, joined["maps"], len(joined["maps"]))


def _image_means(rows: Array, counts: list[int]) -> Array:
    """The mean over the crops of each image, of which there are `counts`."""
    return np.array([part.mean(0) for part in np.split(rows, np.cumsum(counts)[:-1])])


def engine_outputs(
    scorer: Scorer, images: Sequence[Source], progress: Progress = SILENT
) -> Outputs:
    """The outputs of an engine through the Scorer, as an application gets them.

    All are NaN if an image is not scored, since the eager model could score every one.
    """
    with_maps = "maps" in scorer.manifest.outputs
    rows = []
    for i, row in enumerate(scorer.score_stream(images, maps=with_maps), 1):
        progress(f"parity: engine, image {i} of {len(images)}")
        rows.append(row)
    if any(row.error is not None for row in rows):
        experts = len(scorer.manifest.distortions)
        nothing = np.full((len(rows), experts), np.nan)
        return Outputs(nothing[:, 0], nothing, None, len(rows))
    scores = np.array([row.value for row in rows], float)
    weights = np.array([list(row.distortions.values()) for row in rows], float)
    maps = [row.maps.values for row in rows if row.maps is not None]
    crops = np.concatenate(maps).astype(float) if maps else None
    return Outputs(scores, weights, crops, sum(len(row.raw) for row in rows))


def compare(
    expected: Outputs,
    got: Outputs,
    scale: ScoreScale,
    limits: dict[str, float],
    sizes: Mapping[str, int] | None = None,
) -> Parity:
    """The parity report of `got` against `expected` under `limits`.

    Fewer than `MIN_IMAGES` have no intervals and so pass no limit on those; values that are not
    finite pass none.

    Args:
        sizes: how many of the images, in their order, belong to each set.
    """
    scores = score_agreement(expected.scores, got.scores, scale.span)
    drift = np.abs(got.scores - expected.scores) / scale.span
    with np.errstate(invalid="ignore"):  # beside an infinity
        p99 = finite(float(np.quantile(drift, 0.99)))
    weights = weights_agreement(expected.weights, got.weights)
    weights_max = largest_difference(got.weights, expected.weights) / largest(expected.weights)
    maps_max = maps_plcc = None
    if expected.maps is not None and got.maps is not None:
        maps_max = finite(largest_difference(got.maps, expected.maps))
        maps_plcc = maps_correlation(expected.maps, got.maps)
    report = Parity(
        **vars(scores),
        rows=got.rows,
        reference=REFERENCE,
        score_mean=finite(float(drift.mean())),
        score_p99=p99,
        score_units=finite(scores.score_max * scale.span),
        weights_max=finite(weights_max),
        **{f"weights_{name}": value for name, value in weights._asdict().items()}
        if weights
        else {},
        leading_flips=leading_flips(expected.weights, got.weights),
        maps_max=maps_max,
        maps_plcc=maps_plcc,
        limits=limits,
        passed=False,
        sets={
            name: score_agreement(expected.scores[part], got.scores[part], scale.span)
            for name, part in _parts(sizes or {}).items()
        },
    )
    return replace(report, passed=report.within_limits)


def largest(values: Array) -> float:
    """The largest magnitude, which differences are divided by."""
    return max(float(np.abs(values).max()), 1e-12)
