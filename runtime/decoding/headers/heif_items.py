"""The items of an AVIF or HEIC file (ISO/IEC 23008-12): pictures, tiles and what they need."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

from PIL import Image

from drexperts.runtime.decoding.headers.boxes import boxes, children
from drexperts.runtime.decoding.stored import NotReadError

_MOST_ITEMS = 2_000
# Bytes of all items, so that decoding one piece of the file again and again does not take too long;
# tiles of the same content may share theirs.
_MOST_SHARED = 2**26
_TRANSFORMS = (b"clap", b"irot", b"imir")
_TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
_MIRRORS = (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_LEFT_RIGHT)

# The box to which a picture is cropped, or how it is turned or mirrored.
Step: TypeAlias = tuple[int, int, int, int] | Image.Transpose
_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0", b"urn:mpeg:hevc:2015:auxid:1\0")


@dataclass
class Item:
    """A picture, a tile of one, or metadata.

    extents: the pieces of its content: where each starts and ends
    properties: the type and content of each
    links: where the file associates it with each
    """

    kind: bytes
    extents: list[tuple[int, int]] = field(default_factory=list)
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    links: list[tuple[int, int]] = field(default_factory=list)

    def what(self, kind: bytes) -> bytes | None:
        return next((body for name, body in self.properties if name == kind), None)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, before it is turned."""
        body = self.what(b"ispe")
        if body is None:
            raise NotReadError("a picture whose size is not said")
        width, height = struct.unpack_from(">II", body, 4)
        return width, height


@dataclass
class Items:
    """What a file's meta box says.

    references: (type, from which item, to which items)
    """

    data: bytes
    primary: int = 0
    items: dict[int, Item] = field(default_factory=dict)
    references: list[tuple[bytes, int, tuple[int, ...]]] = field(default_factory=list)

    def content(self, item: Item) -> bytes:
        return b"".join(self.data[start:end] for start, end in item.extents)

    @property
    def picture(self) -> Item:
        if self.primary not in self.items:
            raise NotReadError("a file without a still picture")
        return self.items[self.primary]

    def untransformed(self) -> bytes:
        """The file without the association of any item with a transform."""
        data = bytearray(self.data)
        for item in self.items.values():
            for (kind, _), (start, end) in zip(item.properties, item.links, strict=True):
                if kind in _TRANSFORMS:
                    data[start:end] = bytes(end - start)
        return bytes(data)

    def alpha(self) -> tuple[Item | None, bool]:
        """The picture's opacity, and whether its colours are premultiplied with it."""
        for kind, start, ends in self.references:
            item = self.items.get(start)
            auxiliary = item.what(b"auxC") if item and kind == b"auxl" else None
            if self.primary in ends and auxiliary and auxiliary[4:].startswith(_ALPHA):
                premultiplied = (b"prem", self.primary, (start,)) in self.references
                return item, premultiplied
        return None, False

    def tiles(self, item: Item) -> list[Item]:
        """The items of which a grid consists, or the item itself."""
        if item.kind != b"grid":
            return [item]
        number = next(number for number, other in self.items.items() if other is item)
        for kind, start, ends in self.references:
            if kind == b"dimg" and start == number:
                return [self.items[end] for end in ends if end in self.items]
        raise NotReadError("a picture of tiles without its tiles")

    def orientation(self) -> int:
        """As in EXIF, by the properties of the picture: those alone count."""
        angle = self.picture.what(b"irot")
        axis = self.picture.what(b"imir")
        turns = angle[0] & 3 if angle else 0
        if axis is None:
            return (1, 8, 3, 6)[turns]
        return ((4, 5, 2, 7), (2, 7, 4, 5))[axis[0] & 1][turns]


def crop_box(body: bytes, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what a clap property leaves of a picture of this size.

    Raises NotReadError for a crop that is not of whole pixels within the picture.
    """
    numbers = struct.unpack_from(">IIIIiIiI", body)
    if 0 in numbers[1::2]:
        raise NotReadError("a picture with an invalid crop")
    width, height, *centre = (
        Fraction(numbers[i], numbers[i + 1]) for i in range(0, len(numbers), 2)
    )
    box: list[int] = []
    for whole, part, offset in zip(size, (width, height), centre, strict=True):
        start = offset + Fraction(whole - part, 2)
        if (
            start.denominator != 1
            or part.denominator != 1
            or not 0 <= start < start + part <= whole
        ):
            raise NotReadError("a picture whose crop is not of whole pixels within it")
        box += [int(start), int(start + part)]
    return box[0], box[2], box[1], box[3]


def transforms(item: Item) -> list[Step]:
    """How an item is cropped, turned and mirrored, in this order. Raises NotReadError."""
    found = [(kind, body) for kind, body in item.properties if kind in _TRANSFORMS]
    if len({kind for kind, _ in found}) < len(found):
        raise NotReadError("a picture that is cropped, turned or mirrored several times")
    steps: list[Step] = []
    size = item.size
    for kind, body in found:
        if kind == b"clap":
            left, top, right, bottom = crop_box(body, size)
            steps.append((left, top, right, bottom))
            size = right - left, bottom - top
        elif kind == b"imir":
            steps.append(_MIRRORS[body[0] & 1])
        elif turns := body[0] & 3:
            steps.append(_TURNS[turns - 1])
            size = size[::-1] if turns & 1 else size
    return steps


def read_items(data: bytes) -> Items:
    found = children(data, 0, len(data), needed=(b"meta",)).get(b"meta")
    if found is None:
        raise NotReadError("a file without a still picture")
    parts = children(data, found[0] + 4, found[1])
    items = Items(data)
    bodies = {kind: data[start:end] for kind, (start, end) in parts.items()}
    if b"pitm" in bodies:
        (items.primary,) = struct.unpack_from(
            ">I" if bodies[b"pitm"][0] else ">H", bodies[b"pitm"], 4
        )
    _read_kinds(items, bodies.get(b"iinf", b""))
    _read_places(items, bodies.get(b"iloc", b""), parts.get(b"idat", (0, 0)), len(data))
    _read_references(items, bodies.get(b"iref", b""))
    _read_properties(items, bodies.get(b"iprp", b""), parts.get(b"iprp", (0, 0))[0])
    return items


def check_picture(items: Items, coding: str) -> None:
    """Raises NotReadError unless the picture and its alpha are items of this coding, or tiles."""
    picture = items.picture
    alpha, _ = items.alpha()
    if alpha and alpha.size != picture.size:
        raise NotReadError("a picture whose alpha is of another size than its colours")
    for part in (picture, alpha):
        for tile in items.tiles(part) if part else ():
            if tile is not part and transforms(tile):
                raise NotReadError("a picture whose tiles are to be cropped or turned")
            if tile.kind != coding.encode():
                kind = tile.kind.decode("ascii", "backslashreplace")
                raise NotReadError(f"a picture in the coding {kind}, not {coding}")
        if part and part.kind == b"grid":
            _check_grid(items, part)


def _check_grid(items: Items, grid: Item) -> None:
    body = items.content(grid)
    size = struct.unpack_from(">II" if body[1] & 1 else ">HH", body, 4)
    rows, columns = body[2] + 1, body[3] + 1
    tiles = items.tiles(grid)
    # Each tile counts once, so that they hold as many pixels as the grid.
    whole = len({id(tile) for tile in tiles}) == len(tiles) == rows * columns
    width, height = tiles[0].size if tiles else (0, 0)
    if not whole or size != grid.size or columns * width < size[0] or rows * height < size[1]:
        raise NotReadError("a picture whose tiles do not make it up")


def _read_kinds(items: Items, body: bytes) -> None:
    start = 8 if body[:1] != b"\0" else 6
    for kind, first, _ in boxes(body, start):
        if kind != b"infe":
            continue
        version = body[first]
        if version not in (2, 3):
            raise NotReadError(f"a file of items of version {version}")
        format = ">H2x4s" if version == 2 else ">I2x4s"
        number, name = struct.unpack_from(format, body, first + 4)
        items.items[number] = Item(name)
    if len(items.items) > _MOST_ITEMS:
        raise NotReadError(f"a file of {len(items.items)} items; at most {_MOST_ITEMS} are read")


class _Reader:
    """Reads integers of given sizes, one after the other."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.at = 0

    def __call__(self, size: int) -> int:
        self.at += size
        if self.at > len(self._body):
            raise NotReadError("it is truncated: a list of its parts is cut off")
        return int.from_bytes(self._body[self.at - size : self.at], "big")


def _read_places(items: Items, body: bytes, idat: tuple[int, int], length: int) -> None:
    read = _Reader(body)
    version, _, sizes = read(1), read(3), read(2)
    offset_size, length_size, base_size, index_size = (
        sizes >> shift & 15 for shift in (12, 8, 4, 0)
    )
    for _ in range(read(4 if version == 2 else 2)):
        item = items.items.get(read(4 if version == 2 else 2), Item(b""))
        method = read(2) & 15 if version else 0
        read(2)
        base = read(base_size)
        start, end = {0: (0, length), 1: idat}.get(method, (0, 0))
        item.extents = []
        for _ in range(read(2)):
            read(index_size if version else 0)
            first = start + base + read(offset_size)
            size = read(length_size)
            last = first + size if size else end
            if first > last or last > end:
                raise NotReadError("it is truncated: an item lies beyond its end")
            item.extents.append((first, last))
    whole = sum(last - first for item in items.items.values() for first, last in item.extents)
    if whole > max(2 * length, _MOST_SHARED):
        raise NotReadError("a file whose items overlap too often")


def _read_references(items: Items, body: bytes) -> None:
    size = 4 if body[:1] == b"\1" else 2
    for kind, first, last in boxes(body, 4):
        read = _Reader(body[first:last])
        start = read(size)
        items.references.append((kind, start, tuple(read(size) for _ in range(read(2)))))


def _read_properties(items: Items, body: bytes, place: int) -> None:
    parts = children(body, 0, len(body))
    start, end = parts.get(b"ipco", (0, 0))
    properties = [(kind, body[first:last]) for kind, first, last in boxes(body, start, end)]
    for kind, first, last in boxes(body):
        if kind == b"ipma":
            _read_associations(items, properties, body[first:last], place + first)


def _read_associations(
    items: Items, properties: Sequence[tuple[bytes, bytes]], body: bytes, place: int
) -> None:
    read = _Reader(body)
    version, flags = read(1), read(3)
    for _ in range(read(4)):
        item = items.items.get(read(4 if version else 2), Item(b""))
        for _ in range(read(1)):
            first = place + read.at
            index = read(2) & 0x7FFF if flags & 1 else read(1) & 0x7F
            if 0 < index <= len(properties):
                item.properties.append(properties[index - 1])
                item.links.append((first, place + read.at))
