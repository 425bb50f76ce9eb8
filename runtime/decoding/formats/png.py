"""PNG and APNG: every depth and colour type of ISO/IEC 15948.

What Pillow gets is the picture alone. A transparent grey or palette entry is made white here, in
the palette, so that neither Pillow's reading of tRNS nor its memory for compositing is needed.
"""

import functools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL.PngImagePlugin import PngImageFile

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.formats import palettes
from drexperts.runtime.decoding.memory import bytes_held
from drexperts.runtime.decoding.orientation import MOST_BYTES, orientation_from
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored

_GREY = Layout("PNG", "grey, 1, 2, 4 or 8 bits", "expanded to RGB")
_GREY_KEY = Layout(
    "PNG", "grey, 1, 2, 4 or 8 bits, with a transparent value", "the value is white; expanded"
)
_GREY_16 = Layout("PNG", "grey, 16 bits", "divided by 257 and rounded")
_GREY_16_KEY = Layout(
    "PNG", "grey, 16 bits, with a transparent value", "the value is white; divided by 257, rounded"
)
_RGB = Layout("PNG", "RGB, 8 bits", "as stored")
_RGB_KEY = Layout("PNG", "RGB, 8 bits, with a transparent colour", "the colour is white")
_RGB_16 = Layout("PNG", "RGB, 16 bits", "the high byte of each sample")
_PALETTE = Layout("PNG", "palette, 1, 2, 4 or 8 bits", "expanded to RGB")
_PALETTE_ALPHA = Layout(
    "PNG", "palette, 1, 2, 4 or 8 bits, with transparent entries", "composited over white"
)
_GREY_ALPHA = Layout("PNG", "grey with alpha, 8 bits", "composited over white")
_GREY_ALPHA_16 = Layout(
    "PNG", "grey with alpha, 16 bits", "the high byte of each sample, composited over white"
)
_RGBA = Layout("PNG", "RGB with alpha, 8 bits", "composited over white")
_RGBA_16 = Layout(
    "PNG", "RGB with alpha, 16 bits", "the high byte of each sample, composited over white"
)
LAYOUTS = (
    _GREY,
    _GREY_KEY,
    _GREY_16,
    _GREY_16_KEY,
    _RGB,
    _RGB_KEY,
    _RGB_16,
    _PALETTE,
    _PALETTE_ALPHA,
    _GREY_ALPHA,
    _GREY_ALPHA_16,
    _RGBA,
    _RGBA_16,
)

# By colour type and bits: the layout, that with a tRNS chunk, and Pillow's mode.
_TYPES: dict[tuple[int, int], tuple[Layout, Layout | None, str]] = {
    (0, 1): (_GREY, _GREY_KEY, "1"),
    (0, 2): (_GREY, _GREY_KEY, "L"),
    (0, 4): (_GREY, _GREY_KEY, "L"),
    (0, 8): (_GREY, _GREY_KEY, "L"),
    (0, 16): (_GREY_16, _GREY_16_KEY, "I;16"),
    (2, 8): (_RGB, _RGB_KEY, "RGB"),
    (2, 16): (_RGB_16, None, "RGB"),
    (3, 1): (_PALETTE, _PALETTE_ALPHA, "P"),
    (3, 2): (_PALETTE, _PALETTE_ALPHA, "P"),
    (3, 4): (_PALETTE, _PALETTE_ALPHA, "P"),
    (3, 8): (_PALETTE, _PALETTE_ALPHA, "P"),
    (4, 8): (_GREY_ALPHA, _GREY_ALPHA, "LA"),
    (4, 16): (_GREY_ALPHA_16, _GREY_ALPHA_16, "RGBA"),
    (6, 8): (_RGBA, _RGBA, "RGBA"),
    (6, 16): (_RGBA_16, _RGBA_16, "RGBA"),
}
_GREY_TYPE, _PALETTE_TYPE = 0, 3
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# The first column and row of each pass, and their steps.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# Bytes that are unfolded at a time.
_PIECE = 2**16

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Writers cut 100 megapixels into 75,000 chunks at most: 6 bytes per pixel, 8 kB per chunk.
_MOST_CHUNKS = 100_000

_XMP = b"XML:com.adobe.xmp"
_RAW_EXIF = b"Raw profile type exif"


@dataclass
class _Chunks:
    """The chunks that matter, by name; IDAT's whole, the others' bodies."""

    bodies: dict[bytes, bytes] = field(default_factory=dict)
    pixels: list[memoryview] = field(default_factory=list)
    texts: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Header:
    width: int
    height: int
    bits: int
    type: int
    interlaced: int

    @property
    def unfolded(self) -> int:
        """Bytes of all rows, each behind the byte that names its filter."""
        sizes = [(self.width, self.height)]
        if self.interlaced:
            sizes = [
                (-((left - self.width) // across), -((top - self.height) // down))
                for left, top, across, down in _ADAM7
            ]
        bits = self.bits * _CHANNELS[self.type]
        return sum(height * (1 + (width * bits + 7) // 8) for width, height in sizes if width > 0)

    def tobytes(self) -> bytes:
        return struct.pack(
            ">IIBBBBB", self.width, self.height, self.bits, self.type, 0, 0, self.interlaced
        )


class _WholePng(PngImageFile):
    """Pillow's reader, which by itself leaves rows black that the file does not have."""

    def load_end(self) -> None:
        super().load_end()
        last_row = self.crop((0, self.height - 1, *self.size))
        if self.info.get("interlace") or not last_row.getbbox(alpha_only=False):
            assert self.fp is not None
            self.fp.seek(0)
            _check_rows(self.fp.read())


def inspect(data: bytes) -> Stored:
    chunks = _read(data)
    header = _header(chunks.bodies.get(b"IHDR", b""))
    if (header.type, header.bits) not in _TYPES:
        raise NotReadError(f"a PNG of colour type {header.type} with {header.bits} bits")
    opaque, transparent, mode = _TYPES[header.type, header.bits]
    layout = transparent if b"tRNS" in chunks.bodies else opaque
    if layout is None:
        raise NotReadError("a PNG of 16-bit RGB with a transparent colour")
    parts, header, known = _picture(header, chunks.bodies, mode)
    mode = "P" if header.type == _PALETTE_TYPE else mode
    orientation = _orientation(chunks)
    pixels = header.width * header.height
    return Stored(
        layout=layout,
        width=header.width,
        height=header.height,
        data=_rebuilt(header, parts, chunks.pixels),
        open=_WholePng,
        modes=frozenset({mode}),
        to_rgb=functools.partial(palettes.to_rgb, known=known) if known else convert.to_rgb,
        memory=bytes_held(mode, pixels, orientation, transparent=layout is _RGB_KEY),
        orientation=orientation,
    )


def _read(data: bytes) -> _Chunks:
    chunks = _Chunks()
    view = memoryview(data)
    last = b""
    for name, start, end in _walk(data):
        if not chunks.bodies and name != b"IHDR":
            raise NotReadError(f"a PNG that begins with the chunk {_shown(name)}, not with IHDR")
        if name == b"IDAT":
            _check_sum(view, name, start, end)
            if chunks.pixels and last != b"IDAT":
                raise NotReadError("a PNG whose IDAT chunks are not consecutive")
            chunks.pixels.append(view[start:end])
        elif name in (b"IHDR", b"PLTE", b"tRNS") and not chunks.pixels:
            _check_sum(view, name, start, end)
            if name in chunks.bodies:
                raise NotReadError(f"a PNG with two chunks {_shown(name)}")
            chunks.bodies[name] = data[start + 8 : end - 4]
        elif name[0] & 0x20 == 0 and name != b"IEND" and not chunks.pixels:
            raise NotReadError(f"a PNG with the unknown critical chunk {_shown(name)}")
        else:
            _keep_orientation(chunks, data, name, start, end)
        last = name
    if not chunks.pixels:
        raise NotReadError("a PNG without pixels: it is truncated")
    return chunks


def _walk(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The name of each chunk, where it begins and where it ends."""
    start = len(_SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        if start + 12 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data) and name == b"IDAT":
            raise NotReadError("a PNG that is truncated")
        if end > len(data) or name == b"IEND":
            return
        yield name, start, end
        start = end
    raise NotReadError(f"a PNG of more than {_MOST_CHUNKS} chunks")


def _check_rows(data: bytes) -> None:
    """Raises NotReadError if the pixels unfold to less than all rows."""
    missing = _header(data[16:29]).unfolded
    unfold = zlib.decompressobj()
    for piece in _pixel_pieces(data):
        while piece and missing > 0:
            missing -= len(unfold.decompress(piece, _PIECE))
            piece = unfold.unconsumed_tail
    if missing > len(unfold.flush()):
        raise NotReadError("a PNG that is truncated: rows are missing")


def _pixel_pieces(data: bytes) -> Iterator[bytes]:
    for name, start, end in _walk(data):
        if name == b"IDAT":
            for at in range(start + 8, end - 4, _PIECE):
                yield data[at : min(at + _PIECE, end - 4)]


def _check_sum(view: memoryview, name: bytes, start: int, end: int) -> None:
    if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
        raise NotReadError(f"a PNG that is damaged: the checksum of {_shown(name)} is wrong")


def _shown(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")


def _header(body: bytes) -> _Header:
    if len(body) < 13:
        raise NotReadError("a PNG without a header")
    width, height, bits, type, compression, filters, interlaced = struct.unpack_from(
        ">IIBBBBB", body
    )
    if compression or filters or interlaced > 1:
        raise NotReadError("a PNG with an unknown compression, filter or interlacing")
    return _Header(width, height, bits, type, interlaced)


def _picture(
    header: _Header, bodies: dict[bytes, bytes], mode: str
) -> tuple[list[bytes], _Header, frozenset[int] | None]:
    """The chunks beside the pixels, the header for Pillow, and the indices that a palette knows."""
    transparency = bodies.get(b"tRNS")
    if header.type == _PALETTE_TYPE:
        colours, known = _palette(bodies.get(b"PLTE", b""), transparency or b"", header.bits)
        return [_chunk(b"PLTE", colours)], header, known
    if transparency is None or mode in ("LA", "RGBA"):
        return [], header, None
    if len(transparency) < (2 if header.type == _GREY_TYPE else 6):
        raise NotReadError("a PNG whose transparent colour is cut off")
    if header.bits == 16:
        return [_chunk(b"tRNS", transparency[:2])], header, None
    if header.type == _GREY_TYPE:
        colours = _grey_palette(header.bits, transparency[1])
        return [_chunk(b"PLTE", colours)], _as_palette(header), None
    masked = bytes(value for byte in transparency[1:6:2] for value in (0, byte))
    return [_chunk(b"tRNS", masked)], header, None


def _palette(colours: bytes, alphas: bytes, bits: int) -> tuple[bytes, frozenset[int] | None]:
    if not colours or len(colours) % 3 or len(colours) > 3 * 256:
        raise NotReadError("a PNG without a whole palette")
    colours = colours[: 3 << bits]
    entries = len(colours) // 3
    known = frozenset(range(entries)) if entries < 1 << bits else None
    return palettes.over_white(colours, alphas), known


def _grey_palette(bits: int, transparent: int) -> bytes:
    """Grey samples are indices of these colours; the standard masks the transparent value."""
    most = (1 << bits) - 1
    greys = [value * 255 // most for value in range(most + 1)]
    greys[transparent & most] = 255
    return bytes(grey for grey in greys for _ in range(3))


def _as_palette(header: _Header) -> _Header:
    return _Header(header.width, header.height, header.bits, _PALETTE_TYPE, header.interlaced)


def _rebuilt(header: _Header, parts: list[bytes], pixels: list[memoryview]) -> bytes:
    start = [_SIGNATURE, _chunk(b"IHDR", header.tobytes()), *parts]
    return b"".join([*start, *pixels, _chunk(b"IEND", b"")])


def _chunk(name: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def _keep_orientation(chunks: _Chunks, data: bytes, name: bytes, start: int, end: int) -> None:
    """The last chunk of each kind that may give an orientation, as far as it is searched."""
    body = slice(start + 8, min(end - 4, start + 8 + MOST_BYTES))
    if name == b"eXIf":
        chunks.texts[name] = name, data[body]
    elif name in (b"tEXt", b"zTXt", b"iTXt"):
        for keyword in (_XMP, _RAW_EXIF):
            if data.startswith(keyword + b"\0", start + 8):
                chunks.texts[keyword] = name, data[body][len(keyword) + 1 :]


def _orientation(chunks: _Chunks) -> int:
    exif = chunks.texts.get(b"eXIf", (b"", b""))[1]
    if not exif and _RAW_EXIF in chunks.texts:
        exif = _from_hexadecimal(_text(*chunks.texts[_RAW_EXIF]))
    xmp = _text(*chunks.texts[_XMP]) if _XMP in chunks.texts else b""
    return orientation_from(exif, xmp)


def _from_hexadecimal(text: bytes) -> bytes:
    """ImageMagick's way: a line break, "exif", the length, and lines of hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def _text(name: bytes, body: bytes) -> bytes:
    """The text of a chunk tEXt, zTXt or iTXt, of which `body` is what follows the keyword."""
    if name == b"tEXt":
        return body
    if name == b"zTXt":
        return _inflated(body[1:])
    *_, text = body[2:].split(b"\0", 2)
    return _inflated(text) if body[:1] == b"\1" else text


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, MOST_BYTES)
    except zlib.error:
        return b""
