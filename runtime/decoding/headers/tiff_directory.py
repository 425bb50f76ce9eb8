"""The directory of a TIFF's first picture: which tag has which values, read and written."""

import enum
import struct

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.decoding.stored import NotReadError

# The values of each tag, in the order of the file; a rational number is two of them.
Tags = dict[int, NDArray[np.integer]]


class Tag(enum.IntEnum):
    """What is read of a directory."""

    SUBFILE = 254
    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    FILL_ORDER = 266
    STRIP_OFFSETS = 273
    ORIENTATION = 274
    SAMPLES = 277
    ROWS_PER_STRIP = 278
    STRIP_SIZES = 279
    PLANAR = 284
    T4_OPTIONS = 292
    T6_OPTIONS = 293
    PREDICTOR = 317
    COLOUR_MAP = 320
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILE_OFFSETS = 324
    TILE_SIZES = 325
    INKS = 332
    EXTRA_SAMPLES = 338
    SAMPLE_FORMAT = 339
    INDEXED = 346
    JPEG_TABLES = 347
    YCBCR_COEFFICIENTS = 529
    SUBSAMPLING = 530
    REFERENCE_BLACK_WHITE = 532
    DEPTH = 32997
    DNG_VERSION = 50706


_KNOWN = frozenset(Tag)
_MOST_TAGS = 4096
# By a type's number: NumPy's name of what its values consist of, and the bytes of one value.
_TYPES = {
    **{1: ("u1", 1), 3: ("u2", 2), 4: ("u4", 4), 5: ("u4", 8), 7: ("u1", 1), 13: ("u4", 4)},
    **{16: ("u8", 8), 18: ("u8", 8)},  # of BigTIFF
}
_UNDEFINED, _SHORT, _LONG = 7, 3, 4


def first_directory(data: bytes) -> tuple[str, Tags]:
    """The byte order, "<" or ">", and the known tags of the first directory."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    version = int.from_bytes(data[2:4], "little" if order == "<" else "big")
    if not order or version not in (42, 43):
        raise NotReadError("a TIFF without a valid header")
    big = version == 43
    if big and struct.unpack_from(order + "HH", data, 4) != (8, 0):
        raise NotReadError("a BigTIFF without a valid header")
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    return order, _tags(data, order, big, start)


def one(tags: Tags, tag: int, default: int | None = None) -> int:
    """The single value of a tag. Raises NotReadError for several, or none without a default."""
    if tag not in tags and default is not None:
        return default
    if tag not in tags or tags[tag].size != 1:
        raise NotReadError(f"a TIFF without one value of the tag {tag}")
    return int(tags[tag][0])


def with_tags(data: bytes, order: str, tags: Tags) -> bytes:
    """A classic TIFF of the same bytes at the same places, whose only directory has these tags."""
    start = len(data) + len(data) % 2
    place = start + 2 + 12 * len(tags) + 4
    if place > 2**31:
        raise NotReadError("a TIFF of more than 2 GiB")
    entries, values = [], []
    for tag in sorted(tags):
        kind, packed = _packed(order, tag, tags[tag])
        count = len(packed) // _TYPES[kind][1]
        if len(packed) > 4:
            entries.append(struct.pack(order + "HHII", tag, kind, count, place))
            packed += b"\0" * (len(packed) % 2)
            values.append(packed)
            place += len(packed)
        else:
            entries.append(struct.pack(order + "HHI", tag, kind, count) + packed.ljust(4, b"\0"))
    header = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, start)
    count_of_tags = struct.pack(order + "H", len(tags))
    rest = memoryview(data)[len(header) :]
    padding = b"\0" * (len(data) % 2)
    return b"".join([header, rest, padding, count_of_tags, *entries, bytes(4), *values])


def _tags(data: bytes, order: str, big: bool, start: int) -> Tags:
    if start > len(data) - 8:
        raise NotReadError("a TIFF that is truncated: its directory lies beyond its end")
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    if count > _MOST_TAGS:
        raise NotReadError(f"a TIFF of {count} tags; at most {_MOST_TAGS} are read")
    tags: Tags = {}
    first, size = (start + 8, 20) if big else (start + 2, 12)
    if first + size * count > len(data):
        raise NotReadError("a TIFF that is truncated: its directory is cut off")
    for entry in range(first, first + size * count, size):
        (tag,) = struct.unpack_from(order + "H", data, entry)
        if tag in _KNOWN and tag not in tags:
            tags[tag] = _values(data, order, big, entry)
    return tags


def _values(data: bytes, order: str, big: bool, entry: int) -> NDArray[np.integer]:
    tag, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, entry)
    if kind not in _TYPES:
        raise NotReadError(f"a TIFF whose tag {tag} has the unexpected type {kind}")
    name, size = _TYPES[kind]
    place = entry + (12 if big else 8)
    if size * count > (8 if big else 4):
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, place)
    if not count or place + size * count > len(data):
        raise NotReadError(f"a TIFF that is truncated: tag {tag} has no values within the file")
    dtype = np.dtype(order + name)
    return np.frombuffer(data, dtype, count * size // dtype.itemsize, place)


def _packed(order: str, tag: int, values: NDArray[np.integer]) -> tuple[int, bytes]:
    """The number of a type that holds these values, and their bytes."""
    if tag == Tag.JPEG_TABLES:
        return _UNDEFINED, values.astype("u1").tobytes()
    kind = _SHORT if values.max() < 2**16 else _LONG
    return kind, values.astype(order + _TYPES[kind][0]).tobytes()
