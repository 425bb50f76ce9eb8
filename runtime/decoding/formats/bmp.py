"""BMP of Windows and OS/2, read from its samples: Pillow's reader drops some palettes."""

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.formats import palettes
from drexperts.runtime.decoding.memory import bytes_held
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored

_PALETTE = Layout("BMP", "palette, 1, 4 or 8 bits", "expanded to RGB")
_RUNS = Layout("BMP", "palette, 4 or 8 bits, run lengths that set every pixel", "expanded to RGB")
_RGB_16 = Layout("BMP", "RGB, 16 bits, any masks", "scaled to 8 bits and rounded")
_RGB = Layout("BMP", "RGB, 24 or 32 bits, masks of whole bytes", "as stored")
_RGBA = Layout(
    "BMP",
    "RGB with alpha, 32 bits, masks of whole bytes",
    "composited over white; opaque if alpha is 0 everywhere",
)
LAYOUTS = (_PALETTE, _RUNS, _RGB_16, _RGB, _RGBA)

_CORE_HEADER, _OS2_HEADER = 12, 64
_HEADERS = (_CORE_HEADER, 40, 52, 56, _OS2_HEADER, 108, 124)
_PLAIN, _RUNS_8, _RUNS_4, _MASKS = 0, 1, 2, 3
_COMPRESSIONS = {4: "an embedded JPEG", 5: "an embedded PNG"}
# red, green, blue, alpha
_MASKS_16 = (0x7C00, 0x3E0, 0x1F, 0)
_MASKS_32 = (0xFF0000, 0xFF00, 0xFF, 0)
_BYTES = {0xFF: 0, 0xFF00: 1, 0xFF0000: 2, 0xFF000000: 3}
# A run takes 0.3 microseconds to read.
_MOST_RUNS = 4_000_000


_Open: TypeAlias = Callable[[IO[bytes]], Image.Image]


@dataclass(frozen=True)
class _Header:
    size: int
    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    colours: int
    offset: int
    masks: tuple[int, int, int, int]

    @property
    def stride(self) -> int:
        return (self.width * self.bits + 31) // 32 * 4

    @property
    def entry(self) -> int:
        """Bytes of a palette entry."""
        return 3 if self.size == _CORE_HEADER else 4


def inspect(data: bytes) -> Stored:
    try:
        header = _header(data)
    except struct.error as cause:
        raise NotReadError("a BMP that is truncated") from cause
    pixels = header.width * header.height
    if header.bits in (1, 4, 8):
        return _indexed(header, data, pixels)
    if header.compression not in (_PLAIN, _MASKS):
        raise _unknown(header)
    _check_length(header, data)
    red, green, blue, alpha = header.masks
    if header.bits == 16 and not alpha and red and green and blue:
        open = functools.partial(_from_16_bits, header)
        return _stored(header, _RGB_16, data, open, "RGB", 3 * pixels)
    if header.bits == 24 and header.masks == _MASKS_32:
        open = functools.partial(_from_24_bits, header)
        return _stored(header, _RGB, data, open, "RGB", 0)
    wanted = header.masks if alpha else header.masks[:3]
    if header.bits == 32 and len({_BYTES.get(mask) for mask in wanted} - {None}) == len(wanted):
        order = [_BYTES[mask] for mask in wanted]
        open = functools.partial(_from_32_bits, header, order)
        layout, mode = (_RGBA, "RGBA") if alpha else (_RGB, "RGB")
        return _stored(header, layout, data, open, mode, 4 * pixels)
    masks = ", ".join(f"{mask:#x}" for mask in header.masks)
    raise NotReadError(f"a BMP of {header.bits} bits with the masks {masks}")


def _stored(
    header: _Header, layout: Layout, data: bytes, open: _Open, mode: str, beside: int
) -> Stored:
    return Stored(
        layout=layout,
        width=header.width,
        height=header.height,
        data=data,
        open=open,
        modes=frozenset({mode}),
        to_rgb=_over_white if mode == "RGBA" else convert.to_rgb,
        memory=bytes_held(mode, header.width * header.height) + beside,
    )


def _indexed(header: _Header, data: bytes, pixels: int) -> Stored:
    start = 14 + header.size
    entries = min(header.colours or 1 << header.bits, 1 << header.bits)
    if header.offset == start:  # some writers leave the palette out of account
        header = replace(header, offset=start + header.entry * entries)
    entries = min(entries, max(0, header.offset - start) // header.entry)
    if not entries:
        raise NotReadError("a BMP without a palette")
    palette = _palette(data[start : start + header.entry * entries], header.entry)
    if header.compression == _PLAIN:
        _check_length(header, data)
        layout, open = _PALETTE, functools.partial(_from_indices, header, palette)
    elif (header.compression, header.bits) in ((_RUNS_8, 8), (_RUNS_4, 4)) and not header.top_down:
        layout, open = _RUNS, functools.partial(_from_runs, header, palette)
    else:
        raise _unknown(header)
    stored = _stored(header, layout, data, open, "P", pixels)
    known = frozenset(range(entries))
    return replace(stored, to_rgb=functools.partial(palettes.to_rgb, known=known))


def _header(data: bytes) -> _Header:
    offset, size = struct.unpack_from("<II", data, 10)
    if size not in _HEADERS:
        raise NotReadError(f"a BMP with a header of {size} bytes")
    if size == _CORE_HEADER:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = colours = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        (colours,) = struct.unpack_from("<I", data, 46)
    if width < 0:
        raise NotReadError("a BMP of negative width")
    if compression == _MASKS and size != _OS2_HEADER:
        alpha = struct.unpack_from("<I", data, 66)[0] if size >= 56 else 0
        masks = (*struct.unpack_from("<III", data, 54), alpha)
    else:
        masks = _MASKS_16 if bits == 16 else _MASKS_32
        if compression == _MASKS:
            compression = -1  # of OS/2: Huffman's code
    return _Header(size, width, abs(height), height < 0, bits, compression, colours, offset, masks)


def _unknown(header: _Header) -> NotReadError:
    what = _COMPRESSIONS.get(header.compression, f"compression {header.compression}")
    return NotReadError(f"a BMP of {header.bits} bits with {what}")


def _check_length(header: _Header, data: bytes) -> None:
    if header.offset + header.stride * header.height > len(data):
        raise NotReadError("a BMP that is truncated")


def _samples(header: _Header, stream: IO[bytes]) -> memoryview:
    """The bytes of all rows, which are not copied."""
    whole = memoryview(stream.read())
    return whole[header.offset : header.offset + header.stride * header.height]


def _palette(table: bytes, entry: int) -> bytes:
    """RGB of blue, green, red and, where an entry has four bytes, one that means nothing."""
    return b"".join(table[at : at + 3][::-1] for at in range(0, len(table), entry))


def _direction(header: _Header) -> int:
    return 1 if header.top_down else -1


def _from_indices(header: _Header, palette: bytes, stream: IO[bytes]) -> Image.Image:
    raw = {1: "P;1", 4: "P;4", 8: "P"}[header.bits]
    size = header.width, header.height
    arguments = (raw, header.stride, _direction(header))
    image = Image.frombytes("P", size, _samples(header, stream), "raw", *arguments)
    image.putpalette(palette)
    return image


def _from_runs(header: _Header, palette: bytes, stream: IO[bytes]) -> Image.Image:
    try:
        indices = _indices_from_runs(memoryview(stream.read())[header.offset :], header)
    except IndexError as cause:
        raise NotReadError("a BMP that is truncated") from cause
    size = header.width, header.height
    image = Image.frombytes("P", size, bytes(indices), "raw", "P", header.width, -1)
    image.putpalette(palette)
    return image


def _indices_from_runs(data: memoryview, header: _Header) -> bytearray:
    """One byte per pixel, the lowest row first. Raises IndexError where the data end too early."""
    indices = bytearray()
    row_end, at = header.width, 0
    for _ in range(_MOST_RUNS):
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            indices += _run(count, value, header.bits)
        elif value == 0 and len(indices) == row_end:  # the end of a row
            row_end += header.width
        elif value == 1 and len(indices) == header.width * header.height:  # of the picture
            return indices
        elif value > 2:
            size = value if header.bits == 8 else (value + 1) // 2
            data[at + size - 1]  # or IndexError
            indices += _literal(data[at : at + size], value, header.bits)
            at += size + size % 2
        else:
            raise NotReadError("a BMP whose run lengths leave pixels out")
        if len(indices) > row_end or row_end > header.width * (header.height + 1):
            raise NotReadError("a BMP whose run lengths pass the end of a row")
    raise NotReadError(f"a BMP of more than {_MOST_RUNS} runs")


def _run(count: int, value: int, bits: int) -> bytes:
    if bits == 8:
        return bytes([value]) * count
    return (bytes([value >> 4, value & 15]) * (count // 2 + 1))[:count]


def _literal(data: memoryview, count: int, bits: int) -> bytes:
    if bits == 8:
        return bytes(data)
    return bytes(half for byte in data for half in (byte >> 4, byte & 15))[:count]


def _rows(header: _Header, stream: IO[bytes], dtype: str) -> NDArray[np.generic]:
    """The samples of each row, the highest row first."""
    values = np.frombuffer(_samples(header, stream), dtype).reshape(header.height, -1)
    return values if header.top_down else values[::-1]


def _from_16_bits(header: _Header, stream: IO[bytes]) -> Image.Image:
    table = np.stack([_scaled(mask) for mask in header.masks[:3]], axis=1)
    values = _rows(header, stream, "<u2")[:, : header.width]
    return Image.fromarray(table[values])


def _scaled(mask: int) -> NDArray[np.uint8]:
    """For every 16-bit value, what it holds under a mask, from 0 to 255."""
    shift = (mask & -mask).bit_length() - 1
    most = mask >> shift
    if mask > 0xFFFF or most & (most + 1):
        raise NotReadError(f"a BMP with the mask {mask:#x}")
    values = (np.arange(2**16) & mask) >> shift
    return ((values * 510 + most) // (2 * most)).astype(np.uint8)


def _from_24_bits(header: _Header, stream: IO[bytes]) -> Image.Image:
    size = header.width, header.height
    arguments = ("BGR", header.stride, _direction(header))
    return Image.frombytes("RGB", size, _samples(header, stream), "raw", *arguments)


def _from_32_bits(header: _Header, order: list[int], stream: IO[bytes]) -> Image.Image:
    values = _rows(header, stream, "u1").reshape(header.height, header.width, 4)
    return Image.fromarray(values[:, :, order])


def _over_white(image: Image.Image) -> Image.Image:
    """As Windows and browsers show it: screenshots and clipboards leave alpha at 0."""
    if image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    return convert.to_rgb(image)
