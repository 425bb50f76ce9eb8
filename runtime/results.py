"""Which images to score, and a file of results that stays usable if the run is killed."""

import csv
import glob
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, NoReturn, Self

from drexperts.runtime.decoding.formats import heif
from drexperts.runtime.errors import UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.locks import locked
from drexperts.runtime.score import Score
from drexperts.runtime.wording import remedy

# File name suffixes of the formats that `decoding` reads.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp"}
    | {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".avifs"}
    | {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
    | ({".heic", ".heif", ".hif"} if heif.available() else set())
)

_NAMED_SUFFIXES = 5  # of those passed over, in a message
_SYNC_SECONDS = 5.0  # a power cut costs the rows of at most this time; a kill costs none


class FoundImages(NamedTuple):
    """What a search found.

    paths: the images, sorted, each once
    passed_over: how many other files there are of each suffix, in lower case, the most frequent
        suffix first; "" stands for no suffix
    """

    paths: list[Path]
    passed_over: dict[str, int]


def find_images(arguments: Iterable[str]) -> FoundImages:
    """The images that files, folders and glob patterns name, and a count of the other files.

    A file that is named itself is always an image. Folders, with their sub-folders, and patterns
    give files with a suffix in SUFFIXES and count the others; hidden files, hidden folders and
    links to folders inside a folder are skipped.

    Raises UserError for an argument that names nothing, and if there is no image at all.
    """
    named = list(arguments)
    images: dict[str, Path] = {}
    others: dict[str, str] = {}
    for argument in named:
        for path, is_image in _named_by(argument):
            if is_image:
                images.setdefault(os.path.abspath(path), Path(path))
            else:
                others[os.path.abspath(path)] = _suffix(path)
    counts = Counter(others[path] for path in sorted(others.keys() - images.keys()))
    passed_over = dict(counts.most_common())
    if not images:
        there = f" ({count_passed_over(passed_over)})" if passed_over else ""
        raise UserError(
            f"no image in {', '.join(map(repr, named))}{there}: folders and patterns are searched "
            f"for {' '.join(sorted(SUFFIXES))}; name a file itself to score it whatever its suffix"
        )
    return FoundImages(sorted(images.values()), passed_over)


def count_passed_over(passed_over: Mapping[str, int]) -> str:
    """Such as "5 files passed over (.heic 2, .jxl 2, no suffix 1)"; at most five suffixes."""
    total = sum(passed_over.values())
    named = [f"{_shown(suffix)} {count}" for suffix, count in passed_over.items()]
    rest = ["…"] * (len(named) > _NAMED_SUFFIXES)
    files = "1 file" if total == 1 else f"{total} files"
    return f"{files} passed over ({', '.join(named[:_NAMED_SUFFIXES] + rest)})"


def _shown(suffix: str) -> str:
    return (suffix if suffix.isprintable() else ascii(suffix))[:20] or "no suffix"


def _named_by(argument: str) -> Iterator[tuple[str, bool]]:
    """Files, and whether each is an image."""
    if os.path.isdir(argument):
        yield from _files_below(argument)
    elif os.path.exists(argument):
        yield argument, True
    else:
        matches = glob.glob(argument, recursive=True)
        if not matches:
            raise UserError(f"{argument!r} names no file or folder: check the path")
        for match in matches:
            if os.path.isdir(match):
                yield from _files_below(match)
            else:
                yield match, _suffix(match) in SUFFIXES


def _files_below(folder: str) -> Iterator[tuple[str, bool]]:
    for root, folders, files in os.walk(folder, onerror=_cannot_list):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield os.path.join(root, name), _suffix(name) in SUFFIXES


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _cannot_list(cause: OSError) -> NoReturn:
    raise UserError(
        f"cannot list the folder {cause.filename!r}: {cause.strerror}; "
        "make it readable or name other folders"
    ) from cause


class _Done(NamedTuple):
    """What is read of a row to continue a file."""

    source: str
    error: str | None
    fingerprint: str


class _Jsonl:
    """One JSON object per line, from `Score.as_row`. In ASCII, so that any file name survives.

    opening: the bytes that every file begins with
    """

    header = b""
    opening = b'{"source": "'

    def encode(self, score: Score) -> bytes:
        return json.dumps(score.as_row(), allow_nan=False).encode("ascii") + b"\n"

    def as_in(self, start: bytes) -> "_Jsonl":
        """A row lacks what an earlier version did not know."""
        return self

    def is_whole(self, record: bytes) -> bool:
        return record.endswith(b"\n")

    def decode(self, record: bytes) -> _Done:
        row = json.loads(record)
        return _Done(row["source"], row["error"], row["fingerprint"])


class _Csv:
    """A table with a header; `raw` holds the crops' scores separated by spaces.

    later: columns at the end; files of earlier versions lack them
    """

    def __init__(
        self, distortions: Sequence[str], later: Sequence[str] = ("enlarged", "crops_per_side")
    ) -> None:
        self._distortions, self._later = distortions, later
        scale = ("scale_low", "scale_high", "higher_is_better")
        before = ("source", "error", "fingerprint", "value", "std")
        self.header = self.opening = _csv_record([*before, *distortions, *scale, "raw", *later])

    def encode(self, score: Score) -> bytes:
        row = score.as_row()
        weights = [score.distortions.get(name) for name in self._distortions]
        before = [row[name] for name in ("source", "error", "fingerprint", "value", "std")]
        raw = " ".join(map(repr, score.raw))
        later = [row[name] for name in self._later]
        return _csv_record([*before, *weights, *row["scale"].values(), raw, *later])

    def as_in(self, start: bytes) -> "_Csv":
        """The form of a file that begins so: one with fewer columns goes on as it began."""
        for count in range(len(self._later)):
            earlier = _Csv(self._distortions, self._later[:count])
            if start.startswith(earlier.header):
                return earlier
        return self

    def is_whole(self, record: bytes) -> bool:
        # A quoted cell may hold line ends; a quote inside it is doubled, so the count stays even.
        return record.endswith(b"\n") and record.count(b'"') % 2 == 0

    def decode(self, record: bytes) -> _Done:
        text = record.decode("utf-8", "surrogateescape")
        source, error, fingerprint, *_ = next(csv.reader([text], strict=True))
        return _Done(source, error or None, fingerprint)


def _csv_record(cells: Sequence[Any]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerow(cells)
    # File names are bytes: those that are not UTF-8 are written as they are.
    return stream.getvalue().encode("utf-8", "surrogateescape")


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
    done: the source of each row that was already there, and whether it has a score

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
        self._format: _Jsonl | _Csv = _format_of(path, distortions)
        self._fingerprint = fingerprint
        self.done: dict[str, bool] = {}
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

    def append(self, score: Score) -> None:
        """Write one row. Raises UserError for an error of the file system, such as a full disk."""
        try:
            self._write(self._format.encode(score))
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
            os.fsync(self._stream.fileno())

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
            for number, record in enumerate(self._records(stream), 1):
                end += len(record)
                if not self._is_header(number, record):
                    done = self._decoded(number, record)
                    self.done[done.source] = done.error is None
        os.truncate(self._path, end)
        if retry_errors and not all(self.done.values()):
            self._drop_errors()

    def _records(self, stream: IO[bytes]) -> Iterator[bytes]:
        """The complete records of a file, without what follows the last one."""
        record = b""
        for line in stream:
            record += line
            if self._format.is_whole(record):
                yield record
                record = b""

    def _check_opening(self, start: bytes) -> None:
        # Before anything is cut off: a file with other contents must stay unchanged.
        if not self._format.opening.startswith(start):
            raise UserError(f"{str(self._path)!r} holds no scores, or other columns: {_remedy()}")

    def _is_header(self, number: int, record: bytes) -> bool:
        return number == 1 and record == self._format.header

    def _decoded(self, number: int, record: bytes) -> _Done:
        try:
            done = self._format.decode(record)
        except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as cause:
            where = f"row {number} of {str(self._path)!r}"
            raise UserError(f"{where} is not a score: {_remedy()}") from cause
        if done.fingerprint != self._fingerprint:
            raise UserError(
                f"{str(self._path)!r} holds scores with fingerprint {done.fingerprint}, this run "
                f"makes {self._fingerprint}: weights, preprocessing or software differ; {_remedy()}"
            )
        return done

    def _drop_errors(self) -> None:
        with (
            written_whole(self._path) as aside,
            open(self._path, "rb") as old,
            open(aside, "xb") as new,
        ):
            for number, record in enumerate(self._records(old), 1):
                if self._is_header(number, record) or not self._decoded(number, record).error:
                    new.write(record)
        self.done = {source: True for source, scored in self.done.items() if scored}

    def _cannot_write(self, cause: OSError) -> UserError:
        return UserError(
            f"cannot write {str(self._path)!r}: {cause.strerror or cause}; complete rows are kept: "
            "fix this and run the same command again"
        )


def _remedy() -> str:
    start_anew = remedy("pass --overwrite", "pass overwrite=True")
    return f"choose another file, or {start_anew} to start anew"


def _format_of(path: Path, distortions: Sequence[str]) -> _Jsonl | _Csv:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _Jsonl()
    if suffix == ".csv":
        return _Csv(distortions)
    raise UserError(f"results go to a .jsonl or a .csv file, not to {str(path)!r}")
