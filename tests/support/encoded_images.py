"""Small files of every format that is read, for tests of decoders."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support import jpeg_files, png_files

HEIC = Path(__file__).parents[1] / "fixtures" / "heic"


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
        (color.convert("1"), "PPM", {}),
        (color.convert("L").convert("I;16"), "PPM", {}),
        (color, "PNG", {"save_all": True, "append_images": [color.rotate(90)]}),
        (color, "JPEG", {"subsampling": 0, "restart_marker_blocks": 1}),
        (color, "MPO", {"save_all": True, "append_images": [color.rotate(90)]}),
        (color, "WEBP", {"save_all": True, "append_images": [color.rotate(90)], "lossless": True}),
        (color.convert("RGBA"), "WEBP", {"lossless": True}),
        (color.convert("RGBA"), "BMP", {}),
        (color.convert("1"), "BMP", {}),
        (color, "TIFF", {"compression": "jpeg"}),
        (color.convert("1"), "TIFF", {"compression": "group4"}),
        (color.convert("P"), "TIFF", {}),
        (color, "JPEG2000", {}),
        (color.convert("RGBA"), "JPEG2000", {"tile_size": (16, 16)}),
        (color.convert("L"), "JPEG2000", {"no_jp2": True}),
        (color, "AVIF", {}),
        (color.convert("RGBA"), "AVIF", {}),
    ]
    for image, format, options in variants:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        yield stream.getvalue()
    yield from written_by_hand(rng)
    for path in sorted(HEIC.glob("*.heic")):
        yield path.read_bytes()


def written_by_hand(rng: np.random.Generator) -> Iterator[bytes]:
    """Layouts that Pillow does not write."""
    for bits, type in ((1, 0), (2, 0), (4, 3), (16, 2), (16, 4), (16, 6)):
        values = rng.integers(0, 1 << bits, (9, 13, png_files.CHANNELS[type]))
        chunks = [(b"PLTE", rng.bytes(3 << bits)), (b"tRNS", b"\0\1")] if type == 3 else []
        chunks += [(b"tRNS", b"\0\1")] if type == 0 else []
        yield png_files.png(values, bits, type, chunks=chunks, interlaced=type == 3)
    yield b"P3 2 2 9 # plain\n" + b"1 2 3 " * 4
    yield b"P1 4 2 01 01 0101\n"
    components = [(1, 2, 2), (2, 1, 1), (3, 1, 1), (4, 2, 2)]
    blocks = [rng.integers(0, 256, (2 * down, 2 * down)) for _, _, down in components]
    yield jpeg_files.jpeg((13, 9), components, blocks, segments=jpeg_files.adobe(2), restart=1)
    runs = b"\4\1\0\0\0\4\1\2\3\4\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 8, 1, 0, 0, 0, 0, 0)
    yield b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + header + rng.bytes(1024) + runs


SEEDS = list(seeds())
