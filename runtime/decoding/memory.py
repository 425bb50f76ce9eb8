"""How many bytes an image takes, from its decoder to upright, opaque RGB."""

# Bytes per pixel in Pillow's memory.
_IN_PILLOW = {"1": 1, "L": 1, "P": 1, "I;16": 2, "LA": 4, "RGB": 4, "RGBA": 4, "CMYK": 4}
# Rows and tables, whatever the size, and what `convert` holds of a tile.
_CONSTANT = 2**22
_TILE = 24 * 2**20


def bytes_held(
    mode: str,
    pixels: int,
    orientation: int = 1,
    *,
    beside: int = 0,
    kept: int = 0,
    transparent: bool = False,
) -> int:
    """The most of three moments: decoding, converting to opaque RGB, and turning upright.

    beside: what the decoder holds beside its image
    kept: what it still holds while the image is converted
    transparent: whether RGB has a transparent colour
    """
    own, rgb = pixels * _IN_PILLOW[mode], pixels * _IN_PILLOW["RGB"]
    tiled = transparent or mode in ("I;16", "LA", "RGBA")
    converted = rgb if tiled or mode != "RGB" else 0
    converting = own + kept + converted + (_TILE if tiled else 0)
    turning = rgb if orientation == 1 else 2 * rgb
    return max(own + beside, converting, turning) + _CONSTANT
