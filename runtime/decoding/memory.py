"""How many bytes an image takes, from its decoder to upright, opaque RGB."""

# Bytes per pixel in Pillow's memory.
_IN_PILLOW = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I": 4, "LA": 4, "RGB": 4, "RGBA": 4, "CMYK": 4}
# Rows, bands and tables, whatever the size.
_CONSTANT = 2**24


def bytes_held(mode: str, pixels: int, orientation: int = 1, *, alpha: bool = False) -> int:
    """The decoded image, its upright copy and the RGB image, which are held at the same time.

    alpha: whether RGB is still to be composited over white
    """
    copies = 1 if orientation == 1 else 2
    converted = 0 if mode == "RGB" and not alpha else _IN_PILLOW["RGB"]
    return pixels * (copies * _IN_PILLOW[mode] + converted) + _CONSTANT
