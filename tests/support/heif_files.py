"""AVIF and HEIC files by hand, from the items of others."""

import struct

from drexperts.runtime.decoding.headers.heif_items import read_items

# A reader that does not know these properties must not show the item.
ESSENTIAL = (b"av1C", b"hvcC", b"irot", b"imir", b"clap")


def box(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full(kind, content, version=0, flags=0):
    return box(kind, struct.pack(">I", version << 24 | flags) + content)


def parts(content):
    """The picture of a file: its kind, its properties and its coded bytes."""
    items = read_items(content)
    picture = items.picture
    return picture.kind, list(picture.properties), items.content(picture)


def size_property(width, height):
    return b"ispe", struct.pack(">III", 0, width, height)


def clap_property(width, height, left, top, whole=(64, 64)):
    """Leaves a box of a picture whose size is `whole`."""
    across, down = 2 * left + width - whole[0], 2 * top + height - whole[1]
    return b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, across, 2, down, 2)


def grid(rows, columns, width, height):
    """An item of tiles."""
    content = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    return b"grid", [size_property(width, height)], content


def container(brand, items, references=(), primary=1, shared=False):
    """items: {number: (kind, properties, content)}; references: (kind, from, to).

    shared: whether equal contents are stored once
    """
    properties: list[tuple[bytes, bytes]] = []
    associations = b""
    for number, (_, own, _) in sorted(items.items()):
        properties += [property for property in own if property not in properties]
        indices = bytes(
            properties.index(property) + 1 | (0x80 if property[0] in ESSENTIAL else 0)
            for property in own
        )
        associations += struct.pack(">HB", number, len(own)) + indices
    names = b"".join(
        full(b"infe", struct.pack(">HH4sx", number, 0, kind), version=2)
        for number, (kind, *_) in sorted(items.items())
    )
    links = b"".join(
        box(kind, struct.pack(f">HH{len(to)}H", start, len(to), *to))
        for kind, start, to in references
    )

    contents = [content for _, (*_, content) in sorted(items.items())]
    data = b"".join(dict.fromkeys(contents) if shared else contents)

    def meta(start):
        places = b""
        at = 0
        for number, (*_, content) in sorted(items.items()):
            at = data.index(content) if shared else at
            places += struct.pack(">HHHII", number, 0, 1, start + at, len(content))
            at += len(content)
        contained = b"".join(box(kind, body) for kind, body in properties)
        return full(
            b"meta",
            full(b"hdlr", struct.pack(">I4s12xx", 0, b"pict"))
            + full(b"pitm", struct.pack(">H", primary))
            + full(b"iloc", struct.pack(">HH", 0x4400, len(items)) + places)
            + full(b"iinf", struct.pack(">H", len(items)) + names)
            + (full(b"iref", links) if links else b"")
            + box(
                b"iprp",
                box(b"ipco", contained)
                + full(b"ipma", struct.pack(">I", len(items)) + associations),
            ),
        )

    start = box(b"ftyp", brand + bytes(4) + b"mif1" + brand + b"miaf")
    return start + meta(len(start) + len(meta(0)) + 8) + box(b"mdat", data)
