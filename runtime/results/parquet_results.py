"""Results in a Parquet file, which is whole or absent.

The end of a Parquet file says where its parts are, so that one which is being written cannot be
read, and one whose writer was killed never can be. Rows therefore go to a file of JSON lines beside
it, as they do without Parquet, and become the Parquet file when the run ends.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from drexperts.runtime.digests import SourceSet
from drexperts.runtime.errors import UserError
from drexperts.runtime.locks import locked
from drexperts.runtime.parquet_library import import_parquet
from drexperts.runtime.results.formats import Row, start_anew
from drexperts.runtime.results.parquet_table import (
    FINGERPRINT,
    from_text,
    schema_of,
    table_written,
)
from drexperts.runtime.results.result_file import ResultFile
from drexperts.runtime.score import Score


class ParquetResults:
    """Scores in a `.parquet` file, one row per image, which a later run continues.

    The arguments, `done` and the errors are those of `ResultFile`. Until the run has ended without
    an error its rows are in NAME.parquet.jsonl. Then they are added to the rows that the Parquet
    file had, and those of images that were scored again replace their errors. Both are whole at
    every moment.
    """

    def __init__(
        self,
        path: Path,
        *,
        fingerprint: str,
        distortions: Sequence[str],
        overwrite: bool = False,
        retry_errors: bool = False,
    ) -> None:
        self._path, self._fingerprint, self._distortions = path, fingerprint, distortions
        self._aside = path.with_name(f"{path.name}.jsonl")
        import_parquet()  # now, and not after hours
        with ExitStack() as stack:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path))
            self._rows = ResultFile(
                self._aside,
                fingerprint=fingerprint,
                distortions=distortions,
                overwrite=overwrite,
                retry_errors=retry_errors,
            )
            stack.enter_context(self._rows)
            if overwrite:
                path.unlink(missing_ok=True)
            self.done = self._rows.done
            for source, failed in self._earlier():
                if not (failed and retry_errors):
                    self.done.add(source, scored=not failed)
            self._closing = stack.pop_all()

    @property
    def files(self) -> list[Path]:
        """The files with the rows. Of two rows of a source, that in the first file counts."""
        return [path for path in (self._aside, self._path) if path.exists()]

    def append(self, score: Score) -> None:
        """Write one row. Raises UserError for an error of the file system, such as a full disk."""
        self._rows.append(score)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._closing:
            if kind is None:
                self._convert()

    def _earlier(self) -> Iterator[tuple[str, bool]]:
        """The sources in the Parquet file, and whether their rows hold an error."""
        for table in self._tables(["source", "error"]):
            for source, error in zip(*(column.to_pylist() for column in table), strict=True):
                yield from_text(source), error is not None

    def _tables(self, columns: list[str] | None = None) -> Iterator[Any]:
        """The Parquet file, a row group at a time. Raises UserError for one of something else."""
        if not self._path.exists():
            return
        with self._opened() as file:
            for group in range(file.num_row_groups):
                yield self._read(file, group, columns)

    def _read(self, file: Any, group: int, columns: list[str] | None) -> Any:
        try:
            return file.read_row_group(group, columns=columns)
        except Exception as cause:  # on hostile bytes nearly anything
            raise UserError(f"{str(self._path)!r} is damaged: {start_anew()}") from cause

    def _opened(self) -> Any:
        try:
            file = import_parquet().ParquetFile(self._path)
        except Exception as cause:  # on hostile bytes nearly anything
            raise UserError(f"{str(self._path)!r} holds no scores: {start_anew()}") from cause
        found = (file.schema_arrow.metadata or {}).get(FINGERPRINT, b"").decode("ascii", "replace")
        if found != self._fingerprint or file.schema_arrow.names != self._names():
            raise UserError(
                f"{str(self._path)!r} holds scores with fingerprint {found or 'none'}, this run "
                f"makes {self._fingerprint}: weights, preprocessing or software differ; "
                f"{start_anew()}"
            )
        return file

    def _names(self) -> list[str]:
        return list(schema_of(self._fingerprint, self._distortions).names)

    def _convert(self) -> None:
        """Put the rows into the Parquet file. Done twice, as after a kill, it changes nothing."""
        again = SourceSet()
        for row in self._new_rows():
            again.add(row["source"])
        if again or not self._path.exists():
            kept = SourceSet()
            with table_written(self._path, self._fingerprint, self._distortions) as writer:
                for table in self._tables():
                    writer.write_table(table.filter(self._mask(table, again, kept)))
                writer.write_rows(row for row in self._new_rows() if row["source"] not in kept)
        self._aside.unlink()

    def _mask(self, table: Any, again: SourceSet, kept: SourceSet) -> list[bool]:
        """Which rows stay: those with scores, and errors of images that were not scored again."""
        mask = []
        for source, error in zip(table["source"], table["error"], strict=True):
            name = from_text(source.as_py())
            mask.append(error.as_py() is None or name not in again)
            if mask[-1]:
                kept.add(name)
        return mask

    def _new_rows(self) -> Iterator[Row]:
        with open(self._aside, encoding="ascii") as stream:
            yield from map(json.loads, stream)
