"""Rows of results as a Parquet table: the columns of a CSV file, with their types."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from drexperts.runtime.files import unfinished, written_whole
from drexperts.runtime.parquet_library import import_parquet
from drexperts.runtime.results.formats import Row

FINGERPRINT = b"drexperts.fingerprint"  # in the table's metadata
ROWS_PER_GROUP = 10_000  # about 1 MB


class TableWriter:
    """Appends rows to a Parquet table, in groups that are flushed as they fill."""

    def __init__(self, writer: Any, schema: Any) -> None:
        self._writer, self._schema = writer, schema

    def write_rows(self, rows: Iterable[Row]) -> None:
        """Append rows, see `Score.as_row`."""
        iterator = iter(rows)
        while group := list(islice(iterator, ROWS_PER_GROUP)):
            self._writer.write_table(_table_of(group, self._schema))

    def write_table(self, table: Any) -> None:
        """Append a table of the same columns."""
        self._writer.write_table(table.cast(self._schema))


@contextmanager
def table_written(
    path: Path, fingerprint: str, distortions: Sequence[str]
) -> Iterator[TableWriter]:
    """Yield what writes a Parquet file, which takes its place whole when the block ends.

    One process may write it at a time.
    """
    schema = schema_of(fingerprint, distortions)
    writer = import_parquet().ParquetWriter
    aside = unfinished(path)
    with written_whole(path, aside=aside), writer(aside, schema, compression="zstd") as opened:
        yield TableWriter(opened, schema)


def table_of(rows: Iterable[Row], fingerprint: str, distortions: Sequence[str]) -> Any:
    """Rows, see `Score.as_row`, as a table of Arrow with the columns of a Parquet file."""
    return _table_of(rows, schema_of(fingerprint, distortions))


def _table_of(rows: Iterable[Row], schema: Any) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist([_cells(row) for row in rows], schema)


def schema_of(fingerprint: str, distortions: Sequence[str]) -> Any:
    """The columns, and the fingerprint in their metadata."""
    import pyarrow

    number, text = pyarrow.float64(), pyarrow.string()
    columns = {"source": text, "error": text, "fingerprint": text, "value": number, "std": number}
    columns |= dict.fromkeys(distortions, number)
    columns |= {"scale_low": number, "scale_high": number, "higher_is_better": pyarrow.bool_()}
    columns |= {"raw": pyarrow.list_(number), "enlarged": number, "crops_per_side": pyarrow.int32()}
    columns |= {"frames": pyarrow.int64()}
    return pyarrow.schema(columns, {FINGERPRINT: fingerprint.encode()})


def _cells(row: Row) -> dict[str, Any]:
    scale = row["scale"]
    return {
        **{name: value for name, value in row.items() if name not in ("scale", "distortions")},
        **row["distortions"],
        "source": as_text(row["source"]),
        "error": None if row["error"] is None else as_text(row["error"]),
        "scale_low": scale["low"],
        "scale_high": scale["high"],
        "higher_is_better": scale["higher_is_better"],
    }


def as_text(source: str) -> str:
    r"""A file name in UTF-8, which Parquet asks for: a byte that is not becomes `\udcff` or so.

    A backslash with which a name spells such a thing itself becomes `\x5c`.
    """
    spelled = re.sub(r"\\(?=udc[89a-f][0-9a-f]|x5c)", r"\\x5c", source)
    return spelled.encode("utf-8", "backslashreplace").decode()


def from_text(text: str) -> str:
    """The file name that `as_text` wrote."""
    return re.sub(r"\\(?:udc([89a-f][0-9a-f])|x5c)", _spelled, text)


def _spelled(match: re.Match[str]) -> str:
    return chr(0xDC00 + int(match[1], 16)) if match[1] else "\\"
