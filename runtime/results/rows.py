"""The rows of result files of any form, one after the other."""

import csv
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import NoneType, TracebackType
from typing import IO, Any, NamedTuple, Self

from drexperts.runtime.errors import UserError
from drexperts.runtime.inputs.remote import is_remote, opened
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.parquet_library import import_parquet
from drexperts.runtime.results.formats import JsonLines, format_of, whole_records
from drexperts.runtime.results.parquet_table import from_text

_SUFFIXES = (".jsonl", ".csv", ".parquet")
_SCALE = ("scale_low", "scale_high", "higher_is_better")
# Files of earlier versions lack these.
_CROPS, _FRAMES = "crops_per_side", "frames"
# Of a line of JSON: its start, and where its end begins. Between them are the arrays.
_START = re.compile(rb'\{"source": ("(?:[^"\\]|\\.)*"), "value": ([0-9.e+-]+|null), ')
_END = b', "scale": {'
_BOOLEANS = {"True": True, "False": False}
# Of scores and scales. Engines compute in float32, which ends at 3.4e38, and squares of what is
# smaller than this are finite.
_LARGEST = 1e100


class Contract(NamedTuple):
    """What the rows of one run have in common; see `Score`."""

    fingerprint: str
    scale: ScoreScale
    crops_per_side: int | None


class ResultRow(NamedTuple):
    """A row of a result file.

    value: NaN if there is an error
    frames: of a video; None for an image, see `Score`
    weights: of the distortions that were asked for; empty if there is an error
    """

    source: str
    error: str | None
    value: float
    contract: Contract
    frames: int | None = None
    weights: tuple[float, ...] = ()


def result_rows(
    path: str, wanted: Collection[int] | None = None, names: Sequence[str] = ()
) -> Iterator[tuple[int, ResultRow]]:
    """The rows of a result file with their numbers, from 0.

    wanted: only the rows of these numbers
    names: of the distortions whose weights are read

    Raises UserError for a file that holds something else and for a URL that cannot be read, and
    OSError.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise UserError(f"{path!r} is not a file of scores: name a .jsonl, .csv or .parquet file")
    with _opened(path) as stream:
        if suffix == ".parquet":
            yield from _parquet_rows(path, stream, wanted, names)
        else:
            yield from _text_rows(path, stream, wanted, names)


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """The file. Whatever goes wrong with a URL, also while it is read, is a UserError."""
    try:
        with opened(path) as stream:
            yield stream
    except UserError:
        raise
    except Exception as cause:  # each file system has its own
        if not is_remote(path):
            raise
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise UserError(f"cannot read {path!r}: {reason}; check the address") from cause


def _text_rows(
    path: str, stream: IO[bytes], wanted: Collection[int] | None, names: Sequence[str]
) -> Iterator[tuple[int, ResultRow]]:
    form = format_of(Path(path), ())
    records = whole_records(stream, form)
    with _Reading(path) as reading:
        decode: Callable[[bytes], ResultRow]
        if isinstance(form, JsonLines):
            decode = partial(_whole_json_row, names=names) if names else _json_row
        else:
            decode = _CsvRow(next(records, b""), names)
        for reading.number, record in enumerate(records):
            if wanted is None or reading.number in wanted:
                yield reading.number, decode(record)


def _json_row(record: bytes) -> ResultRow:
    """The row in a line. The arrays in the middle, which are most of it, are not parsed."""
    start = _START.match(record)
    middle, _, end = record.rpartition(_END)  # a text cannot hold it: quotes in it are escaped
    if start is None or not middle:  # not as this version writes it
        return _whole_json_row(record)
    source = json.loads(start[1]) if b"\\" in start[1] else start[1][1:-1].decode()
    value = None if start[2] == b"null" else float(start[2])
    error, contract, frames = _ending(end)
    return _row(source, error, value, contract, frames)


def _whole_json_row(record: bytes, names: Sequence[str] = ()) -> ResultRow:
    row = json.loads(record)
    weights = map(row["distortions"].__getitem__, names)
    return _row(row["source"], row["error"], row["value"], *_common(row), weights)


@lru_cache(maxsize=16)  # most lines end alike
def _ending(end: bytes) -> tuple[str | None, Contract, int | None]:
    row = json.loads(b'{"scale": {' + end)
    return row["error"], *_common(row)


def _common(row: dict[str, Any]) -> tuple[Contract, int | None]:
    contract = _contract(row["fingerprint"], ScoreScale(**row["scale"]), row.get(_CROPS))
    return contract, row.get(_FRAMES)


def _contract(fingerprint: Any, scale: ScoreScale, crops: Any) -> Contract:
    if not isinstance(fingerprint, str) or not isinstance(crops, (int, NoneType)):
        raise TypeError("a fingerprint is a text, and crops are counted")
    if not isinstance(scale.higher_is_better, bool) or not 1 / _LARGEST < scale.span < _LARGEST:
        raise ValueError("a scale has two ends and a direction")
    return Contract(fingerprint, scale, crops)


class _CsvRow:
    """Decodes the records of a CSV table with this header."""

    def __init__(self, header: bytes, distortions: Sequence[str]) -> None:
        names = self._cells(header)
        if names[:4] != ["source", "error", "fingerprint", "value"]:
            raise ValueError("another header")
        self._scale = names.index(_SCALE[0])
        self._weights = list(map(names.index, distortions))
        self._later = [names.index(name) if name in names else None for name in (_CROPS, _FRAMES)]

    def __call__(self, record: bytes) -> ResultRow:
        cells = self._cells(record)
        source, error, fingerprint, value = cells[:4]
        crops, frames = ("" if place is None else cells[place] for place in self._later)
        contract = _csv_contract(fingerprint, *cells[self._scale : self._scale + 3], crops)
        weights = (float(cells[place]) for place in self._weights)
        number = float(value) if value else None
        return _row(source, error or None, number, contract, _whole(frames), weights)

    @staticmethod
    def _cells(record: bytes) -> list[str]:
        text = record.decode("utf-8", "surrogateescape")
        return next(csv.reader([text], strict=True))


@lru_cache(maxsize=16)
def _csv_contract(fingerprint: str, low: str, high: str, higher: str, crops: str) -> Contract:
    scale = ScoreScale(float(low), float(high), higher_is_better=_BOOLEANS[higher])
    return _contract(fingerprint, scale, _whole(crops))


def _whole(cell: str) -> int | None:
    return int(cell) if cell else None


def _parquet_rows(
    path: str, stream: IO[bytes], wanted: Collection[int] | None, names: Sequence[str]
) -> Iterator[tuple[int, ResultRow]]:
    parquet = import_parquet()
    with _Reading(path) as reading:
        file = parquet.ParquetFile(stream)
        columns = ["source", "error", "value", "fingerprint", *_SCALE, _CROPS, _FRAMES, *names]
        for group in range(file.num_row_groups):
            start = reading.number
            reading.number += file.metadata.row_group(group).num_rows
            if wanted is None or any(start <= number < reading.number for number in wanted):
                table = file.read_row_group(group, columns=columns)
                for number, cells in enumerate(_cells_of(table, columns), start):
                    if wanted is None or number in wanted:
                        yield number, _parquet_row(cells)


def _cells_of(table: Any, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    there, none = set(table.column_names), [None] * table.num_rows
    cells = (table[name].to_pylist() if name in there else none for name in columns)
    return zip(*cells, strict=True)


def _parquet_row(cells: tuple[Any, ...]) -> ResultRow:
    source, error, value, fingerprint, *scale, crops, frames = cells[:9]
    contract = _parquet_contract(fingerprint, *scale, crops)
    return _row(from_text(source), error, value, contract, frames, cells[9:])


@lru_cache(maxsize=16)
def _parquet_contract(
    fingerprint: str, low: float, high: float, higher: bool, crops: int | None
) -> Contract:
    return _contract(fingerprint, ScoreScale(low, high, higher_is_better=higher), crops)


def _row(
    source: Any,
    error: Any,
    value: Any,
    contract: Contract,
    frames: Any,
    weights: Iterable[Any] = (),
) -> ResultRow:
    if not isinstance(source, str) or not isinstance(value, (float, int, NoneType)):
        raise TypeError("a source is a text, and a score a number")
    if not isinstance(error, (str, NoneType)):
        raise TypeError("an error is a text")
    source.encode("utf-8", "surrogateescape")  # ValueError for what no file is named
    if error is not None or value is None or not math.isfinite(value):
        return ResultRow(source, error, math.nan, contract, frames)
    if abs(value) > _LARGEST:
        raise ValueError("the score is too large")
    return ResultRow(source, None, float(value), contract, frames, tuple(weights))


class _Reading:
    """Around the reading of a file: whatever damage makes a library raise is a UserError.

    number: the row that is being read
    """

    def __init__(self, path: str) -> None:
        self._path, self.number = path, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # On hostile bytes nearly anything is raised; by PyArrow an OSError that has no number.
        is_of_system = getattr(value, "errno", None) is not None
        if isinstance(value, Exception) and not is_of_system:
            raise UserError(
                f"{self._path!r} holds no scores, or is damaged near row {self.number + 1}: name a "
                ".jsonl, .csv or .parquet file that scores were written to"
            ) from value
