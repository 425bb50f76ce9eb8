"""Workbooks in the old binary format of Excel, .xls, written byte by byte."""

import struct
from collections.abc import Sequence
from pathlib import Path

_SECTOR = 512
_END, _FREE, _TABLE = 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD  # of sector chains


def write_xls(path: Path, title: str, rows: Sequence[Sequence[object]]) -> None:
    """One sheet of texts, numbers, truth values, None for empty cells, and errors as bytes."""
    path.write_bytes(_compound(_workbook(title, rows)))


def _record(kind: int, data: bytes) -> bytes:
    return struct.pack("<HH", kind, len(data)) + data


def _begin(kind: int) -> bytes:
    return _record(0x809, struct.pack("<HHHHII", 0x600, kind, 0xDBB, 0x7CC, 0, 6))


def _workbook(title: str, rows: Sequence[Sequence[object]]) -> bytes:
    """The records (BIFF8) of a workbook: its list of sheets, then its sheet."""

    def sheets(offset: int) -> bytes:
        name = struct.pack("<IHBB", offset, 0, len(title), 0) + title.encode("ascii")
        return _begin(5) + _record(0x42, struct.pack("<H", 1200)) + _record(0x85, name) + _EOF

    cells = [_cell(r, c, value) for r, row in enumerate(rows) for c, value in enumerate(row)]
    return sheets(len(sheets(0))) + _begin(16) + b"".join(cells) + _EOF


_EOF = _record(0x0A, b"")


def _cell(row: int, column: int, value: object) -> bytes:
    place = struct.pack("<HHH", row, column, 0)
    if value is None:
        return b""
    if isinstance(value, bool | bytes):
        code, error = (value[0], 1) if isinstance(value, bytes) else (int(value), 0)
        return _record(0x205, place + struct.pack("<BB", code, error))
    if isinstance(value, str):
        return _record(0x204, place + struct.pack("<HB", len(value), 0) + value.encode("latin-1"))
    assert isinstance(value, int | float)
    return _record(0x203, place + struct.pack("<d", value))


def _compound(stream: bytes) -> bytes:
    """An OLE2 file with one stream: a header, the table of sectors, the directory, the stream."""
    stream = stream.ljust(max(4096, -(-len(stream) // _SECTOR) * _SECTOR), b"\0")
    count = len(stream) // _SECTOR
    chains = [_TABLE, _END, *range(3, 2 + count), _END]
    assert len(chains) <= _SECTOR // 4
    header = bytes.fromhex("D0CF11E0A1B11AE1") + bytes(16)
    header += struct.pack("<HHHHH6x", 0x3E, 3, 0xFFFE, 9, 6)
    header += struct.pack("<IIIIIIIIII", 0, 1, 1, 0, 4096, _END, 0, _END, 0, 0)
    chains += [_FREE] * (_SECTOR // 4 - len(chains))
    table = struct.pack(f"<{len(chains)}I", *chains)
    entries = _entry("Root Entry", 5, 1, _END, 0) + _entry("Workbook", 2, _FREE, 2, len(stream))
    directory = entries.ljust(_SECTOR, b"\0")
    return header.ljust(_SECTOR, b"\xff") + table + directory + stream


def _entry(name: str, kind: int, child: int, start: int, size: int) -> bytes:
    text = name.encode("utf-16-le")
    entry = text.ljust(64, b"\0") + struct.pack("<HBB", len(text) + 2, kind, 1)
    entry += struct.pack("<III", _FREE, _FREE, child) + bytes(36)
    return entry + struct.pack("<IQ", start, size)
