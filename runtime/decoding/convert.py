"""From a decoded image to opaque RGB."""

import numpy as np
from PIL import Image

from drexperts.runtime.decoding.stored import NotReadError


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


def over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow has no direct way from premultiplied grey to RGBA
        image = image.convert("LA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
