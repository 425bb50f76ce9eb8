"""Vectors in MATLAB files: numbers, and cell arrays of text, as label files have them.

Read here and not by SciPy, whose reader takes memory for as many cells as a header claims, and dies
of a segmentation fault in some damaged files. The format is MathWorks' "MAT-File Level 5".
"""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drexperts.data.table_files import MAX_BYTES, MAX_CELLS, parsed
from drexperts.runtime.errors import DataError

# Types of elements, and classes of arrays.
_COMPRESSED, _MATRIX = 15, 14
_CELL, _TEXT, _NUMBERS = 1, 4, range(6, 16)
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_DTYPES |= {12: "i8", 13: "u8"}
_ENCODINGS = {1: "latin-1", 2: "latin-1", 16: "utf-8", 4: "utf-16", 17: "utf-16", 18: "utf-32"}
_COMPLEX = 0x0800
_HEADER = 128
_DEEPEST = 4  # cells in cells; the published files have one level


class _Element(NamedTuple):
    kind: int
    data: memoryview


def read_matlab(path: Path, variable: str) -> list[Any]:
    """The elements of a vector or cell array in a .mat file, column by column.

    Raises DataError if the file is damaged, too large or lacks the variable.
    """
    values = parsed(path, partial(_variable, name=variable.encode()))
    if values is None:
        raise DataError(f"{path} has no variable {variable}: replace it")
    return values


def _variable(content: bytes, name: bytes) -> list[Any] | None:
    order = {b"IM": "<", b"MI": ">"}.get(content[_HEADER - 2 : _HEADER])
    if order is None:
        raise ValueError("it is not a MATLAB file of level 5: save it with -v7")
    for element in _elements(memoryview(content)[_HEADER:], order):
        if element.kind == _COMPRESSED:
            element = next(_elements(_unpacked(element.data), order), element)
        if element.kind == _MATRIX and _name(element.data, order) == name:
            return _values(element.data, order, 0)
    return None


def _unpacked(data: memoryview) -> memoryview:
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(data, MAX_BYTES)
    if unpacker.unconsumed_tail:
        raise ValueError(f"a variable unpacks to more than {MAX_BYTES >> 20} MiB")
    return memoryview(unpacked)


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, place)
        start = place + 8
        if kind >> 16:  # up to four bytes, inside the tag
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if size > len(data) - start:
            raise ValueError("an element is longer than the file")
        yield _Element(kind, data[start : start + size])
        place = start + size
        place += 0 if kind == _COMPRESSED else -place % 8


def _name(data: memoryview, order: str) -> bytes:
    """The name of an array, which is its third part."""
    parts = list(zip(range(3), _elements(data, order), strict=False))
    return bytes(parts[2][1].data) if len(parts) == 3 else b""


def _values(data: memoryview, order: str, depth: int) -> list[Any]:
    """The elements of an array. Raises a ValueError unless it has as many as it claims."""
    flags, shape, _, *parts = _elements(data, order)
    flag = struct.unpack_from(order + "I", flags.data)[0]
    sides = struct.unpack(f"{order}{len(shape.data) // 4}i", shape.data)
    count, kind = math.prod(sides), flag & 0xFF
    if min(sides, default=-1) < 0 or count > MAX_CELLS or depth > _DEEPEST:
        raise ValueError(f"an array claims {count} elements, {depth} levels deep")
    if kind == _CELL:
        values = [_cell(part.data, order, depth + 1) for part in parts]
    elif kind == _TEXT:
        values = _rows("".join(_decoded(part, order) for part in parts), sides)
        count = len(values)
    elif kind in _NUMBERS and not flag & _COMPLEX:
        values = [value for part in parts for value in _numbers(part, order)]
    else:
        raise ValueError("an array is not of numbers, text or cells")
    if len(values) != count:
        raise ValueError(f"an array of {count} elements has {len(values)}")
    return values


def _rows(text: str, sides: Sequence[int]) -> list[str]:
    """The rows of an array of characters, which lie column by column."""
    if len(text) != math.prod(sides):
        raise ValueError(f"a text of {math.prod(sides)} characters has {len(text)}")
    return [text[row :: sides[0]] for row in range(sides[0])] if text else []


def _numbers(part: _Element, order: str) -> list[Any]:
    return np.frombuffer(part.data, np.dtype(order + _coded(part, _DTYPES))).tolist()


def _coded(part: _Element, codes: dict[int, str]) -> str:
    if part.kind not in codes:
        raise ValueError(f"its elements are of the unknown type {part.kind}")
    return codes[part.kind]


def _cell(data: memoryview, order: str, depth: int) -> Any:
    """A text or a number; None for an empty cell."""
    values = _values(data, order, depth) if len(data) else []
    if len(values) > 1:
        return values
    return values[0] if values else None


def _decoded(part: _Element, order: str) -> str:
    encoding = _coded(part, _ENCODINGS)
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if order == "<" else "-be"
    return str(part.data, encoding)
