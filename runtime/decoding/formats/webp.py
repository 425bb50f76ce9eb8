"""WebP, lossy and lossless, of an animation the first frame.

libwebp gets a file of the first frame alone. Its canvas has alpha where the frame leaves a part
free, so that this part is transparent, not black.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL.WebPImagePlugin import WebPImageFile

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.memory import bytes_held
from drexperts.runtime.decoding.orientation import MOST_BYTES, orientation_from
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored

_LOSSY = Layout("WebP", "lossy", "libwebp's conversion to RGB")
_LOSSY_ALPHA = Layout("WebP", "lossy with alpha", "composited over white")
_LOSSLESS = Layout("WebP", "lossless", "as stored")
_LOSSLESS_ALPHA = Layout("WebP", "lossless with alpha", "composited over white")
_SMALL = Layout("WebP", "a first frame smaller than the canvas", "the rest of the canvas is white")
LAYOUTS = (_LOSSY, _LOSSY_ALPHA, _LOSSLESS, _LOSSLESS_ALPHA, _SMALL)

_MOST_CHUNKS = 10_000
_ALPHA, _ANIMATION = 0x10, 0x02
_OVERWRITE = 0x02
# Bytes per pixel that Pillow's reader holds beside its image, as long as this lives: libwebp's two
# canvases. While it decodes, there is a copy of one, too, and its tables.
_CANVASES, _COPY = 8, 4
_TABLES = 2**24


@dataclass(frozen=True)
class _Frame:
    """The first frame: its chunks, size and place on the canvas."""

    chunks: dict[bytes, bytes]
    width: int
    height: int
    alpha: bool
    left: int = 0
    top: int = 0


def inspect(data: bytes) -> Stored:
    chunks = _chunks(data)
    frame, (width, height) = _first_frame(chunks)
    covers = (frame.left, frame.top, frame.width, frame.height) == (0, 0, width, height)
    lossy = b"VP8 " in frame.chunks
    if not covers:
        layout = _SMALL
    elif frame.alpha:
        layout = _LOSSY_ALPHA if lossy else _LOSSLESS_ALPHA
    else:
        layout = _LOSSY if lossy else _LOSSLESS
    mode = "RGBA" if frame.alpha or not covers else "RGB"
    exif, xmp = (chunks.get(name, b"")[:MOST_BYTES] for name in (b"EXIF", b"XMP "))
    orientation = orientation_from(exif, xmp)
    kept = _CANVASES * width * height
    beside = kept + _COPY * width * height + _TABLES
    return Stored(
        layout=layout,
        width=width,
        height=height,
        data=_still(frame) if covers else _animation(frame, width, height),
        open=WebPImageFile,
        modes=frozenset({mode}),
        to_rgb=convert.to_rgb,
        memory=bytes_held(mode, width * height, orientation, beside=beside, kept=kept),
        orientation=orientation,
    )


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The first chunk of each name."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise NotReadError("a WebP that is truncated")
    found: dict[bytes, bytes] = {}
    for name, body in _walk(data, 12, end):
        found.setdefault(name, body)
    return found


def _walk(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    for _ in range(_MOST_CHUNKS):
        if start + 8 > end:
            return
        name, size = struct.unpack_from("<4sI", data, start)
        if start + 8 + size > end:
            raise NotReadError("a WebP that is truncated")
        yield name, data[start + 8 : start + 8 + size]
        start += 8 + size + size % 2
    raise NotReadError(f"a WebP of more than {_MOST_CHUNKS} chunks")


def _first_frame(chunks: dict[bytes, bytes]) -> tuple[_Frame, tuple[int, int]]:
    """The first frame, and the size of the canvas."""
    extended = chunks.get(b"VP8X")
    if extended is None or not extended[0] & _ANIMATION:
        frame = _frame(chunks, with_alpha=extended is not None)
        return frame, (frame.width, frame.height)
    if b"ANMF" not in chunks:
        raise NotReadError("a WebP without frames: it is truncated")
    canvas = _24_bits(extended, 4) + 1, _24_bits(extended, 7) + 1
    body = chunks[b"ANMF"]
    left, top = 2 * _24_bits(body, 0), 2 * _24_bits(body, 3)
    frame = _frame(dict(reversed(list(_walk(body, 16, len(body))))), True, left, top)
    if left + frame.width > canvas[0] or top + frame.height > canvas[1]:
        raise NotReadError("a WebP whose first frame is beyond its canvas")
    return frame, canvas


def _frame(chunks: dict[bytes, bytes], with_alpha: bool, left: int = 0, top: int = 0) -> _Frame:
    if b"VP8 " in chunks:
        body = chunks[b"VP8 "]
        if len(body) < 10 or body[0] & 1 or body[3:6] != b"\x9d\x01\x2a":
            raise NotReadError("a WebP whose frame is damaged")
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", body, 6))
        alpha = with_alpha and b"ALPH" in chunks
        kept = (b"ALPH", b"VP8 ") if alpha else (b"VP8 ",)
    elif b"VP8L" in chunks:
        body = chunks[b"VP8L"]
        if len(body) < 5 or body[0] != 0x2F:
            raise NotReadError("a WebP whose frame is damaged")
        (bits,) = struct.unpack_from("<I", body, 1)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        alpha = bool(bits >> 28 & 1)
        kept = (b"VP8L",)
    else:
        raise NotReadError("a WebP without a frame: it is truncated")
    return _Frame({name: chunks[name] for name in kept}, width, height, alpha, left, top)


def _still(frame: _Frame) -> bytes:
    if b"ALPH" not in frame.chunks:
        return _file(_together(frame.chunks))
    return _file(_header(_ALPHA, frame.width, frame.height) + _together(frame.chunks))


def _animation(frame: _Frame, width: int, height: int) -> bytes:
    size = frame.left // 2, frame.top // 2, frame.width - 1, frame.height - 1
    place = b"".join(value.to_bytes(3, "little") for value in (*size, 0))
    body = place + bytes([_OVERWRITE]) + _together(frame.chunks)
    header = _header(_ALPHA | _ANIMATION, width, height)
    return _file(header + _chunk(b"ANIM", bytes(6)) + _chunk(b"ANMF", body))


def _header(flags: int, width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return _chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size)


def _together(chunks: dict[bytes, bytes]) -> bytes:
    return b"".join(_chunk(name, body) for name, body in chunks.items())


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def _file(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _24_bits(data: bytes, start: int) -> int:
    return struct.unpack("<I", data[start : start + 3] + b"\0")[0]
