"""From a decoded image to opaque RGB, a tile at a time: beside the two images, little is held."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from drexperts.runtime.decoding.stored import NotReadError

_TILE = 2**20  # pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """The opaque RGB image that a PIL image's mode says it is. Raises NotReadError for mode F."""
    if image.mode == "F":
        raise NotReadError("floating-point samples have no defined white; convert them to 8 bits")
    if image.mode.startswith("I"):
        return rgb_from_16_bit_grey(image)
    if image.has_transparency_data:
        return over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def rgb_from_16_bit_grey(image: Image.Image) -> Image.Image:
    """Samples of 0..65535 divided by 257 and rounded; others raise NotReadError."""
    return in_tiles(image, _grey_tile)


def over_white(image: Image.Image) -> Image.Image:
    """An image with transparency, composited over white."""
    return in_tiles(image, _tile_over_white)


def in_tiles(image: Image.Image, to_rgb: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What `to_rgb`, which sees each pixel by itself, makes of an image, converted tile by tile."""
    if image.width * image.height <= _TILE:
        return to_rgb(image)
    whole = Image.new("RGB", image.size)
    for box in _tiles(*image.size):
        whole.paste(to_rgb(image.crop(box)), box)
    return whole


def _tiles(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of at most _TILE pixels that cover an image: bands of rows, unless a row is longer."""
    columns = min(width, _TILE)
    rows = _TILE // columns
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def _grey_tile(image: Image.Image) -> Image.Image:
    values = np.asarray(image)  # (height, width), uint16 or int32
    if values.min() < 0 or values.max() > 65535:
        raise NotReadError("integer samples outside 0..65535 have no defined white")
    scaled = values.astype(np.uint32)
    scaled += 128  # round to nearest: 257 is odd, so there are no ties
    scaled //= 257
    grey = scaled.astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _tile_over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow has no direct way from premultiplied grey to RGBA
        image = image.convert("LA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
