"""GIF, of an animation the first frame."""

import functools
import struct
from dataclasses import dataclass
from typing import NoReturn

from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from drexperts.runtime.decoding.formats import palettes
from drexperts.runtime.decoding.memory import bytes_held
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored

_OPAQUE = Layout("GIF", "palette", "expanded to RGB")
_TRANSPARENT = Layout("GIF", "palette, with a transparent entry", "the entry is white; expanded")
_SMALL = Layout("GIF", "a first frame smaller than the canvas", "the rest of the canvas is white")
LAYOUTS = (_OPAQUE, _TRANSPARENT, _SMALL)

_IMAGE, _EXTENSION, _END = 0x2C, 0x21, 0x3B
_GRAPHIC_CONTROL = 0xF9
# Blocks hold up to 255 bytes; 2**21 of them are half a gigabyte, or 0.2 s of walking.
_MOST_BLOCKS = 2**21


@dataclass(frozen=True)
class _First:
    """The first image: its box on the canvas, and where its parts are in the file."""

    left: int
    top: int
    width: int
    height: int
    interlaced: bool
    local_palette: bytes
    transparent: int | None
    data: bytes


def inspect(data: bytes) -> Stored:
    try:
        across, down, flags = struct.unpack_from("<HHB", data, 6)
        start = 13 + _palette_size(flags)
        first = _first_image(data, start)
    except (struct.error, IndexError):
        _refuse_truncated()
    palette = first.local_palette or data[13:start]
    if not palette:
        raise NotReadError("a GIF without a palette")
    width, height = max(across, first.left + first.width), max(down, first.top + first.height)
    box = (first.left, first.top, first.left + first.width, first.top + first.height)
    covers = box == (0, 0, width, height)
    colours, known = _opaque(palette, first.transparent)
    opaque = _OPAQUE if first.transparent is None else _TRANSPARENT
    return Stored(
        layout=opaque if covers else _SMALL,
        width=width,
        height=height,
        data=_rebuilt(width, height, first, colours),
        open=GifImageFile,
        modes=frozenset({"P", "L"}),
        to_rgb=functools.partial(_to_rgb, known=known, box=box),
        memory=bytes_held("P", width * height),
    )


def _to_rgb(
    image: Image.Image, known: frozenset[int], box: tuple[int, int, int, int]
) -> Image.Image:
    """RGB, with white where the first frame leaves the canvas empty."""
    rgb = palettes.to_rgb(image, known)
    (left, top, right, bottom), (width, height) = box, rgb.size
    for empty in (
        (0, 0, width, top),
        (0, bottom, width, height),
        (0, top, left, bottom),
        (right, top, width, bottom),
    ):
        rgb.paste((255, 255, 255), empty)
    return rgb


def _opaque(palette: bytes, transparent: int | None) -> tuple[bytes, frozenset[int]]:
    """A palette of 256 colours, of which the transparent one is white, and the known indices."""
    colours = bytearray(palette.ljust(3 * 256, b"\0"))
    known = set(range(len(palette) // 3))
    if transparent is not None:
        colours[3 * transparent : 3 * transparent + 3] = b"\xff\xff\xff"
        known.add(transparent)
    return bytes(colours), frozenset(known)


def _palette_size(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _first_image(data: bytes, start: int) -> _First:
    """Raises IndexError or struct.error for a file that ends before."""
    transparent = None
    left_to_walk = _MOST_BLOCKS
    while data[start] == _EXTENSION:
        if data[start + 1] == _GRAPHIC_CONTROL and data[start + 2] >= 4:
            transparent = data[start + 6] if data[start + 3] & 1 else None
        start, left_to_walk = _after_blocks(data, start + 2, left_to_walk)
    if data[start] != _IMAGE:
        raise NotReadError("a GIF without an image")
    left, top, width, height, flags = struct.unpack_from("<HHHHB", data, start + 1)
    if not width or not height:
        raise NotReadError("a GIF whose first frame has no pixels")
    palette = start + 10
    pixels = palette + _palette_size(flags)
    if not 1 <= data[pixels] <= 8:
        raise NotReadError(f"a GIF of {data[pixels]} bits")
    end, _ = _after_blocks(data, pixels + 1, left_to_walk)
    return _First(
        left,
        top,
        width,
        height,
        bool(flags & 0x40),
        data[palette:pixels],
        transparent,
        data[pixels:end],
    )


def _after_blocks(data: bytes, start: int, left_to_walk: int) -> tuple[int, int]:
    """Where the sub-blocks from here end, and how many more may be walked."""
    for walked in range(left_to_walk):
        size = data[start]
        start += size + 1
        if not size:
            return start, left_to_walk - walked
    raise NotReadError(f"a GIF of more than {_MOST_BLOCKS} blocks")


def _rebuilt(width: int, height: int, first: _First, colours: bytes) -> bytes:
    """A GIF of the first frame alone, with a palette of its own."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
    flags = 0x87 | (0x40 if first.interlaced else 0)
    image = struct.pack("<BHHHHB", _IMAGE, first.left, first.top, first.width, first.height, flags)
    return b"".join([screen, image, colours, first.data, bytes([_END])])


def _refuse_truncated() -> NoReturn:
    raise NotReadError("a GIF that is truncated")
