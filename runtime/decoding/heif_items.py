"""The items of an AVIF or HEIC file (ISO/IEC 23008-12): pictures, tiles and what they need."""

import struct
from dataclasses import dataclass, field

from drexperts.runtime.decoding.boxes import boxes, children
from drexperts.runtime.decoding.stored import NotReadError

_MOST_ITEMS = 2_000
_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0", b"urn:mpeg:hevc:2015:auxid:1\0")


@dataclass
class Item:
    """A picture, a tile of one, or metadata.

    extents: the pieces of its content: where each starts and ends
    properties: the type and content of each
    """

    kind: bytes
    extents: list[tuple[int, int]] = field(default_factory=list)
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)

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


def read_items(data: bytes) -> Items:
    found = children(data, 0, len(data)).get(b"meta")
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
    _read_properties(items, bodies.get(b"iprp", b""))
    return items


def check_picture(items: Items, coding: str) -> None:
    """Raises NotReadError unless the picture and its alpha are items of this coding, or tiles."""
    picture = items.picture
    alpha, _ = items.alpha()
    if any(part.what(b"clap") for part in (picture, alpha) if part):
        raise NotReadError("a picture that is to be cropped: save it cropped")
    if alpha and alpha.size != picture.size:
        raise NotReadError("a picture whose alpha is of another size than its colours")
    for part in (picture, alpha):
        for tile in items.tiles(part) if part else ():
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
        self._at = 0

    def __call__(self, size: int) -> int:
        self._at += size
        if self._at > len(self._body):
            raise NotReadError("it is truncated: a list of its parts is cut off")
        return int.from_bytes(self._body[self._at - size : self._at], "big")


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
    if whole > 2 * length:
        raise NotReadError("a file whose items overlap")


def _read_references(items: Items, body: bytes) -> None:
    size = 4 if body[:1] == b"\1" else 2
    for kind, first, last in boxes(body, 4):
        read = _Reader(body[first:last])
        start = read(size)
        items.references.append((kind, start, tuple(read(size) for _ in range(read(2)))))


def _read_properties(items: Items, body: bytes) -> None:
    parts = children(body, 0, len(body))
    start, end = parts.get(b"ipco", (0, 0))
    properties = [(kind, body[first:last]) for kind, first, last in boxes(body, start, end)]
    for kind, first, last in boxes(body):
        if kind == b"ipma":
            _read_associations(items, properties, body[first:last])


def _read_associations(items: Items, properties: list[tuple[bytes, bytes]], body: bytes) -> None:
    read = _Reader(body)
    version, flags = read(1), read(3)
    for _ in range(read(4)):
        item = items.items.get(read(4 if version else 2), Item(b""))
        for _ in range(read(1)):
            index = read(2) & 0x7FFF if flags & 1 else read(1) & 0x7F
            if 0 < index <= len(properties):
                item.properties.append(properties[index - 1])
