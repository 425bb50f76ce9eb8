"""Ratings as label files have them: from the columns of a table, or from the lines of a list."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drexperts.data.table_files import Table, decoded, parsed, text_in
from drexperts.runtime.errors import DataError
from drexperts.runtime.quoting import shortened


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
    if isinstance(cell, bool):
        return None
    if isinstance(cell, str | bytes) and (len(cell) > 64 or "_" in str(cell)):
        return None  # Python reads 1_5 as 15
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return None


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Where each line is, and its text. Empty lines are left out."""
    for number, line in enumerate(io.StringIO(parsed(path, decoded), newline=None), 1):
        if line.strip():
            yield f"{path.name} line {number}", line.strip()


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
            f"{path} needs one column {column!r} but has {shortened(', '.join(names), 500)}: "
            f"correct the column names{commas}"
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


def check_lengths(lengths: dict[str, int]) -> None:
    """Raise DataError unless all lengths agree: only their order assigns labels to images."""
    if len(set(lengths.values())) > 1:
        told = "; ".join(f"{what} {length}" for what, length in lengths.items())
        raise DataError(f"these differ in length: {told}: unpack the data set again")


def below(folder: str, leaf: Any) -> str:
    """The path of an image below the data set's folder, "" for an empty cell."""
    name = text_in(leaf).removeprefix("./")
    return f"{folder}{name}" if name else ""
