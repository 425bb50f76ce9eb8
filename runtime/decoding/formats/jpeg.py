"""JPEG, the first picture of MPO included: 8-bit DCT, Huffman or arithmetic, of ISO/IEC 10918-1.

libjpeg-turbo gets the tables and scans of the first picture, and of the application's segments only
what decides over colours: a JFIF and an Adobe segment, written anew where the file has valid ones.
"""

import re
from dataclasses import dataclass, field
from typing import IO

from PIL.JpegImagePlugin import JpegImageFile

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.memory import bytes_held
from drexperts.runtime.decoding.orientation import MOST_BYTES, orientation_from
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored

_GREY = Layout("JPEG", "grey, 8 bits", "expanded to RGB")
_YCBCR = Layout("JPEG", "YCbCr, 8 bits, any subsampling", "libjpeg-turbo's conversion to RGB")
_RGB = Layout("JPEG", "RGB, 8 bits, by an Adobe segment or component names", "as decoded")
_CMYK = Layout("JPEG", "CMYK of Adobe, 8 bits, inverted", "Pillow's conversion to RGB")
_YCCK = Layout("JPEG", "YCCK of Adobe, 8 bits, inverted", "Pillow's conversion to RGB")
LAYOUTS = (_GREY, _YCBCR, _RGB, _CMYK, _YCCK)

# The samples that all scans of a picture pass over. A refining scan without data takes 0.6 ns per
# sample (16 megapixels, 101 scans: 1.0 s), so that 4e9 take 2.5 s. A progressive picture of 100
# megapixels by libjpeg or mozjpeg, without subsampling, has 1.6e9 to 2e9.
MOST_SCANNED = 4_000_000_000
# Arithmetic coding takes up to 4 ns per sample, and 300 ns per byte: 20 s for the most bytes.
_MOST_SCANNED_ARITHMETIC = MOST_SCANNED // 5
_MOST_ARITHMETIC = 2**26
_MOST_SEGMENTS = 10_000
# Bytes of tables: a scan may have its own, of a kilobyte.
_MOST_TABLES = 2**20

_SOI, _EOI, _SOS, _DQT, _DHT, _DAC, _DRI, _DNL = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xCC, 0xDD, 0xDC
_APP0, _APP1, _APP14, _COM, _TEM = 0xE0, 0xE1, 0xEE, 0xFE, 0x01
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_PROGRESSIVE, _ARITHMETIC = {0xC2, 0xCA}, {0xC9, 0xCA}
_OTHER_FRAMES = {
    0xC3: "lossless JPEG",
    0xC5: "hierarchical JPEG",
    0xC6: "hierarchical JPEG",
    0xC7: "hierarchical JPEG",
    0xC8: "JPEG with a reserved coding",
    0xCB: "lossless JPEG with arithmetic coding",
    0xCD: "hierarchical JPEG",
    0xCE: "hierarchical JPEG",
    0xCF: "hierarchical JPEG",
    0xDE: "hierarchical JPEG",
    0xDF: "hierarchical JPEG",
    0xF7: "JPEG-LS",
}
# Any number of 0xFF may stand before a marker.
_MARKER = re.compile(rb"\xff++[^\xff]", re.DOTALL)
# In a scan, 0xFF is followed by 0, by a restart marker, or by more 0xFF before a marker.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass
class _Frame:
    width: int
    height: int
    progressive: bool
    arithmetic: bool
    # (name, horizontal sampling, vertical sampling) of each
    components: list[tuple[int, int, int]]

    @property
    def names(self) -> bytes:
        return bytes(name for name, *_ in self.components)

    def samples(self, names: bytes) -> int:
        """Of the components with these names, in whole blocks, as libjpeg stores coefficients."""
        most_across = max(across for _, across, _ in self.components)
        most_down = max(down for *_, down in self.components)
        units = -(-self.width // (8 * most_across)) * -(-self.height // (8 * most_down))
        sizes = (64 * across * down for name, across, down in self.components if name in names)
        return units * sum(sizes)


@dataclass
class _Segments:
    kept: list[memoryview] = field(default_factory=list)
    frame: _Frame | None = None
    jfif: bool = False
    adobe: int | None = None
    exif: bytearray = field(default_factory=bytearray)
    xmp: bytes = b""
    tables: int = 0
    # The names of each scan's components.
    scans: list[bytes] = field(default_factory=list)


def inspect(data: bytes) -> Stored:
    found = _read(data)
    frame = found.frame
    if frame is None:
        raise NotReadError("a JPEG without a frame: it is truncated")
    layout, mode = _layout(found, frame)
    _check_scans(found, frame)
    orientation = orientation_from(bytes(found.exif), found.xmp)
    several = frame.progressive or len(found.scans) > 1
    coefficients = 2 * frame.samples(frame.names) if several else 0
    kept = _rebuilt(found)
    read_at_once = 2 * len(kept) if frame.arithmetic else 0
    pixels = frame.width * frame.height
    return Stored(
        layout=layout,
        width=frame.width,
        height=frame.height,
        data=kept,
        open=_open_at_once if frame.arithmetic else JpegImageFile,
        modes=frozenset({mode}),
        to_rgb=convert.to_rgb,
        memory=bytes_held(mode, pixels, orientation, beside=coefficients + read_at_once),
        orientation=orientation,
    )


def _open_at_once(stream: IO[bytes]) -> JpegImageFile:
    """libjpeg cannot wait for more data within arithmetic coding; Pillow gives it pieces."""
    image = JpegImageFile(stream)
    image.decodermaxblock = _MOST_ARITHMETIC + 1024  # and what is written anew
    return image


def _read(data: bytes) -> _Segments:
    """Walk the segments from SOI to the first EOI."""
    found = _Segments()
    view = memoryview(data)
    start = 2
    for _ in range(_MOST_SEGMENTS):
        marker, body, end = _segment(data, start)
        if marker == _EOI:
            return found
        if marker == _SOS:
            end = _scan(found, data, body, end)
        else:
            _take(found, marker, data, body, end)
        if marker in _KEPT:
            found.kept.append(view[body - 4 : end])
        start = end
    raise NotReadError(f"a JPEG of more than {_MOST_SEGMENTS} segments")


_KEPT = {_SOS, _DQT, _DHT, _DAC, _DRI} | _FRAMES


def _segment(data: bytes, start: int) -> tuple[int, int, int]:
    """A marker, where its segment's body begins, and where it ends."""
    # A search for the pattern would begin anew at each of many 0xFF.
    first = data.find(b"\xff", start)
    found = _MARKER.match(data, first) if first >= 0 else None
    if found is None:
        raise NotReadError("a JPEG that is truncated: its end marker is missing")
    after_fill = found.end() - 1
    marker = data[after_fill]
    body = after_fill + 3
    if marker in (0, _TEM, _EOI) or 0xD0 <= marker <= 0xD7:
        return marker, body, after_fill + 1
    if marker == _SOI:
        raise NotReadError("a JPEG that begins again before its end")
    length = int.from_bytes(data[after_fill + 1 : body], "big")
    end = after_fill + 1 + length
    if length < 2 or end > len(data):
        raise NotReadError("a JPEG that is truncated or damaged: a segment has a wrong length")
    return marker, body, end


def _take(found: _Segments, marker: int, data: bytes, body: int, end: int) -> None:
    """What a segment other than a scan says."""
    if marker in _OTHER_FRAMES:
        raise NotReadError(f"it is {_OTHER_FRAMES[marker]}")
    if marker in (_DQT, _DHT, _DAC):
        found.tables += end - body
        if found.tables > _MOST_TABLES:
            raise NotReadError(f"a JPEG with more than {_MOST_TABLES} bytes of tables")
    elif marker in _FRAMES:
        if found.frame:
            raise NotReadError("a JPEG with two frames")
        found.frame = _frame(marker, data[body:end])
    elif marker == _APP0 and end - body >= 14 and data.startswith(b"JFIF\0", body):
        found.jfif = True
    elif marker == _APP14 and end - body >= 12 and data.startswith(b"Adobe", body):
        found.adobe = data[body + 11]
    elif marker == _APP1 and data.startswith(_EXIF, body):
        if len(found.exif) < MOST_BYTES:
            found.exif += data[body + len(_EXIF) : end]
    elif marker == _APP1 and data.startswith(_XMP, body):
        found.xmp = data[body + len(_XMP) : end]


def _frame(marker: int, body: bytes) -> _Frame:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise NotReadError("a JPEG whose frame is cut off")
    if body[0] != 8:
        raise NotReadError(f"a JPEG of {body[0]} bits")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if not height:
        raise NotReadError("a JPEG whose height stands after its scan (DNL)")
    components = [
        (body[at], body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, 6 + 3 * body[5], 3)
    ]
    if not all(1 <= across <= 4 and 1 <= down <= 4 for _, across, down in components):
        raise NotReadError("a JPEG with an invalid subsampling")
    return _Frame(width, height, marker in _PROGRESSIVE, marker in _ARITHMETIC, components)


def _scan(found: _Segments, data: bytes, body: int, end: int) -> int:
    """Note a scan's components; the end of its data is what comes before the next marker."""
    count = data[body] if end > body else 0
    if not found.frame or end - body != 4 + 2 * count:
        raise NotReadError("a JPEG with a damaged scan")
    found.scans.append(data[body + 1 : body + 1 + 2 * count : 2])
    following = _AFTER_SCAN.search(data, end)
    if following is None:
        raise NotReadError("a JPEG that is truncated: its end marker is missing")
    return following.start()


def _layout(found: _Segments, frame: _Frame) -> tuple[Layout, str]:
    """By libjpeg's rules (default_decompress_parms)."""
    count = len(frame.components)
    if count == 1:
        return _GREY, "L"
    if count == 3 and (found.jfif or found.adobe == 1):
        return _YCBCR, "RGB"
    if count == 3 and found.adobe is None:
        return (_RGB if frame.names == b"RGB" else _YCBCR), "RGB"
    if count == 3 and found.adobe == 0:
        return _RGB, "RGB"
    if count == 4 and found.adobe in (0, 2):
        return (_YCCK if found.adobe else _CMYK), "CMYK"
    if count == 4 and found.adobe is None:
        raise NotReadError(
            "a JPEG of four components without an Adobe segment: whether 0 or 255 is full ink is "
            "not said"
        )
    adobe = "" if found.adobe is None else f" and Adobe's transform {found.adobe}"
    raise NotReadError(f"a JPEG of {count} components{adobe}")


def _check_scans(found: _Segments, frame: _Frame) -> None:
    scanned = sum(map(frame.samples, found.scans))
    most = _MOST_SCANNED_ARITHMETIC if frame.arithmetic else MOST_SCANNED
    if scanned > most:
        raise NotReadError(
            f"a JPEG whose {len(found.scans)} scans pass over {scanned} samples, which takes too "
            f"long: at most {most} are scanned"
        )
    coded = sum(map(len, found.kept))
    if frame.arithmetic and coded > _MOST_ARITHMETIC:
        raise NotReadError(
            f"a JPEG with arithmetic coding of {coded} bytes, which takes too long: at most "
            f"{_MOST_ARITHMETIC} are read"
        )
    missing = set(frame.names).difference(*found.scans)
    if missing:
        raise NotReadError(f"a JPEG that is incomplete: no scan has component {min(missing)}")


def _rebuilt(found: _Segments) -> bytes:
    colours = [_JFIF] if found.jfif else []
    if found.adobe is not None:
        colours.append(_ADOBE + bytes([found.adobe]))
    return b"".join([b"\xff\xd8", *colours, *found.kept, b"\xff\xd9"])
