"""A picture that explains a score: the photograph, three experts' maps, and the ten weights."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from drexperts.runtime.errors import UserError
from drexperts.runtime.score import DistortionMaps, Score
from drexperts.runtime.sources import canonical

Colour: TypeAlias = tuple[int, int, int]
Floats: TypeAlias = NDArray[np.float32]

SHOWN_MAPS = 3

# Pixels of the picture.
MARGIN, GAP = 32, 20
_PANEL = 400  # longer side of a panel
_COLUMN = 250  # least width of a column, for its caption
_CAPTION = 62  # height
_BAR_ROW = 30  # height
_CHART = 10 * _BAR_ROW + 44  # least height of the lower half
LEGEND = 14  # height of the colour strip

PAPER, INK, FAINT, _RULE = (255, 255, 255), (28, 30, 34), (112, 116, 124), (214, 216, 220)

# From "looks away" over zero to "looks here": blue and orange, which differ under every common
# colour blindness. Equal distances from zero are nearly equally light (CIE L* 47, 67, 82, 71, 51).
_ANCHORS = np.array(
    [(20, 105, 230), (95, 170, 250), (205, 205, 205), (250, 150, 50), (215, 75, 0)], np.float32
)
_POSITIVE, _NEGATIVE = (222, 100, 16), (36, 104, 204)
_OPACITY = 0.85  # of the largest value; the photograph stays visible below
_PERCENTILE = 99.5  # of |value|: the end of the colours, so that one token does not hide the rest


def explanation(image: Image.Image, score: Score) -> Image.Image:
    """One RGB picture that shows an image, its score, and the experts' weights and maps.

    image: the photograph, RGB and upright, as decoded or as resized for its crops
    score: its score, made with `maps=True`

    Raises UserError for a score without maps, such as one with an error.
    """
    if score.maps is None:
        raise UserError("there are no maps to explain this score by: score it with maps")
    photo = panel_photo(image, score.maps.size, _PANEL)
    column = max(photo.width, _COLUMN)
    width = 2 * MARGIN + 4 * column + 3 * GAP
    top = MARGIN + photo.height + _CAPTION + GAP
    picture = Image.new("RGB", (width, top + _CHART + MARGIN), PAPER)
    pen = Pen(ImageDraw.Draw(picture))
    half = 2 * column + GAP
    _paint_panels(picture, pen, photo, score, column)
    _draw_bars(pen, score.distortions, (MARGIN, top, MARGIN + half - 2 * GAP))
    right = (MARGIN + half + GAP, top, width - MARGIN)
    _draw_value(pen, score, right)
    _draw_legend(picture, pen, score.maps, right)
    return picture


def strongest(weights: Mapping[str, float], count: int) -> list[str]:
    """The `count` distortions with the largest |weight|, largest first.

    The score is the sum of the weights times a common factor, so |weight| is how far the score
    would move without that expert; the sign only gives the direction.
    """
    return sorted(weights, key=lambda name: -abs(weights[name]))[:count]


def stitched_map(maps: DistortionMaps, distortion: int) -> Floats:
    """One distortion's map over the resized image: float32 [height, width].

    Each crop's map is enlarged to the crop's box, bilinearly; where boxes overlap their mean
    counts. NaN where no crop looked.
    """
    width, height = maps.size
    total = np.zeros((height, width), np.float32)
    count = np.zeros((height, width), np.float32)
    for values, (left, top, right, bottom) in zip(maps.values, maps.boxes.tolist(), strict=True):
        box = np.s_[top:bottom, left:right]
        total[box] += _enlarged(values[distortion], (right - left, bottom - top))
        count[box] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def is_picture(path: Path) -> bool:
    """Whether a file has a name that `file_name` gives to explanations."""
    return re.fullmatch(r".*-[0-9a-f]{8}\.png", path.name) is not None


def file_name(source: str | os.PathLike[str]) -> str:
    """The file name of the explanation of an image file: unique per path, equal in every run."""
    path = os.fsencode(canonical(os.fspath(source)))
    # Cut, so that a name at the limit of the file system stays below it.
    name = Path(source).name.encode("ascii", "replace").decode().replace("?", "_")
    stem = "".join(letter if letter.isprintable() else "_" for letter in name)[:100]
    return f"{stem}-{hashlib.sha256(path).hexdigest()[:8]}.png"


def _enlarged(values: Floats, size: tuple[int, int]) -> Floats:
    """A map [h, w] at another size (width, height), bilinearly."""
    resized = Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)


def panel_photo(image: Image.Image, size: tuple[int, int], side: int) -> Image.Image:
    """The part of the photograph that was resized to `size`, `side` pixels on its longer side."""
    # A very long image is cut to its centre before it is resized: the maps cover that part only.
    scale = min(image.width / size[0], image.height / size[1])
    width, height = round(size[0] * scale), round(size[1] * scale)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    seen = image.crop((left, top, left + width, top + height))
    fit = side / max(seen.size)
    panel = (max(1, round(seen.width * fit)), max(1, round(seen.height * fit)))
    return seen.resize(panel, Image.Resampling.LANCZOS)


def panel_map(stitched: Floats, size: tuple[int, int]) -> Floats:
    """A stitched map at a panel's size (width, height); NaN stays NaN."""
    seen = ~np.isnan(stitched)
    total = _enlarged(np.where(seen, stitched, np.float32(0)), size)
    share = _enlarged(seen.astype(np.float32), size)
    return np.divide(total, share, out=np.full_like(total, np.nan), where=share > 0.5)


def colour_range(values: Floats) -> float:
    """The |value| at which the colours end."""
    seen = np.abs(values[~np.isnan(values)])
    return float(np.percentile(seen, _PERCENTILE)) if seen.size else 0.0


def _colours(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Values in -1..1 to RGB 0..255: [...] -> [..., 3]."""
    stops = np.linspace(-1, 1, len(_ANCHORS))
    return np.stack([np.interp(values, stops, channel) for channel in _ANCHORS.T], axis=-1)


def overlay(photo: Image.Image, values: Floats, limit: float) -> Image.Image:
    """The photograph in grey under the colours of the map; paler where there is no crop."""
    grey = np.asarray(photo.convert("L"), np.float32)[..., None]
    relative = np.clip(values / (limit or 1.0), -1, 1)
    strength = _OPACITY * (np.abs(np.nan_to_num(relative)) ** 0.75)[..., None]
    painted = (1 - strength) * grey + strength * _colours(np.nan_to_num(relative))
    shown = np.where(np.isnan(relative)[..., None], 0.25 * grey + 190, painted)
    return Image.fromarray(np.broadcast_to(shown, (*grey.shape[:2], 3)).astype(np.uint8))


@dataclass(frozen=True)
class Pen:
    """Draws text and bars in the style of this picture."""

    draw: ImageDraw.ImageDraw

    def text(
        self,
        at: tuple[float, float],
        text: str,
        size: int = 16,
        colour: Colour = INK,
        anchor: str = "la",
        width: float | None = None,
    ) -> None:
        """One line of text; what is wider than `width` ends in an ellipsis."""
        font = ImageFont.load_default(size)
        # The built-in font has little more than ASCII, and draws a box for every other character.
        text = "".join(c if c.isascii() or c in "±·" else "?" for c in text)
        if width is not None and font.getlength(text) > width:
            while text and font.getlength(text + "...") > width:
                text = text[:-1]
            text += "..."
        self.draw.text(at, text, colour, font, anchor)

    def bar(self, start: float, end: float, top: float, height: float, colour: Colour) -> None:
        """A horizontal bar between two x, in either order."""
        left, right = sorted((start, end))
        self.draw.rounded_rectangle((left, top, max(right, left + 1), top + height), 3, colour)


def _paint_panels(
    picture: Image.Image, pen: Pen, photo: Image.Image, score: Score, column: int
) -> None:
    assert score.maps is not None
    top = MARGIN + photo.height + 10
    for place, name in enumerate(["", *strongest(score.distortions, SHOWN_MAPS)]):
        left = MARGIN + place * (column + GAP)
        if place == 0:
            panel = photo
            title, note = Path(score.source).name, "photograph"
        else:
            index = list(score.distortions).index(name)
            values = panel_map(stitched_map(score.maps, index), photo.size)
            limit = colour_range(values)
            panel = overlay(photo, values, limit)
            title = f"{name}  {score.distortions[name]:+.3g}"
            note = f"colours end at ±{limit:.2g}"
        picture.paste(panel, (left, MARGIN))
        pen.text((left, top), title, 20, width=column)
        pen.text((left, top + 27), note, 14, FAINT, width=column)


def _draw_bars(pen: Pen, weights: Mapping[str, float], place: tuple[int, int, int]) -> None:
    """Draw the weights as bars, the strongest in full colour. place: left, top, right."""
    left, top, right = place
    pen.text((left, top), "Expert weights", 20)
    low, high = min(0.0, *weights.values()), max(0.0, *weights.values())
    start, end = left + 175, right - 78  # room for the names and the numbers

    def x(weight: float) -> float:
        return start + (weight - low) / ((high - low) or 1.0) * (end - start)

    shown = strongest(weights, SHOWN_MAPS)
    first = top + 40
    for row, (name, weight) in enumerate(weights.items()):
        y = first + row * _BAR_ROW
        strong, signed = name in shown, _POSITIVE if weight >= 0 else _NEGATIVE
        pen.text((left, y + 10), name, 16, INK if strong else FAINT, "lm", width=165)
        pen.bar(x(0), x(weight), y + 2, 17, signed if strong else _pale(signed))
        pen.text((right, y + 10), f"{weight:+.3g}", 16, INK if strong else FAINT, "rm")
    bottom = first + len(weights) * _BAR_ROW - 6
    pen.draw.line((x(0), first - 4, x(0), bottom), FAINT, 1)


def _pale(colour: Colour) -> Colour:
    red, green, blue = (150 + channel * 105 // 255 for channel in colour)
    return red, green, blue


def _draw_value(pen: Pen, score: Score, place: tuple[int, int, int]) -> None:
    """Draw value ± std, and where it is on the scale. place: left, top, right."""
    left, top, right = place
    scale = score.scale
    better = "higher is better" if scale.higher_is_better else "lower is better"
    crops = f"mean ± std of {len(score.raw)} crop{'s' * (len(score.raw) != 1)}"
    pen.text((left, top), "Quality", 20)
    pen.text((left, top + 32), f"{score.value:.{score.scale.decimals}f} ± {score.std:.2g}", 44)
    pen.text((left, top + 86), f"{crops} · {better}", 16, FAINT)

    def x(value: float) -> float:  # a score beyond the scale is drawn at its end
        share = (value - scale.low) / scale.span
        return left + min(max(share, 0.0), 1.0) * (right - left)

    track = top + 126
    pen.bar(left, right, track, 8, _RULE)
    pen.bar(x(score.value - score.std), x(score.value + score.std), track, 8, _pale(INK))
    marker = x(score.value)
    pen.draw.ellipse((marker - 9, track - 5, marker + 9, track + 13), INK, PAPER, 2)
    ends = [f"{scale.low:g}", f"{scale.high:g}"]
    named = zip(ends, ("worst", "best")[:: 1 if scale.higher_is_better else -1], strict=True)
    low, high = (f"{end} {name}" for end, name in named)
    pen.text((left, track + 20), low, 14, FAINT)
    pen.text((right, track + 20), high, 14, FAINT, "ra")


def paint_ramp(picture: Image.Image, place: tuple[int, int, int], low: float) -> None:
    """Paint the colours from `low` to 1, LEGEND pixels high. place: left, top, right."""
    left, top, right = place
    ramp = np.linspace(low, 1, right - left, dtype=np.float32)
    strip = np.broadcast_to(ramp, (LEGEND, right - left))
    middle_grey = Image.new("RGB", (right - left, LEGEND), (128, 128, 128))
    picture.paste(overlay(middle_grey, strip, 1.0), (left, top))


def _draw_legend(
    picture: Image.Image, pen: Pen, maps: DistortionMaps, place: tuple[int, int, int]
) -> None:
    """Draw what the colours of the maps mean. place: left, top, right."""
    left, top, right = place
    top += 210
    pen.text((left, top), "Maps", 20)
    paint_ramp(picture, (left, top + 36, right), -1.0)
    below = top + 36 + LEGEND + 6
    notes: Sequence[tuple[float, str, str]] = (
        (left, "looks away", "la"),
        ((left + right) / 2, "0", "ma"),
        (right, "looks here", "ra"),
    )
    for at, note, anchor in notes:
        pen.text((at, below), note, 14, FAINT, anchor)
    meaning = "the expert's attention above or below the image's own"
    pen.text((left, below + 26), meaning, 14, FAINT, width=right - left)
    if np.isnan(stitched_map(maps, 0)).any():
        pen.text((left, below + 46), "pale: outside every crop", 14, FAINT)
