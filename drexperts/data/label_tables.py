"""Files of labels: CSV, Excel, Parquet and MATLAB tables, and plain lists, as rows of ratings."""

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
from scipy.io import loadmat

from drexperts.runtime.errors import DataError


class Row(NamedTuple):
    """One rating as a label file has it, valid or not.

    where: the file, and the line, row or entry in it
    name: the image's path below the data set's folder, "" if the file names none
    group: see `Sample`; None if the image is a group of its own
    fault: what is wrong with the rating as a whole, "" for nothing
    """

    where: str
    name: str
    label: Any
    group: str | None = None
    fault: str = ""


def number_in(cell: Any) -> float | None:
    """A cell as a number, None if it is not one."""
    if isinstance(cell, bool) or "_" in str(cell):  # Python reads 1_5 as 15
        return None
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return None


def text_in(cell: Any) -> str:
    """A cell's content, "" for an empty cell."""
    text = "" if cell is None else str(cell)
    return text if text.strip() else ""


def _parsed(path: Path, parse: Callable[[Path], Any]) -> Any:
    try:
        return parse(path)
    except Exception as cause:  # which exceptions the parsers raise depends on the damage
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise DataError(f"{path} cannot be read: {reason}; repair or replace it") from cause


def _decoded(path: Path) -> str:
    """A text in UTF-8 or UTF-16; anything else is read as Windows' western encoding."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Where each line is, and its text. Empty lines are left out."""
    for number, line in enumerate(_parsed(path, _decoded).splitlines(), 1):
        if line.strip():
            yield f"{path.name} line {number}", line.strip()


class Table(NamedTuple):
    """A table: its column names, and every other row that is not empty, with its number.

    Rows are counted from the top of the file. A .parquet file has no row of names: its rows are
    counted from 1.
    """

    names: list[str]
    rows: list[tuple[int, Sequence[Any]]]


def _csv(path: Path) -> list[list[str]]:
    """Rows of text, without empty cells at their ends."""
    # Without `strict`, an unclosed quotation mark would swallow the rest of the file.
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    rows = list(reader)
    for row in rows:
        while row and not text_in(row[-1]):
            row.pop()
    return rows


def _xlsx(path: Path, sheet: int | str) -> list[Sequence[Any]]:
    # Without a header, because pandas renames the second of two equal columns.
    cells = pandas.read_excel(
        path, sheet, header=None, dtype=object, keep_default_na=False, engine="openpyxl"
    )
    return list(cells.itertuples(index=False, name=None))


def _parquet(path: Path) -> list[Sequence[Any]]:
    frame = pandas.read_parquet(path)
    cells = frame.astype(object).where(frame.notna(), None)
    return [list(frame.columns), *cells.itertuples(index=False, name=None)]


def read_table(path: Path, sheet: int | str = 0) -> Table:
    """Read a .csv, .xlsx or .parquet file. Raises DataError if it is damaged or empty."""
    kind = path.suffix.lower()
    parsers: dict[str, Callable[[Path], Any]]
    parsers = {".csv": _csv, ".xlsx": partial(_xlsx, sheet=sheet), ".parquet": _parquet}
    rows = enumerate(_parsed(path, parsers[kind]), 0 if kind == ".parquet" else 1)
    filled = [(number, row) for number, row in rows if any(map(text_in, row))]
    if not filled:
        raise DataError(f"{path} is empty: replace it")
    return Table([text_in(name).strip() for name in filled[0][1]], filled[1:])


def ratings_in(
    path: Path, table: Table, folder: str, image: str, label: str, group: str | None = None
) -> Iterator[Row]:
    """The ratings in these columns. Rows that are empty in all of them are left out.

    folder: where the images are, ending in a slash, "" for the data set's own
    """
    columns = [image, label, *([] if group is None else [group])]
    places = [column_place(path, table.names, column) for column in columns]
    for number, row in table.rows:
        cells = [row[place] if place < len(row) else None for place in places]
        if any(map(text_in, cells)):
            yield Row(
                f"{path.name} row {number}",
                below(folder, cells[0]),
                cells[1],
                None if group is None else text_in(cells[2]),
                _surplus(table.names, row),
            )


def column_place(path: Path, names: list[str], column: str) -> int:
    """The index of a column. Raises DataError unless there is exactly one of that name."""
    if names.count(column) != 1:
        commas = ", and separate them by commas" if path.suffix.lower() == ".csv" else ""
        raise DataError(
            f"{path} needs one column {column!r} but has {', '.join(names)}: correct the column "
            f"names{commas}"
        )
    return names.index(column)


def _surplus(names: list[str], row: Sequence[Any]) -> str:
    """The fault of a row that has more cells than there are columns."""
    if len(row) <= len(names):
        return ""
    return (
        f"{len(row)} cells for {len(names)} columns: write a decimal point, not a comma, and put "
        "quotation marks around a name that contains a comma"
    )


def read_matlab(path: Path, variable: str) -> list[Any]:
    """The elements of a vector or cell array in a .mat file."""
    content = _parsed(path, partial(loadmat, squeeze_me=True))
    if variable not in content:
        raise DataError(f"{path} has no variable {variable}: replace it")
    return np.atleast_1d(content[variable]).ravel().tolist()


def check_lengths(lengths: dict[str, int]) -> None:
    """Raise DataError unless all lengths agree: only their order assigns labels to images."""
    if len(set(lengths.values())) > 1:
        told = "; ".join(f"{what} {length}" for what, length in lengths.items())
        raise DataError(f"these differ in length: {told}: unpack the data set again")


def below(folder: str, leaf: Any) -> str:
    """The path of an image below the data set's folder, "" for an empty cell."""
    name = text_in(leaf).removeprefix("./")
    return f"{folder}{name}" if name else ""
