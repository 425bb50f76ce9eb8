"""Tables of .csv, .xlsx, .xls and .parquet files as rows of cells, with bounded time and memory.

A file may be small and unpack to gigabytes, so sizes are checked before a library reads them, and
cells are counted as they are read. The readers raise any exception; `read_table` names the file.
"""

import codecs
import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import openpyxl
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import xlrd

from drexperts.runtime.errors import DataError
from drexperts.runtime.quoting import shortened

MAX_BYTES = 32 * 2**20  # of a file; the largest published one has 2.4 MB
MAX_CELLS = 5_000_000
_MAX_ROWS = 2**20  # as many as a sheet of Excel's can have
_MAX_TEXT = 65535  # characters of a cell in a workbook or a .parquet file
_MAX_UNPACKED = 8 * 2**20  # bytes of a workbook's parts; the largest published one has 1.4 MB
_MAX_PART = 2**18  # bytes of a part that is no sheet: styles and such become objects

Cells = Sequence[Any]


class Table(NamedTuple):
    """A table: its column names, and every other row that is not empty, with its number.

    Rows are counted from the top of the file. A .parquet file has no row of names: its rows are
    counted from 1. A row may be shorter than the names.
    """

    names: list[str]
    rows: list[tuple[int, Cells]]


def parsed(path: Path, parse: Callable[[bytes], Any]) -> Any:
    """What `parse` makes of a file. Raises DataError, which names the file, for all it raises."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        return parse(content)
    except Exception as cause:  # which exceptions the parsers raise depends on the damage
        reason = shortened(" ".join(str(cause)[:1000].split()), 300) or type(cause).__name__
        raise DataError(f"{path} cannot be read: {reason}; repair or replace it") from cause


def text_in(cell: Any) -> str:
    """A cell's content, "" for an empty cell."""
    text = "" if cell is None else str(cell)
    return text if text.strip() else ""


def decoded(content: bytes) -> str:
    """A text in UTF-8 or UTF-16; anything else is read as Windows' western encoding."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def read_table(path: Path, sheet: int | str = 0) -> Table:
    """Read a table by its suffix. Raises DataError if it is damaged, too large or empty."""
    kind = path.suffix.lower()
    readers: dict[str, Callable[[bytes], Iterable[Cells]]]
    readers = {".csv": _csv, ".parquet": _parquet}
    readers |= {".xlsx": partial(_xlsx, sheet=sheet), ".xls": partial(_xls, sheet=sheet)}
    first = 0 if kind == ".parquet" else 1
    filled = parsed(path, lambda content: _filled(readers[kind](content), first))
    if not filled:
        raise DataError(f"{path} is empty: replace it")
    names = [text_in(name).strip() for name in filled[0][1]]
    if kind != ".csv":  # there, a cell beyond the names is a comma too many
        names += [""] * (max(len(row) for _, row in filled) - len(names))
    return Table(names, filled[1:])


def _filled(rows: Iterable[Cells], first: int) -> list[tuple[int, Cells]]:
    """The rows that are not empty, with their numbers and without empty cells at their ends."""
    kept, cells = [], 0
    for number, row in enumerate(rows, first):
        cells += len(row)
        if cells > MAX_CELLS or number > _MAX_ROWS:
            raise ValueError(f"it has more than {MAX_CELLS} cells or {_MAX_ROWS} rows")
        length = len(row)
        while length and not text_in(row[length - 1]):
            length -= 1
        if length:
            kept.append((number, row[:length]))
    return kept


def _csv(content: bytes) -> Iterator[Cells]:
    # Without `strict`, an unclosed quotation mark would swallow the rest of the file.
    return csv.reader(io.StringIO(decoded(content), newline=""), strict=True)


def _xlsx(content: bytes, sheet: int | str) -> Iterator[Cells]:
    _check_parts(content)
    book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    page = book.worksheets[sheet] if isinstance(sheet, int) else book[sheet]
    page.reset_dimensions()  # which the file only claims
    for row in page.iter_rows(values_only=True):
        yield list(map(_limited, row))


def _check_parts(content: bytes) -> None:
    """Raise a ValueError for a workbook that unpacks, or whose XML expands, to much more."""
    with zipfile.ZipFile(io.BytesIO(content)) as book:
        parts = book.infolist()
        if sum(part.file_size for part in parts) > _MAX_UNPACKED:
            raise ValueError(f"it unpacks to more than {_MAX_UNPACKED >> 20} MiB")
        for part in parts:
            text = book.read(part).replace(b"\0", b"")  # UTF-16 is found as well
            if b"<!DOCTYPE" in text:
                raise ValueError(f"{part.filename} declares XML entities")
            sheet = part.filename.startswith(("xl/worksheets/sheet", "xl/sharedStrings", "xl/calc"))
            if len(text) > _MAX_PART and not sheet:
                raise ValueError(f"{part.filename} is larger than {_MAX_PART >> 10} KiB")


def _xls(content: bytes, sheet: int | str) -> Iterator[Cells]:
    options: dict[str, Any] = {"on_demand": True, "ragged_rows": True, "logfile": io.StringIO()}
    book = xlrd.open_workbook(file_contents=content, **options)
    page = book.sheet_by_index(sheet) if isinstance(sheet, int) else book.sheet_by_name(sheet)
    for number in range(page.nrows):
        yield [_xls_cell(cell.ctype, cell.value) for cell in page.row(number)]


def _xls_cell(kind: int, value: Any) -> Any:
    """Errors and truth values are numbers in an .xls file, but no ratings."""
    if kind == xlrd.XL_CELL_ERROR:
        return xlrd.error_text_from_code.get(value, "#ERROR")
    if kind in (xlrd.XL_CELL_EMPTY, xlrd.XL_CELL_BLANK):
        return None
    return bool(value) if kind == xlrd.XL_CELL_BOOLEAN else _limited(value)


def _limited(cell: Any) -> Any:
    if isinstance(cell, str) and len(cell) > _MAX_TEXT:
        raise ValueError(f"a cell has {len(cell)} characters")
    return cell


def _parquet(content: bytes) -> Iterator[Cells]:
    """Column names, and rows of text, numbers and truth values; other columns are left out."""
    schema = pyarrow.parquet.read_schema(io.BytesIO(content))
    texts = [field.name for field in schema if _is_text(field.type)]
    file = pyarrow.parquet.ParquetFile(io.BytesIO(content), read_dictionary=texts)
    names = [field.name for field in schema if _is_text(field.type) or _is_number(field.type)]
    if file.metadata.num_rows * len(names) > MAX_CELLS:
        raise ValueError(f"it has more than {MAX_CELLS} cells")
    yield names
    for batch in file.iter_batches(batch_size=4096, columns=names):
        yield from zip(*map(_values, batch.columns), strict=True)


def _is_text(kind: pyarrow.DataType) -> bool:
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _is_number(kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    kinds = (types.is_integer, types.is_floating, types.is_boolean, types.is_null, types.is_decimal)
    return any(is_kind(kind) for is_kind in kinds)


def _values(array: pyarrow.Array) -> list[Any]:
    """A column as Python's values. Equal texts are one object, because long ones may repeat."""
    if not isinstance(array, pyarrow.DictionaryArray):
        return array.to_pylist()
    longest = pyarrow.compute.max(pyarrow.compute.binary_length(array.dictionary)).as_py() or 0
    if longest > _MAX_TEXT:
        raise ValueError(f"a cell has {longest} characters")
    texts = array.dictionary.to_pylist()
    return [None if index is None else texts[index] for index in array.indices.to_pylist()]
