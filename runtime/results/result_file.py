"""A file of results that stays usable if the run is killed."""

import csv
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from drexperts.runtime.errors import UserError
from drexperts.runtime.files import unfinished, written_whole
from drexperts.runtime.locks import locked
from drexperts.runtime.results.done import DoneSources
from drexperts.runtime.results.formats import DoneRow, format_of, start_anew, whole_records
from drexperts.runtime.score import Score

_SYNC_SECONDS = 5.0  # a power cut costs the rows of at most this time; a kill costs none


class ResultFile:
    """Scores in a `.jsonl` or `.csv` file, one row per image, which a later run continues.

    A CSV file of an earlier version goes on with the columns that it has.

    When `append` returns, the operating system has the row. If a run is killed, the next one keeps
    every complete row and cuts off an incomplete last one. A context manager; until its end the
    file is locked, see `locked`.

    fingerprint: of this run's scores; a file with rows of another fingerprint is refused
    distortions: the columns of a CSV file
    overwrite: start anew, whatever the file holds
    retry_errors: drop the rows that hold an error, so that their images are scored again
    done: the sources of the rows that were already there

    Raises UserError for another suffix, a file with other rows or that another process writes, and
    errors of the file system.
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
        self._path = path
        self._format = format_of(path, distortions)
        self._fingerprint = fingerprint
        self.done = DoneSources()
        with ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(path))
                self._open(overwrite, retry_errors)
            except OSError as cause:
                raise self._cannot_write(cause) from cause
            self._unlocking = stack.pop_all()

    def _open(self, overwrite: bool, retry_errors: bool) -> None:
        if self._path.exists() and not overwrite:
            self._resume(retry_errors)
        # Unbuffered: what a full disk refused must not be written again on closing.
        self._stream = self._path.open("wb" if overwrite else "ab", buffering=0)
        self._synced = time.monotonic()
        if self._stream.tell() == 0:
            self._write(self._format.header)

    @property
    def files(self) -> list[Path]:
        """The file with the rows."""
        return [self._path]

    def append(self, score: Score) -> None:
        """Write one row. Raises UserError for an error of the file system, such as a full disk."""
        try:
            self._write(self._format.encode(score.as_row()))
        except OSError as cause:
            raise self._cannot_write(cause) from cause

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._unlocking, self._stream:
            try:
                os.fsync(self._stream.fileno())
            except OSError as cause:
                raise self._cannot_write(cause) from cause

    def _write(self, record: bytes) -> None:
        rest = memoryview(record)
        while rest:
            rest = rest[self._stream.write(rest) :]
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def _resume(self, retry_errors: bool) -> None:
        end = 0
        with open(self._path, "rb") as stream:
            start = stream.read(len(self._format.opening))
            self._format = self._format.as_in(start)
            self._check_opening(start[: len(self._format.opening)])
            stream.seek(0)
            for number, record in enumerate(whole_records(stream, self._format), 1):
                end += len(record)
                if not self._is_header(number, record):
                    done = self._decoded(number, record)
                    self.done.add(done.source, scored=done.error is None)
        os.truncate(self._path, end)
        if retry_errors and self.done.any_failed:
            self._drop_errors()

    def _check_opening(self, start: bytes) -> None:
        # Before anything is cut off: a file with other contents must stay unchanged.
        if not self._format.opening.startswith(start):
            raise UserError(
                f"{str(self._path)!r} holds no scores, or other columns: {start_anew()}"
            )

    def _is_header(self, number: int, record: bytes) -> bool:
        return number == 1 and record == self._format.header

    def _decoded(self, number: int, record: bytes) -> DoneRow:
        try:
            done = self._format.decode(record)
        except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as cause:
            where = f"row {number} of {str(self._path)!r}"
            raise UserError(f"{where} is not a score: {start_anew()}") from cause
        if done.fingerprint != self._fingerprint:
            raise UserError(
                f"{str(self._path)!r} holds scores with fingerprint {done.fingerprint}, this run "
                f"makes {self._fingerprint}: weights, preprocessing or software differ; "
                f"{start_anew()}"
            )
        return done

    def _drop_errors(self) -> None:
        with (
            written_whole(self._path, aside=unfinished(self._path)) as aside,
            open(self._path, "rb") as old,
            open(aside, "wb") as new,
        ):
            for number, record in enumerate(whole_records(old, self._format), 1):
                if self._is_header(number, record) or not self._decoded(number, record).error:
                    new.write(record)
        self.done.forget_failed()

    def _cannot_write(self, cause: OSError) -> UserError:
        return UserError(
            f"cannot write {str(self._path)!r}: {cause.strerror or cause}; complete rows are kept: "
            "fix this and run the same command again"
        )
