"""JPEG 2000: JP2 files and plain codestreams. OpenJPEG gets the codestream alone.

Pillow shifts samples of other depths to 8 or 16 bits: white of fewer bits becomes grey, which is
mended here, and white of more bits in colour becomes black, which cannot be mended.
"""

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.headers.boxes import boxes, children
from drexperts.runtime.decoding.headers.codestream import Codestream, read_codestream
from drexperts.runtime.decoding.memory import bytes_held
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored

_GREY = Layout("JPEG 2000", "grey, 1 to 16 bits", "scaled to 8 bits, rounded, expanded to RGB")
_GREY_ALPHA = Layout(
    "JPEG 2000", "grey with alpha, 1 to 8 bits", "scaled to 8 bits, composited over white"
)
_RGB = Layout("JPEG 2000", "RGB, 1 to 8 bits", "scaled to 8 bits")
_RGB_ALPHA = Layout(
    "JPEG 2000", "RGB with alpha, 1 to 8 bits", "scaled to 8 bits, composited over white"
)
_YCC = Layout("JPEG 2000", "sYCC, 8 bits, not subsampled", "Pillow's conversion to RGB")
_PALETTE = Layout("JPEG 2000", "palette of 8-bit RGB", "expanded to RGB")
LAYOUTS = (_GREY, _GREY_ALPHA, _RGB, _RGB_ALPHA, _YCC, _PALETTE)

_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
_BY_NUMBER = {16: "RGB", 17: "grey", 18: "sYCC"}
_OTHER_NUMBERS = {0: "bilevel", 1: "YCbCr", 3: "YCbCr", 4: "YCbCr", 12: "CMYK", 14: "CIE L*a*b*"}
_BY_PROFILE = {b"GRAY": "grey", b"RGB ": "RGB"}
_ENUMERATED, _RESTRICTED_PROFILE, _PROFILE = 1, 2, 3
_OPACITY = 1


@dataclass(frozen=True)
class _Header:
    """What a JP2 header says; a plain codestream has none.

    colours: "grey", "RGB" or "sYCC"
    alpha: whether the last component is opacity, not premultiplied
    palette: (red, green, blue) of each entry, or none
    """

    colours: str
    alpha: bool = False
    palette: bytes = b""


def inspect(data: bytes) -> Stored:
    header, data = _opened(data) if data.startswith(_SIGNATURE) else (None, data)
    stream = read_codestream(data)
    header = header or _assumed(len(stream.bits))
    layout, mode = _layout(header, stream)
    return Stored(
        layout=layout,
        width=stream.width,
        height=stream.height,
        data=data[: stream.length] + b"\xff\xd9",
        open=Jpeg2KImageFile,
        modes=frozenset({mode}),
        to_rgb=_to_rgb(header, layout, stream.bits[0]),
        memory=_memory(stream, layout, mode),
    )


def _assumed(components: int) -> _Header:
    """What a plain codestream contains."""
    if components not in (1, 3):
        raise NotReadError(
            f"a JPEG 2000 codestream that does not say what its {components} components are"
        )
    return _Header("grey" if components == 1 else "RGB")


def _opened(data: bytes) -> tuple[_Header, bytes]:
    """A JP2 file's header and its codestream."""
    parts = children(data, 0, len(data), needed=(b"jp2h", b"jp2c"))
    if b"jp2h" not in parts or b"jp2c" not in parts:
        raise NotReadError("a JPEG 2000 file without a header or codestream")
    start, end = parts[b"jp2c"]
    return _header(data, *parts[b"jp2h"]), data[start:end]


def _header(data: bytes, start: int, end: int) -> _Header:
    found = children(data, start, end)
    bodies = {kind: data[first:last] for kind, (first, last) in found.items()}
    (components,) = struct.unpack_from(">H", bodies.get(b"ihdr", b""), 8)
    colours = _colours(
        [data[first:last] for kind, first, last in boxes(data, start, end) if kind == b"colr"],
        3 if b"pclr" in bodies else components,
    )
    palette = _palette(bodies) if b"pclr" in bodies else b""
    return _Header(colours, _has_alpha(bodies.get(b"cdef", b""), colours), palette)


def _colours(bodies: list[bytes], components: int) -> str:
    """By the first specification that says it; of several, each describes the same colours."""
    for body in bodies:
        method = body[0]
        if method == _ENUMERATED:
            (number,) = struct.unpack_from(">I", body, 3)
            if number not in _BY_NUMBER:
                name = _OTHER_NUMBERS.get(number, f"colour space {number}")
                raise NotReadError(f"a JPEG 2000 file of {name} samples")
            return _BY_NUMBER[number]
        if method in (_RESTRICTED_PROFILE, _PROFILE):
            space = body[3 + 16 : 3 + 20]
            if space in _BY_PROFILE:
                return _BY_PROFILE[space]
            if space.strip(b"\0"):  # empty in a profile that says nothing
                name = space.decode("ascii", "backslashreplace").strip()
                raise NotReadError(f"a JPEG 2000 file with a profile of {name} colours")
    if any(body[0] == _RESTRICTED_PROFILE for body in bodies):  # it is for grey or for RGB
        return "grey" if components < 3 else "RGB"
    raise NotReadError("a JPEG 2000 file that does not say what its colours are")


def _has_alpha(definitions: bytes, colours: str) -> bool:
    """By the channel definitions. Raises NotReadError for another order or other kinds."""
    if not definitions:
        return False
    (count,) = struct.unpack_from(">H", definitions)
    channels = sorted(
        struct.unpack_from(">HHH", definitions, 2 + 6 * i) for i in range(min(count, 5))
    )
    colour_count = 1 if colours == "grey" else 3
    expected = [(i, 0, i + 1) for i in range(colour_count)]
    if channels == expected:
        return False
    if channels == [*expected, (colour_count, _OPACITY, 0)]:
        return True
    raise NotReadError("a JPEG 2000 file of channels other than colours and plain opacity")


def _palette(bodies: dict[bytes, bytes]) -> bytes:
    body = bodies[b"pclr"]
    entries, columns = struct.unpack_from(">HB", body)
    depths, colours = body[3 : 3 + columns], body[3 + columns :]
    straight = b"".join(struct.pack(">HBB", 0, 1, column) for column in range(3))
    if depths != b"\x07\x07\x07" or bodies.get(b"cmap") != straight:
        raise NotReadError("a JPEG 2000 file with a palette other than of 8-bit RGB")
    if not 1 <= entries <= 256 or len(colours) < 3 * entries:
        raise NotReadError("a JPEG 2000 file without a whole palette")
    return colours[: 3 * entries]


def _layout(header: _Header, stream: Codestream) -> tuple[Layout, str]:
    """How the samples are stored, and the mode that Pillow gives them."""
    bits, most = stream.bits, max(stream.bits)
    name = f"a JPEG 2000 file of {len(bits)} components of {most} bits"
    if min(bits) != most:
        raise NotReadError(f"a JPEG 2000 file whose components differ in depth: {bits} bits")
    kind = header.colours, header.alpha, len(bits)
    if header.palette and kind == ("RGB", False, 1) and most <= 8:
        return _PALETTE, "L"
    if kind == ("RGB", False, 4):
        raise NotReadError(f"{name}, which says of 3 what they are: save it as RGB without others")
    if header.palette or kind not in _KINDS:
        with_alpha = " with alpha" if header.alpha else ""
        raise NotReadError(f"{name}, said to be {header.colours}{with_alpha}")
    layout, mode, most_bits = _KINDS[kind]
    if most > most_bits:
        raise NotReadError(f"{name}, of which at most {most_bits} are read: convert it to 8 bits")
    if layout is _YCC and most != 8:
        raise NotReadError(f"{name} of sYCC, of which 8 are read")
    return layout, "I;16" if most > 8 else mode


# By colours, alpha and the number of components: the layout, Pillow's mode, and the most bits.
_KINDS = {
    ("grey", False, 1): (_GREY, "L", 16),
    ("grey", True, 2): (_GREY_ALPHA, "LA", 8),
    ("RGB", False, 3): (_RGB, "RGB", 8),
    ("RGB", True, 4): (_RGB_ALPHA, "RGBA", 8),
    ("sYCC", False, 3): (_YCC, "RGB", 8),
}


def _to_rgb(header: _Header, layout: Layout, bits: int) -> Callable[[Image.Image], Image.Image]:
    if layout is _PALETTE:
        return functools.partial(_rgb_from_palette, palette=header.palette, bits=bits)
    if layout is _YCC:
        return _rgb_from_ycc
    if bits in (8, 16):
        return convert.to_rgb
    return functools.partial(_rgb_from_shifted, bits=bits)


def _rgb_from_palette(image: Image.Image, palette: bytes, bits: int) -> Image.Image:
    last = len(palette) // 3 - 1  # stands for all beyond it, as in OpenJPEG
    indices = image.point([min(value >> (8 - bits), last) for value in range(256)])
    indices.putpalette(palette)
    return indices.convert("RGB")


def _rgb_from_ycc(image: Image.Image) -> Image.Image:
    return Image.merge("YCbCr", image.split()).convert("RGB")


def _rgb_from_shifted(image: Image.Image, bits: int) -> Image.Image:
    """From samples that Pillow has shifted to the left, to 8 or 16 bits."""
    wide = 16 if bits > 8 else 8
    most = (1 << bits) - 1
    scaled = (np.arange(1 << wide) >> (wide - bits)) * 255 / most
    table = np.round(scaled).astype(np.uint8)
    if wide == 16:
        return Image.fromarray(table[np.asarray(image)]).convert("RGB")
    return convert.to_rgb(image.point(table.tolist() * len(image.getbands())))


def _memory(stream: Codestream, layout: Layout, mode: str) -> int:
    pixels, components = stream.width * stream.height, len(stream.bits)
    depth = 2 if mode == "I;16" else 1
    output = depth * stream.tile_area * (4 if components == 3 else components)
    converted_here = layout in (_YCC, _PALETTE) or stream.bits[0] not in (8, 16)
    kept = 8 * pixels * converted_here
    return bytes_held(mode, pixels, beside=output + stream.memory(), kept=kept)
