"""Small files of every format that is read, for tests of decoders."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image


def seeds() -> Iterator[bytes]:
    """The bytes of one file after another."""
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    variants: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (color, "PNG", {"exif": exif}),
        (color.convert("RGBA"), "PNG", {}),
        (color.convert("P"), "PNG", {"transparency": 3}),
        (color.convert("L").convert("I;16"), "PNG", {}),
        (color, "JPEG", {"exif": exif}),
        (color, "JPEG", {"progressive": True}),
        (color.convert("CMYK"), "JPEG", {}),
        (color, "GIF", {"save_all": True, "append_images": [color.rotate(90)]}),
        (color.convert("P"), "GIF", {"transparency": 3}),
        (color, "WEBP", {"lossless": True, "exif": exif}),
        (color.convert("RGBA"), "WEBP", {}),
        (color, "TIFF", {"exif": exif}),
        (color, "TIFF", {"compression": "tiff_lzw"}),
        (color.convert("L").convert("I;16"), "TIFF", {}),
        (color, "BMP", {}),
        (color.convert("P"), "BMP", {}),
        (color, "PPM", {}),
        (color, "JPEG2000", {}),
        (color, "AVIF", {}),
    ]
    for image, format, options in variants:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        yield stream.getvalue()


SEEDS = list(seeds())
