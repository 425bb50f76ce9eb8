"""Pictures of where the experts look in a photograph.

One kind compares an expert's two attentions and their difference, as in the paper's Fig. 3. For
each of the three strongest distortions: where the prior's branch looks (p1), where the image
encoder looks (p2), and the refined attention p1 - alpha p2 with which the expert pools. The prior
is DA-CLIP, or in a model that started from nothing a small one of its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from drexperts.evaluation.predict import open_model
from drexperts.model.backbones import normalised
from drexperts.model.checkpoint import Checkpoint, load_checkpoint
from drexperts.model.config import DISTORTIONS, ControllerConfig
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import UserError, WeightsError
from drexperts.runtime.explain import (
    FAINT,
    GAP,
    LEGEND,
    MARGIN,
    PAPER,
    SHOWN_MAPS,
    Pen,
    colour_range,
    explanation,
    overlay,
    paint_ramp,
    panel_map,
    panel_photo,
    stitched_map,
    strongest,
)
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import crops_from_image, with_crops_per_side
from drexperts.runtime.score import DistortionMaps

Floats = NDArray[np.float32]

_BATCH = 4  # crops per forward pass

# Pixels of the picture.
_COLUMN = 300  # the longer side of a panel, and the width of every column
_TITLE = 48  # height
_HEADINGS = 58  # height
_ROW_TITLE = 30  # height
_CAPTION = 46  # height
_KEY = 310  # height of the score and the colour keys below the photograph

_NOTE = 42  # height of two lines about the prior, at the foot


@dataclass(frozen=True)
class Attentions:
    """The score of one photograph, and where the model looked. Numbers are means over the crops.

    value, std: the score, and its population standard deviation over the crops
    weights: one per expert, by its distortion
    alpha: the weight of each expert's semantic attention
    maps: p1, p2 and p1 - alpha p2 of every crop: the CLS row without the CLS token itself
    tokens: how many tokens an attention is spread over; it sums to 1
    """

    value: float
    std: float
    weights: dict[str, float]
    alpha: dict[str, float]
    maps: tuple[DistortionMaps, DistortionMaps, DistortionMaps]
    tokens: int

    @property
    def crops(self) -> int:
        """The number of crops that the photograph was cut into."""
        return len(self.maps[0].boxes)


def explain(
    model: str | Path,
    photo: str | Path,
    *,
    compare: bool = False,
    engine: str | None = None,
    scale: ScoreScale | None = None,
    crops_per_side: int | None = None,
) -> Image.Image:
    """A picture of where the experts look in a photograph, computed on the CPU.

    Args:
        model: a checkpoint or, without `compare`, a bundle's folder.
        compare: show both attentions of the strongest experts and their difference.
        engine: which engine of a bundle is used, as `runtime.load` takes it.
        scale: the scale of a checkpoint's scores, used if its file does not state one.
        crops_per_side: the crop grid, see `runtime.load`; None takes the model's own.

    Example:
        explain("best.safetensors", "photo.jpg", compare=True).save("photo.png")

    Raises:
        UserError: `model` cannot be opened, or is a bundle and `compare` is set; the grid is out of
            range.
        ImageError: the photograph cannot be read.
        WeightsError: the model's outputs are not finite.
    """
    image = decode(photo)
    if compare:
        if Path(model).is_dir():
            raise UserError(
                "--compare takes a checkpoint: a bundle has only the difference of the attentions"
            )
        checkpoint = load_checkpoint(model)
        spec = with_crops_per_side(checkpoint.preprocessing, crops_per_side)
        known = checkpoint._replace(scale=checkpoint.scale or scale, preprocessing=spec)
        return comparison(known, image, Path(photo).name)
    with open_model(
        model, "cpu", engine=engine, scale=scale, crops_per_side=crops_per_side
    ) as scorer:
        (score,) = scorer.score([photo], maps=True)
    if score.error is not None:
        raise WeightsError(f"{model}: {score.error}, take another")
    return explanation(image, score)


def comparison(checkpoint: Checkpoint, image: Image.Image, title: str) -> Image.Image:
    """One RGB picture: the photograph with its score, and three attentions of three experts.

    Args:
        checkpoint: the model in evaluation mode, with the preprocessing it was trained for.
        image: the photograph, RGB and upright, as `runtime.decoding.decode` returns it.
        title: the photograph's name.
    """
    found = attentions(checkpoint, image)
    photo = panel_photo(image, found.maps[0].size, _COLUMN)
    row = _ROW_TITLE + photo.height + _CAPTION
    headings = MARGIN + _TITLE
    first = headings + _HEADINGS
    key = first + _ROW_TITLE + photo.height + GAP
    foot = max(first + SHOWN_MAPS * row, key + _KEY)
    height = foot + _NOTE + MARGIN
    picture = Image.new("RGB", (2 * MARGIN + 4 * _COLUMN + 3 * GAP, height), PAPER)
    pen = Pen(ImageDraw.Draw(picture))
    pen.text((MARGIN, MARGIN), title, 24, width=picture.width - 2 * MARGIN)
    photograph = ("Photograph", f"{image.width} x {image.height} pixels")
    prior = checkpoint.model.config.controller
    for place, (heading, note) in enumerate((photograph, *_headings(prior))):
        pen.text((_left(place), headings), heading, 20, width=_COLUMN)
        pen.text((_left(place), headings + 27), note, 14, FAINT, width=_COLUMN)
    picture.paste(photo, (MARGIN, first + _ROW_TITLE))
    for number, name in enumerate(strongest(found.weights, SHOWN_MAPS)):
        _paint_row(picture, pen, photo, found, name, first + number * row)
    _draw_score(pen, found, checkpoint.scale, key)
    _draw_key(picture, pen, found, key + 112)
    for number, line in enumerate((f"Prior: {prior.name}", f"Names: {prior.words}")):
        at = (MARGIN, foot + 21 * number)
        pen.text(at, line, 14, FAINT, width=picture.width - 2 * MARGIN)
    return picture


def _headings(prior: ControllerConfig) -> tuple[tuple[str, str], ...]:
    """The heading of each attention, and a note below it."""
    first = ("DA-CLIP attention", "p1, of the distortion branch")
    if not prior.is_daclip:
        first = ("Prior's attention", "p1, of a small prior, not DA-CLIP")
    return (
        first,
        ("Encoder attention", "p2, of the semantic branch"),
        ("Refined attention", "p1 - alpha p2, which the expert uses"),
    )


def attentions(checkpoint: Checkpoint, image: Image.Image) -> Attentions:
    """The score, the weights and the attentions of one photograph, RGB and upright.

    Raises WeightsError if the model's outputs are not finite.
    """
    model = checkpoint.model
    crops = crops_from_image(image, checkpoint.preprocessing)
    batches = torch.from_numpy(crops.pixels).split(_BATCH)
    parts = zip(*(_of_batch(model, batch) for batch in batches), strict=True)
    score, weights, *maps = (torch.cat(part).numpy() for part in parts)
    if not all(np.isfinite(values).all() for values in (score, weights, *maps)):
        raise WeightsError("the model's outputs are not finite: take one with undamaged weights")
    alpha = model.saliency.alpha.detach().expand(len(DISTORTIONS)).tolist()
    first, second, third = (DistortionMaps(values, crops.boxes, crops.size) for values in maps)
    return Attentions(
        value=float(score.mean(dtype=np.float64)),
        std=float(score.std(dtype=np.float64)),
        weights=dict(zip(DISTORTIONS, weights.mean(0).tolist(), strict=True)),
        alpha=dict(zip(DISTORTIONS, alpha, strict=True)),
        maps=(first, second, third),
        tokens=1 + model.config.encoder.grid**2,
    )


@torch.no_grad()
def _of_batch(model: DRExperts, pixels: Tensor) -> tuple[Tensor, ...]:
    """uint8 [b, 3, S, S] to score [b], weights [b, 10], and p1, p2, p1 - alpha p2 [b, 10, g, g]."""
    given: list[Any] = []
    # Both attentions are computed again from the arguments that the module was called with.
    with model.saliency.register_forward_pre_hook(lambda _, arguments: given.extend(arguments)):
        prediction = model(normalised(pixels))
    grid = (model.config.encoder.grid,) * 2
    pair = (p[:, :, 1:].unflatten(-1, grid) for p in model.saliency.attentions(*given))
    return prediction.score, prediction.weights, *pair, prediction.maps


def _left(place: int) -> int:
    return MARGIN + place * (_COLUMN + GAP)


def _paint_row(
    picture: Image.Image, pen: Pen, photo: Image.Image, found: Attentions, name: str, top: int
) -> None:
    """One distortion: its name and weight, and its three attentions over the photograph."""
    title = f"{name}  weight {found.weights[name]:+.3g}"
    pen.text((_left(1), top), title, 18, width=3 * _COLUMN)
    panel = top + _ROW_TITLE
    for place, maps in enumerate(found.maps, 1):
        index = list(found.weights).index(name)
        values = panel_map(stitched_map(maps, index), photo.size)
        limit = colour_range(values)
        picture.paste(overlay(photo, values, limit), (_left(place), panel))
        refined = place == len(found.maps)
        note = f"colours end at ±{limit:.2g}" if refined else f"colours from 0 to {limit:.2g}"
        note += f" · alpha {found.alpha[name]:.3g}" * refined
        pen.text((_left(place), panel + photo.height + 6), note, 14, FAINT, width=_COLUMN)


def _draw_score(pen: Pen, found: Attentions, scale: ScoreScale | None, top: int) -> None:
    pen.text((MARGIN, top), f"{found.value:.4g} ± {found.std:.2g}", 30, width=_COLUMN)
    crops = f"quality, mean ± std of {found.crops} crop{'s' * (found.crops != 1)}"
    pen.text((MARGIN, top + 42), crops, 14, FAINT, width=_COLUMN)
    ends = "its scale is unknown"
    if scale is not None:
        worst, best = (scale.low, scale.high)[:: 1 if scale.higher_is_better else -1]
        ends = f"from {worst:g}, worst, to {best:g}, best"
    pen.text((MARGIN, top + 62), ends, 14, FAINT, width=_COLUMN)


def _draw_key(picture: Image.Image, pen: Pen, found: Attentions, top: int) -> None:
    """The meaning of the colours in both kinds of map."""
    right = MARGIN + _COLUMN
    pen.text((MARGIN, top), "Maps", 18)
    notes = (
        (0.0, "p1 and p2", ("0", "", "most")),
        (-1.0, "p1 - alpha p2", ("looks away", "0", "looks here")),
    )
    for number, (low, what, marks) in enumerate(notes):
        line = top + 30 + number * 62
        pen.text((MARGIN, line), what, 14)
        paint_ramp(picture, (MARGIN, line + 20, right), low)
        places = ((MARGIN, "la"), ((MARGIN + right) / 2, "ma"), (right, "ra"))
        for (at, anchor), mark in zip(places, marks, strict=True):
            pen.text((at, line + 20 + LEGEND + 4), mark, 14, FAINT, anchor)
    share = f"a patch's share; evenly spread: {1 / found.tokens:.2g}"
    pen.text((MARGIN, top + 158), share, 14, FAINT, width=_COLUMN)
    if np.isnan(stitched_map(found.maps[0], 0)).any():
        pen.text((MARGIN, top + 178), "pale: in no crop, so never seen", 14, FAINT)
