"""PBM, PGM and PPM, plain and raw, of any maximum: read from the samples."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.memory import bytes_held
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored

_BILEVEL = Layout("PNM", "bilevel, raw or plain", "expanded to RGB")
_GREY = Layout("PNM", "grey, maximum 1 to 65535, raw or plain", "times 255 / maximum, rounded")
_RGB = Layout("PNM", "RGB, maximum 1 to 65535, raw or plain", "times 255 / maximum, rounded")
LAYOUTS = (_BILEVEL, _GREY, _RGB)

# Comments included; possessive, so that nothing is tried twice.
_LONGEST_HEADER = 2**20
_GAP = rb"(?:[\s]|#[^\r\n]*+[\r\n])++"
_NUMBER = _GAP + rb"(\d{1,9})"
_HEADER = re.compile(rb"P([14])" + 2 * _NUMBER + rb"\s|P([2356])" + 3 * _NUMBER + rb"\s")
_COMMENT = re.compile(rb"#[^\r\n]*+")
_NO_NUMBER = re.compile(rb"[^\d\s]")
_LINE_END = re.compile(rb"[\r\n]")
_WHITESPACE = b" \t\n\v\f\r"
# Samples that are scaled at a time, and bytes of text from which comments are removed at a time.
_BAND = 2**17
_PIECE = 2**14


@dataclass(frozen=True)
class _Header:
    type: int
    width: int
    height: int
    maximum: int
    end: int

    @property
    def channels(self) -> int:
        return 3 if self.type in (3, 6) else 1

    @property
    def samples(self) -> int:
        return self.width * self.height * self.channels

    @property
    def plain(self) -> bool:
        return self.type <= 3

    @property
    def raw_bytes(self) -> int:
        """The bytes of all samples, if these are not text."""
        if self.type == 4:
            return (self.width + 7) // 8 * self.height
        return self.samples * (1 if self.maximum < 256 else 2)


def inspect(data: bytes) -> Stored:
    header = _header(data)
    least = header.samples if header.plain else header.raw_bytes
    if len(data) - header.end < least:
        raise NotReadError("a PNM that is truncated")
    mode = "1" if header.type == 4 else "L" if header.channels == 1 else "RGB"
    return Stored(
        layout=(_BILEVEL, _GREY, _RGB)[(header.type - 1) % 3],
        width=header.width,
        height=header.height,
        data=data,
        open=functools.partial(_OPEN[header.type], header),
        modes=frozenset({mode}),
        to_rgb=convert.to_rgb,
        memory=bytes_held(mode, header.width * header.height) + _beside(header, len(data)),
    )


def _beside(header: _Header, size: int) -> int:
    """The bytes of text without comments, in pieces and whole, its numbers, and scaled samples."""
    text = 2 * size + 8 * header.samples if header.plain else 0
    return text + header.samples


def _header(data: bytes) -> _Header:
    found = _HEADER.match(data[:_LONGEST_HEADER])
    if not found:
        raise NotReadError("a PNM without a whole header")
    if found[1]:
        return _Header(int(found[1]), int(found[2]), int(found[3]), 1, found.end())
    type, width, height, maximum = map(int, found.groups()[3:])
    if not 1 <= maximum <= 65535:
        raise NotReadError(f"a PNM with the maximum {maximum}")
    return _Header(type, width, height, maximum, found.end())


def _content(header: _Header, stream: IO[bytes]) -> memoryview:
    """What follows the header, which is not copied: all of it if it is text."""
    whole = memoryview(stream.read())
    return whole[header.end :] if header.plain else whole[header.end :][: header.raw_bytes]


def _text(header: _Header, stream: IO[bytes]) -> bytes:
    """The content without comments, from which they are removed in pieces of whole lines.

    There may be millions, each of which takes a hundred bytes while it is removed.
    """
    content = _content(header, stream)
    pieces, start = [], 0
    while start < len(content):
        line_end = _LINE_END.search(content, start + _PIECE)
        end = line_end.end() if line_end else len(content)
        pieces.append(_COMMENT.sub(b"", content[start:end]))
        start = end
    return b"".join(pieces)


def _bits_from_text(header: _Header, stream: IO[bytes]) -> Image.Image:
    """The digits may stand without white space between them."""
    digits = _text(header, stream).translate(None, _WHITESPACE)[: header.samples]
    bits = np.frombuffer(digits, np.uint8) - ord("0")
    if bits.size < header.samples or bits.max() > 1:
        raise NotReadError("a PNM that is truncated or has other bits than 0 and 1")
    return Image.frombytes("L", (header.width, header.height), (255 - 255 * bits).tobytes())


def _bits_from_bytes(header: _Header, stream: IO[bytes]) -> Image.Image:
    return Image.frombytes(
        "1", (header.width, header.height), _content(header, stream), "raw", "1;I"
    )


def _numbers_from_text(header: _Header, stream: IO[bytes]) -> Image.Image:
    text = _text(header, stream)
    other = _NO_NUMBER.search(text)
    # NumPy leaves what it does not find uninitialized: of too few numbers, the last is invalid.
    numbers = text[: other.start() if other else None] + b" -1"
    values = np.fromstring(numbers, np.int64, count=header.samples, sep=" ")
    return _scaled(header, values)


def _numbers_from_bytes(header: _Header, stream: IO[bytes]) -> Image.Image:
    values = np.frombuffer(_content(header, stream), np.uint8 if header.maximum < 256 else ">u2")
    return _scaled(header, values)


def _scaled(header: _Header, values: NDArray[np.integer[Any]]) -> Image.Image:
    """The image of samples from 0 to the maximum."""
    if values.size < header.samples or values.min() < 0 or values.max() > header.maximum:
        raise NotReadError(f"a PNM that is truncated or has samples outside 0..{header.maximum}")
    if header.maximum == 255:
        scaled = values.astype(np.uint8, copy=False)
    else:
        scaled = np.empty(header.samples, np.uint8)
        for start in range(0, header.samples, _BAND):
            band = values[start : start + _BAND].astype(np.uint32)
            scaled[start : start + _BAND] = (band * 510 + header.maximum) // (2 * header.maximum)
    shape = (header.height, header.width, 3)[: 2 + (header.channels == 3)]
    return Image.fromarray(scaled.reshape(shape))


_OPEN: dict[int, Callable[[_Header, IO[bytes]], Image.Image]] = {
    1: _bits_from_text,
    2: _numbers_from_text,
    3: _numbers_from_text,
    4: _bits_from_bytes,
    5: _numbers_from_bytes,
    6: _numbers_from_bytes,
}
