"""The codestream of JPEG 2000 (ISO/IEC 15444-1): what its headers say, and what that takes."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from drexperts.runtime.decoding.stored import NotReadError

_COD, _COC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_CAPABILITIES = 0xFF50
_PART_2 = range(0xFF74, 0xFF7A)
_MOST_SEGMENTS = 100_000
_MOST_PACKETS = 20_000_000

# Bytes that OpenJPEG holds for each, rounded up from measurements.
_PER_SAMPLE = 4
_PER_TILE = 8_000
_PER_TILE_AND_COMPONENT = 2_000
_PER_BLOCK = 500
_PER_PRECINCT = 600


@dataclass(frozen=True)
class Coding:
    """How a component is coded: what a COD or COC segment says.

    block: width and height of a code block
    precincts: width and height of the precincts of each resolution, the smallest first
    """

    layers: int
    block: tuple[int, int]
    precincts: tuple[tuple[int, int], ...]


@dataclass
class Codestream:
    """What the headers say.

    bits: of each component; all are unsigned and as large as the image
    codings: all that occur, in whatever component or tile
    length: of the codestream, to the end of its last tile-part
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    tiles: int
    bits: tuple[int, ...]
    codings: list[Coding] = field(default_factory=list)
    tiles_found: set[int] = field(default_factory=set)
    segments: int = 0
    length: int = 0

    @property
    def tile_area(self) -> int:
        return self.tile_width * self.tile_height

    @property
    def packets(self) -> int:
        """The most packets that the picture can have."""
        per_component = max(_packets(coding, self) for coding in self.codings)
        return self.tiles * len(self.bits) * per_component

    def memory(self) -> int:
        """The most bytes that OpenJPEG holds at once, beside its output."""
        components = len(self.bits)
        tables = self.tiles * (_PER_TILE + _PER_TILE_AND_COMPONENT * components)
        structures = max(_structures(coding, self) for coding in self.codings)
        # A tile is copied before it is decoded.
        return self.length + tables + components * (_PER_SAMPLE * self.tile_area + structures)


def read_codestream(data: bytes) -> Codestream:
    """Read the main header and the headers of all tile-parts.

    Raises NotReadError for a truncated codestream, and for one that would take too long.
    """
    if data[:4] != b"\xff\x4f\xff\x51":
        raise NotReadError("a JPEG 2000 file without a valid codestream")
    _, size, start = _segment(data, 2)
    found = _size(size)
    found.length = _tile_parts(found, data, _header(found, data, start, _SOT))
    if not found.codings:
        raise NotReadError("a JPEG 2000 file that does not say how it is coded")
    if found.packets > _MOST_PACKETS:
        raise NotReadError("a JPEG 2000 file of too many layers, tiles or precincts")
    if found.tiles_found != set(range(found.tiles)):
        raise NotReadError("a JPEG 2000 file that is truncated: tiles are missing")
    return found


def _segment(data: bytes, start: int) -> tuple[int, bytes, int]:
    """A marker, what its segment contains, and where it ends."""
    marker, length = struct.unpack_from(">HH", data, start)
    end = start + 2 + length
    if length < 2 or end > len(data):
        raise NotReadError("a JPEG 2000 file that is truncated: a segment is cut off")
    return marker, data[start + 4 : end], end


def _size(body: bytes) -> Codestream:
    part, right, bottom, left, top, *tile, count = struct.unpack_from(">HIIIIIIIIH", body)
    if not 1 <= count <= 4:
        raise NotReadError(f"a JPEG 2000 file of {count} components")
    components = [struct.unpack_from(">BBB", body, 36 + 3 * i) for i in range(count)]
    if part & 0x8000:
        raise NotReadError("a JPEG 2000 file with extensions of part 2")
    if any(across != 1 or down != 1 for _, across, down in components):
        raise NotReadError("a JPEG 2000 file of subsampled components")
    if any(depth & 0x80 for depth, *_ in components):
        raise NotReadError("a JPEG 2000 file of signed samples")
    across, down, tile_left, tile_top = tile
    if not (tile_left <= left < right and tile_top <= top < bottom and across and down):
        raise NotReadError("a JPEG 2000 file of an invalid size")
    tiles = -(-(right - tile_left) // across) * -(-(bottom - tile_top) // down)
    if tiles > 65535:
        raise NotReadError(f"a JPEG 2000 file of {tiles} tiles")
    width, height = right - left, bottom - top
    bits = tuple(depth + 1 for depth, *_ in components)
    return Codestream(width, height, min(across, width), min(down, height), tiles, bits)


def _header(found: Codestream, data: bytes, start: int, last: int) -> int:
    """Read the segments of a header; where the marker is that ends it."""
    while struct.unpack_from(">H", data, start) != (last,):
        marker, body, start = _segment(data, start)
        found.segments += 1
        if found.segments > _MOST_SEGMENTS:
            raise NotReadError(f"a JPEG 2000 file of more than {_MOST_SEGMENTS} segments")
        if marker in _PART_2:
            raise NotReadError("a JPEG 2000 file with extensions of part 2")
        if marker == _CAPABILITIES:
            raise NotReadError("a JPEG 2000 file with extensions of part 15 (high throughput)")
        if marker == _COD:
            (layers,) = struct.unpack_from(">H", body, 2)
            found.codings.append(_coding(layers, bool(body[0] & 1), body[5:]))
        elif marker == _COC:
            layers = max((coding.layers for coding in found.codings), default=1)
            found.codings.append(_coding(layers, bool(body[1] & 1), body[2:]))
    return start


def _coding(layers: int, has_precincts: bool, body: bytes) -> Coding:
    levels, across, down = struct.unpack_from(">BBB", body)
    if levels > 32 or across > 8 or down > 8 or across + down > 8:
        raise NotReadError("a JPEG 2000 file of an invalid coding")
    sizes = body[5 : 6 + levels] if has_precincts else b"\xff" * (levels + 1)
    if len(sizes) <= levels:
        raise NotReadError("a JPEG 2000 file that is truncated: a segment is cut off")
    precincts = tuple((1 << (size & 15), 1 << (size >> 4)) for size in sizes)
    return Coding(layers, (4 << across, 4 << down), precincts)


def _tile_parts(found: Codestream, data: bytes, start: int) -> int:
    """Walk the tile-parts; where the last one ends."""
    while data[start : start + 2] not in (b"", b"\xff\xd9"):
        marker, body, end = _segment(data, start)
        if marker != _SOT or len(body) != 8:
            raise NotReadError("a JPEG 2000 file that is damaged: a tile does not begin well")
        tile, length = struct.unpack_from(">HI", body)
        first = _header(found, data, end, _SOD)
        # A length of 0 stands for all up to the end marker, which no packet contains.
        following = start + length if length else data.find(b"\xff\xd9", first)
        if following < 0:
            raise NotReadError("a JPEG 2000 file that is truncated: its end marker is missing")
        if following > len(data) or first > following - 2:
            raise NotReadError("a JPEG 2000 file that is truncated: a tile is cut off")
        found.segments += 1
        found.tiles_found.add(tile)
        start = following
    return start


def _grids(coding: Coding, found: Codestream) -> Iterator[tuple[int, int]]:
    """At most how many precincts and code blocks each resolution of a tile has."""
    levels = len(coding.precincts) - 1
    for resolution, (across, down) in enumerate(coding.precincts):
        # One more than there are, because a tile may begin anywhere in its grid.
        width = (found.tile_width >> (levels - resolution)) + 2
        height = (found.tile_height >> (levels - resolution)) + 2
        precincts = (width // across + 2) * (height // down + 2)
        block_width = max(min(coding.block[0], across // 2), 1)
        block_height = max(min(coding.block[1], down // 2), 1)
        blocks = (width // block_width + 2) * (height // block_height + 2)
        yield precincts, max(blocks, precincts)


def _packets(coding: Coding, found: Codestream) -> int:
    return coding.layers * sum(precincts for precincts, _ in _grids(coding, found))


def _structures(coding: Coding, found: Codestream) -> int:
    """Bytes of the precincts and code blocks of a component of a tile, and notes of its packets."""
    grids = list(_grids(coding, found))
    held = sum(3 * _PER_PRECINCT * precincts + _PER_BLOCK * blocks for precincts, blocks in grids)
    # OpenJPEG notes of each packet whether it was met, as if all resolutions were as large.
    return held + 2 * coding.layers * len(grids) * max(precincts for precincts, _ in grids)
