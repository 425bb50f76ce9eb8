"""The rows of a result file: JSON lines, or a table with a header."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

from drexperts.runtime.errors import UserError
from drexperts.runtime.wording import remedy

Row: TypeAlias = Mapping[str, Any]  # see `Score.as_row`


_LATER = ("enlarged", "crops_per_side", "frames")  # columns at the end of a CSV file


class DoneRow(NamedTuple):
    """What is read of a row to continue a file, or to merge it.

    is_video: whether it is that of a video, in a file of JSON lines
    """

    source: str
    error: str | None
    fingerprint: str
    is_video: bool = False


class JsonLines:
    """One JSON object per line, from `Score.as_row`. In ASCII, so that any file name survives.

    opening: the bytes that every file begins with
    """

    header = b""
    opening = b'{"source": "'

    def encode(self, row: Row) -> bytes:
        return json.dumps(row, allow_nan=False).encode("ascii") + b"\n"

    def as_in(self, start: bytes) -> "JsonLines":
        """A row lacks what an earlier version did not know."""
        return self

    def is_whole(self, record: bytes) -> bool:
        return record.endswith(b"\n")

    def decode(self, record: bytes) -> DoneRow:
        row = json.loads(record)
        if not isinstance(row["source"], str):
            raise TypeError("a source is a string")
        row["source"].encode("utf-8", "surrogateescape")  # ValueError for what no file is named
        return DoneRow(row["source"], row["error"], row["fingerprint"], "frames" in row)


class CsvTable:
    """A table with a header; `raw` holds the crops' scores separated by spaces.

    later: columns at the end; files of earlier versions lack them
    """

    def __init__(self, distortions: Sequence[str], later: Sequence[str] = _LATER) -> None:
        self._distortions, self._later = distortions, later
        scale = ("scale_low", "scale_high", "higher_is_better")
        before = ("source", "error", "fingerprint", "value", "std")
        self.header = self.opening = _csv_record([*before, *distortions, *scale, "raw", *later])

    def encode(self, row: Row) -> bytes:
        weights = [row["distortions"].get(name) for name in self._distortions]
        before = [row[name] for name in ("source", "error", "fingerprint", "value", "std")]
        raw = " ".join(map(repr, row["raw"]))
        later = [row.get(name) for name in self._later]
        return _csv_record([*before, *weights, *row["scale"].values(), raw, *later])

    def as_in(self, start: bytes) -> "CsvTable":
        """The form of a file that begins so: one with fewer columns goes on as it began."""
        for count in range(len(self._later)):
            earlier = CsvTable(self._distortions, self._later[:count])
            if start.startswith(earlier.header):
                return earlier
        return self

    def is_whole(self, record: bytes) -> bool:
        # A quoted cell may hold line ends; a quote inside it is doubled, so the count stays even.
        return record.endswith(b"\n") and record.count(b'"') % 2 == 0

    def decode(self, record: bytes) -> DoneRow:
        text = record.decode("utf-8", "surrogateescape")
        source, error, fingerprint, *_ = next(csv.reader([text], strict=True))
        return DoneRow(source, error or None, fingerprint)


def _csv_record(cells: Sequence[Any]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerow(cells)
    # File names are bytes: those that are not UTF-8 are written as they are.
    return stream.getvalue().encode("utf-8", "surrogateescape")


def format_of(path: Path, distortions: Sequence[str]) -> JsonLines | CsvTable:
    """The form of the rows in a file of this name. Raises UserError for other suffixes."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return JsonLines()
    if suffix == ".csv":
        return CsvTable(distortions)
    raise UserError(f"results go to a .jsonl, .csv or .parquet file, not to {str(path)!r}")


def whole_records(stream: IO[bytes], form: JsonLines | CsvTable) -> Iterator[bytes]:
    """The complete records of a file, without what follows the last one."""
    record = b""
    for line in stream:
        record += line
        if form.is_whole(record):
            yield record
            record = b""


def start_anew() -> str:
    """What to do about a file that a run cannot continue."""
    anew = remedy("pass --overwrite", "pass overwrite=True")
    return f"choose another file, or {anew} to start anew"
