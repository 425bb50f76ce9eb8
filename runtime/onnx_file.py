"""Whether an ONNX file is complete in itself, read from its bytes without the package `onnx`.

A tensor can name another file, or an address in memory, where its values are. Neither is covered by
the file's SHA-256, so such a graph is refused before a library gets to see it.

The file is a protobuf message: fields, each a number and a value, some of which are messages again.
https://protobuf.dev/programming-guides/encoding/ describes them, onnx.proto names their numbers.
"""

import mmap
from collections.abc import Iterator
from typing import NamedTuple

from drexperts.runtime.errors import BundleError
from drexperts.runtime.wording import EXPORT_AGAIN

Content = bytes | mmap.mmap

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # the wire types of protobuf that ONNX uses
_DEEPEST = 100  # messages inside each other; protobuf itself reads no more
_MOST_FIELDS = 2_000_000  # the full-size model has 10,513
_LARGEST_TAG = 2**32 - 1

# The messages that can hold a tensor: which of their fields do, by number, and the message there.
_HOLDS = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        **{5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph"},
        **{22: "SparseTensor", 23: "SparseTensor"},
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of a tensor


class _Field(NamedTuple):
    """A field of a message: its value, or where its bytes begin and end."""

    number: int
    value: int
    start: int
    end: int


def check_self_contained(content: Content, name: str, again: str = EXPORT_AGAIN) -> None:
    """Raise BundleError for an ONNX file that is damaged, or whose tensors are in other places.

    name: of the file, for the message
    again: how the file is made again, for the message
    """
    # Protobuf merges messages of one field, so any occurrence counts, whatever follows it.
    waiting, read = [("Model", 0, len(content), 0)], 0
    try:
        while waiting:
            kind, start, end, depth = waiting.pop()
            if depth > _DEEPEST:
                raise ValueError("its messages are nested too deeply")
            for field in _fields(content, start, end):
                if (read := read + 1) > _MOST_FIELDS:
                    raise ValueError(f"it has more than {_MOST_FIELDS} fields")
                if kind == "Tensor" and _is_elsewhere(field):
                    raise BundleError(
                        f"{name} keeps weights outside itself, where no hash covers them: write "
                        "them into the file with `onnx.save(onnx.load(FILE), FILE)`, or "
                        f"{again}, which does"
                    )
                inner = _HOLDS[kind].get(field.number)
                if inner is not None and field.end:
                    waiting.append((inner, field.start, field.end, depth + 1))
    except (ValueError, IndexError) as cause:
        raise BundleError(f"{name} is not an ONNX file: {cause}; {again}") from cause


def _is_elsewhere(field: _Field) -> bool:
    return field.number == _EXTERNAL_DATA or (
        field.number == _DATA_LOCATION and field.value != 0  # 1 is EXTERNAL, others are unknown
    )


def _fields(content: Content, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message in content[start:end]. Raises ValueError or IndexError."""
    while start < end:
        tag, start = _varint(content, start, end)
        number, wire = tag >> 3, tag & 7
        if not 8 <= tag <= _LARGEST_TAG:
            raise ValueError("a field has no valid number")
        value = stop = 0
        if wire == _VARINT:
            value, start = _varint(content, start, end)
        elif wire == _BYTES:
            size, start = _varint(content, start, end)
            stop = start + size
        elif wire in (_FIXED64, _FIXED32):
            stop = start + (8 if wire == _FIXED64 else 4)
        else:
            raise ValueError(f"a field has the wire type {wire}")
        if stop > end:
            raise ValueError("a field goes beyond the end")
        yield _Field(number, value, start, stop if wire == _BYTES else 0)
        start = max(start, stop)


def _varint(content: Content, start: int, end: int) -> tuple[int, int]:
    """The number of seven bits per byte at `start`, and where it ends."""
    value = 0
    for place in range(start, min(start + 10, end)):
        byte = content[place]
        value |= (byte & 0x7F) << (7 * (place - start))
        if byte < 0x80:
            return value, place + 1
    raise ValueError("a number goes beyond the end")
