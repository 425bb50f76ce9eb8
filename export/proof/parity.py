"""Parity: how far an engine is from the float32 eager model, measured through the Scorer."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drexperts.evaluation.predict import TorchSession
from drexperts.export.proof.agreement import (
    MapsAgreement,
    finite,
    leading_flips,
    maps_agreement,
    percentile,
    score_agreement,
    weights_agreement,
)
from drexperts.export.proof.division import digest_of, digest_of_all
from drexperts.export.proof.photographs import distorted_crops
from drexperts.model.backbones import normalised
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.decoding import Source, decode
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import Engine, ScoreScale
from drexperts.runtime.preprocess import Preprocessing, crops_from_image
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.proof import LIMITS, MIN_IMAGES, Parity, looser
from drexperts.runtime.scorer import Scorer

Array = NDArray[np.float64]

REFERENCE = "PyTorch float32 eager, CLS-row form"
MOST_UNDETERMINED = 0.01  # of the images
# Relative, of the pixels: what a dozen layers of float32 add up to. One draw may be off by luck as
# little as the float32 model.
ROUNDING, DRAWS = 1e-6, 8
AT_ONCE = 4 * 3 * 384**2  # samples in one eager call; more only costs memory on a CPU


class Outputs(NamedTuple):
    """What a model or an engine computes for images cut into crops."""

    scores: Array  # [images], means over the crops
    weights: Array  # [images, 10]
    maps: Array | None  # [crops, 10, grid, grid]
    rows: int  # the number of crops
    counts: tuple[int, ...] = ()  # crops of each image

    def without(self, images: Sequence[int]) -> "Outputs":
        """The outputs of the other images."""
        of_crops = np.repeat(np.arange(len(self.counts)), self.counts)
        maps = None if self.maps is None else self.maps[~np.isin(of_crops, images)]
        left = [np.delete(each, images, axis=0) for each in (self.scores, self.weights)]
        counts = tuple(np.delete(self.counts, images).tolist())
        return Outputs(left[0], left[1], maps, sum(counts), counts)


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
        *,
        limits: Mapping[str, dict[str, float]] = LIMITS,
    ) -> None:
        """limits: of each precision

        Raises UserError for images that are too few or too much alike.
        """
        self._model, self._preprocessing, self._progress = model, preprocessing, progress
        self._limits = limits
        self.images, self.sizes = parity_sets(images, preprocessing)
        self.pictures = [digest_of(image) for image in images]

    @cached_property
    def outputs(self) -> Outputs:
        """The model's outputs. Raises UserError as `eager_outputs`."""
        return eager_outputs(
            self._model, self.images, self._preprocessing, self._progress, self.sizes
        )

    def parity(self, scorer: Scorer, progress: Progress = SILENT) -> Parity:
        """The parity of an engine, under the limits of its precision.

        On the pictures of its last proof it keeps the limits of that, if they are stricter: what an
        export refused is not accepted for being measured twice.
        """
        expected, engine = self.outputs, scorer.engine
        got = engine_outputs(scorer, self.images, progress)
        limits = self._limits[engine.precision]
        pictures, before = digest_of_all(self.pictures), engine.parity
        if before and before.pictures == pictures and not looser(before.limits, limits):
            limits = before.limits
        scale, sizes, left_out = scorer.manifest.scale, self.sizes, []
        if engine.precision == "fp32":
            left_out = self._undetermined(got, limits, scale.span)
        if left_out:
            expected, got = (each.without(left_out) for each in (expected, got))
            places = _parts(sizes).items()
            sizes = {n: size_without(part, left_out) for n, part in places}
        return replace(
            compare(expected, got, scale, limits, sizes),
            pictures=pictures,
            seen=_seen(engine, self.pictures),
            undetermined=len(left_out),
        )

    def _undetermined(self, got: Outputs, limits: Mapping[str, float], span: float) -> list[int]:
        """Images beyond a limit where float32 itself does not determine what the model says.

        A token that lies on a tie multiplies rounding by millions. On such an image the model in
        float64 is more than a tenth of a limit away from what it is in float32, or from what it is
        for pixels that are off by rounding, which is no fault of the engine. More than
        `MOST_UNDETERMINED` would be one.
        """
        far = beyond(self.outputs, got, limits, span)
        if not 0 < len(far) <= MOST_UNDETERMINED * len(self.images):
            return []
        model, images = copy.deepcopy(self._model).double(), [self.images[i] for i in far]
        exact, *drawn = (
            session_outputs(TorchSession(model, prepare=_nearly(draw)), images, self._preprocessing)
            for draw in range(1 + DRAWS)
        )
        others = sorted(set(range(len(self.images))) - set(far))
        tenth = {name: limits[name] / 10 for name in ("score_max", "weights_max", "maps_max")}
        answers = (self.outputs.without(others), *drawn)
        return sorted({far[i] for each in answers for i in beyond(exact, each, tenth, span)})


def _seen(engine: Engine, pictures: Sequence[str]) -> int | None:
    """How many of the pictures it was made on; None for an older engine, which does not say."""
    scaled = engine.precision == "int8" and not engine.calibrated_on
    searched = (engine.frontier or engine.islands) and not engine.searched_on
    return None if scaled or searched else len(engine.made_on.intersection(pictures))


def _nearly(draw: int) -> Callable[[Tensor], Tensor]:
    """Makes a model's input in float64; but for draw 0, it is off by what float32 rounds."""

    def prepare(pixels: Tensor) -> Tensor:
        exact = normalised(pixels).double()
        generator = torch.Generator().manual_seed(draw)
        off = torch.randn(exact.shape, generator=generator, dtype=exact.dtype).to(exact.device)
        return exact * (1 + (ROUNDING if draw else 0.0) * off)

    return prepare


def beyond(expected: Outputs, got: Outputs, limits: Mapping[str, float], span: float) -> list[int]:
    """The images that are farther from the reference than a limit of the largest distance."""
    kept = np.abs(got.scores - expected.scores) <= limits["score_max"] * span
    weights = np.abs(got.weights - expected.weights).max(1) / largest(expected.weights)
    kept &= weights <= limits["weights_max"]
    if expected.maps is not None and got.maps is not None:
        crops = np.abs(got.maps - expected.maps).reshape(len(got.maps), -1).max(1)
        starts = np.cumsum((0, *expected.counts[:-1]))
        kept &= np.maximum.reduceat(crops, starts) <= limits["maps_max"]
    return np.flatnonzero(~kept).tolist()  # NaN is not kept


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


def size_without(part: slice, images: Sequence[int]) -> int:
    """The size of a set that has not some of the images."""
    return part.stop - part.start - sum(part.start <= i < part.stop for i in images)


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
    outputs = session_outputs(TorchSession(model), images, preprocessing, progress)
    check_scores(outputs.scores, sizes or {})
    return outputs


def session_outputs(
    session: TorchSession,
    images: Sequence[Source],
    preprocessing: Preprocessing,
    progress: Progress = SILENT,
) -> Outputs:
    """The outputs of a PyTorch model on the runtime's own crops."""
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
    return Outputs(scores, weights, joined["maps"], sum(counts), tuple(counts))


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
    counts = tuple(len(row.raw) for row in rows)
    return Outputs(scores, weights, crops, sum(counts), counts)


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
    weights = weights_agreement(expected.weights, got.weights)
    weights_of = np.abs(got.weights - expected.weights).max(1) / largest(expected.weights)
    of_maps = MapsAgreement()
    if expected.maps is not None and got.maps is not None:
        of_maps = maps_agreement(expected.maps, got.maps)
    report = Parity(
        **vars(scores),
        rows=got.rows,
        reference=REFERENCE,
        score_mean=finite(float(drift.mean())),
        score_p99=percentile(drift, 99),
        score_units=finite(scores.score_max * scale.span),
        weights_max=finite(float(weights_of.max())),
        weights_p99=percentile(weights_of, 99),
        **{f"weights_{name}": value for name, value in weights._asdict().items()}
        if weights
        else {},
        leading_flips=leading_flips(expected.weights, got.weights),
        **of_maps._asdict(),
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
