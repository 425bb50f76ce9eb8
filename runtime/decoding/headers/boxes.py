"""Boxes, of which JPEG 2000, AVIF and HEIF files consist (ISO/IEC 14496-12, 15444-1)."""

import struct
from collections.abc import Collection, Iterator

from drexperts.runtime.decoding.stored import NotReadError

_MOST_BOXES = 10_000


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """The type of each box between two places, and where its content starts and ends.

    Raises NotReadError where a box does not fit.
    """
    end = len(data) if end is None else end
    for _ in range(_MOST_BOXES):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        following = start + size if size else end
        if following < content or following > end:
            raise NotReadError("it is truncated or damaged: a part does not fit into the file")
        yield kind, content, following
        start = following
    raise NotReadError(f"it consists of more than {_MOST_BOXES} parts")


def children(
    data: bytes, start: int, end: int, needed: Collection[bytes] = ()
) -> dict[bytes, tuple[int, int]]:
    """Where the content of each box starts and ends; of several of one type, the first counts.

    needed: after the last of these, nothing is looked at: whatever may follow a picture
    """
    found: dict[bytes, tuple[int, int]] = {}
    for kind, first, last in boxes(data, start, end):
        found.setdefault(kind, (first, last))
        if needed and found.keys() >= set(needed):
            break
    return found
