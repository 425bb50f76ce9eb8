"""Vectors in MATLAB files, whose sizes are checked before SciPy makes arrays of them.

A compressed variable may unpack to a thousand times its size, and an array of cells takes memory
for as many as its header claims. The format is MathWorks' "MAT-File Level 5".
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from drexperts.data.table_files import MAX_BYTES, MAX_CELLS, parsed
from drexperts.runtime.errors import DataError

_COMPRESSED, _MATRIX = 15, 14
_CELL, _CHAR, _NUMBERS = 1, 4, range(6, 16)  # classes of arrays
_HEADER = 128
_DEEPEST = 4  # cells in cells; the published files have one level


def read_matlab(path: Path, variable: str) -> list[Any]:
    """The elements of a vector or cell array in a .mat file. Raises DataError."""
    content = parsed(path, partial(_loaded, variable=variable))
    if variable not in content:
        raise DataError(f"{path} has no variable {variable}: replace it")
    return np.atleast_1d(content[variable]).ravel().tolist()


def _loaded(content: bytes, variable: str) -> dict[str, Any]:
    order = {b"IM": "<", b"MI": ">"}.get(content[_HEADER - 2 : _HEADER])
    if order is None:
        raise ValueError("it is not a MATLAB file of level 5: save it with -v7")
    _check(memoryview(content)[_HEADER:], order, 0)
    return loadmat(io.BytesIO(content), squeeze_me=True, variable_names=[variable])


def _check(data: memoryview, order: str, depth: int) -> None:
    """Raise a ValueError unless all arrays are of numbers, text or cells, and of bounded size."""
    for kind, element in _elements(data, order):
        if kind == _COMPRESSED and depth == 0:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(element, MAX_BYTES)
            if unpacker.unconsumed_tail:
                raise ValueError(f"a variable unpacks to more than {MAX_BYTES >> 20} MiB")
            _check(memoryview(unpacked), order, 1)
        elif kind == _MATRIX:
            _check_array(element, order, depth)


def _check_array(data: memoryview, order: str, depth: int) -> None:
    parts = _elements(data, order)
    flags = next(parts, (0, data[:0]))[1]
    shape = next(parts, (0, data[:0]))[1]
    if not len(data):  # an empty cell
        return
    kind = struct.unpack_from(order + "I", flags)[0] & 0xFF
    sides = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    if min(sides, default=-1) < 0 or math.prod(sides) > MAX_CELLS or len(sides) > 32:
        raise ValueError(f"an array claims more than {MAX_CELLS} elements")
    if depth > _DEEPEST:
        raise ValueError("it has cells within cells within cells")
    if kind == _CELL:
        next(parts)  # its name
        for inner, element in parts:
            if inner == _MATRIX:
                _check_array(element, order, depth + 1)
    elif kind != _CHAR and kind not in _NUMBERS:
        raise ValueError("it holds more than numbers, text and cells")


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The type and the content of each element."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, place)
        start = place + 8
        if kind >> 16:  # up to four bytes, inside the tag
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if size > len(data) - start:
            raise ValueError("an element is longer than the file")
        yield kind, data[start : start + size]
        place = start + size
        place += 0 if kind == _COMPRESSED else -place % 8
