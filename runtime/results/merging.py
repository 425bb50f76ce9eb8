"""One file of results from the files of all shards, sorted by source."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drexperts.runtime.digests import SourceSet
from drexperts.runtime.errors import UserError
from drexperts.runtime.files import unfinished, written_whole
from drexperts.runtime.inputs.remote import is_remote, without_file
from drexperts.runtime.locks import locked
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.results.complete_shards import complete_shards
from drexperts.runtime.results.formats import DoneRow, JsonLines, format_of
from drexperts.runtime.results.mirror import RECORD_SUFFIX, Mirror
from drexperts.runtime.results.parquet_table import table_written
from drexperts.runtime.results.place import Place, place_of
from drexperts.runtime.results.shard_files import NAMES, ShardRecord, file_of
from drexperts.runtime.results.sorting import Line, SortedLines
from drexperts.runtime.wording import remedy

_MERGED = "scores.jsonl"


@dataclass(frozen=True, kw_only=True)
class MergeSummary:
    """What `merge_shards` did.

    shards: how many files were merged
    images, videos: rows of the merged file
    failed: how many of them hold an error
    fingerprint: of all scores
    out: the merged file, or its URL
    """

    shards: int
    images: int
    videos: int
    failed: int
    fingerprint: str
    out: Path | str

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self) | {"out": str(self.out)}


def merge_shards(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> MergeSummary:
    """Merge the files of all shards in a folder into one, whose rows are sorted by source.

    folder: where the shards were scored to, see `score_files`; a path or a URL
    out: a `.jsonl`, `.csv` or `.parquet` file, or the URL of one; None is `scores.jsonl` in the
        folder. It is there whole, or not at all. Rows of a `.jsonl` file are the bytes of the
        shards' rows.
    overwrite: replace `out` if it exists

    Rows are sorted in pieces on the disk beside `out`, so that memory is bounded but for 16 bytes
    per row.

    Raises UserError if a shard is missing, has not ended or is being scored, if shards have scores
    of other fingerprints or saw other inputs, and if an image is in two of them.
    """
    source = os.fspath(folder)
    target = os.path.join(source, _MERGED) if out is None else os.fspath(out)
    with ExitStack() as stack:
        if NAMES.fullmatch(os.path.basename(target)):
            raise UserError(f"{target!r} has the name of a shard's file: choose another")
        place = _local_folder(without_file(source), stack)
        goal = stack.enter_context(place_of(target, None))
        if goal.file.exists() and not overwrite:
            replace = remedy("pass --overwrite", "pass overwrite=True")
            raise UserError(f"{target!r} exists: {replace}, or choose another file")
        return _merged(place, complete_shards(place, source), goal, progress)


def _local_folder(folder: str, stack: ExitStack) -> Path:
    """The folder, or a copy of the files of shards at a URL until the end of the stack."""
    if not is_remote(folder):
        return Path(folder)
    mirror = Mirror(folder, Path(stack.enter_context(tempfile.TemporaryDirectory())))
    mirror.pull(f"{NAMES.pattern}|shard-.*{re.escape(RECORD_SUFFIX)}")
    return mirror.folder


def _merged(
    folder: Path, records: list[ShardRecord], goal: Place, progress: Progress
) -> MergeSummary:
    target = goal.file
    if target.suffix.lower() != ".parquet":
        format_of(target, ())  # an unknown suffix is refused before any work
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = _Rows(folder, records, progress)
    with locked(target), SortedLines(rows, target.parent) as lines:
        _write(lines, target, records[0])
    return MergeSummary(
        shards=len(records),
        images=rows.count - rows.videos,
        videos=rows.videos,
        failed=rows.failed,
        fingerprint=records[0].fingerprint,
        out=goal.name,
    )


class _Rows:
    """The rows of all shards, each with its source, checked while they are read."""

    def __init__(self, folder: Path, records: list[ShardRecord], progress: Progress) -> None:
        self._folder, self._records, self._progress = folder, records, progress
        self._total = sum(record.rows for record in records)
        self.count = self.videos = self.failed = 0

    def __iter__(self) -> Iterator[Line]:
        seen = SourceSet()
        for record in self._records:
            before = self.count
            with open(file_of(self._folder, record.shard), "rb") as stream:
                for line in stream:
                    yield self._checked(line, seen, record)
            if self.count - before != record.rows:
                raise UserError(
                    f"shard {record.shard} wrote {record.rows} rows, and its file has "
                    f"{self.count - before}: score it again, into a new folder"
                )

    def _checked(self, line: bytes, seen: SourceSet, record: ShardRecord) -> Line:
        row = _decoded(line, record)
        if row.fingerprint != record.fingerprint:
            raise UserError(
                f"the file of shard {record.shard} holds scores with fingerprints "
                f"{record.fingerprint} and {row.fingerprint}: score it again, into a new folder"
            )
        if not seen.add(row.source):
            raise UserError(
                f"{row.source!r} is there twice, once in shard {record.shard}: score all shards "
                "with the same spelling of the inputs, into a new folder"
            )
        self.count += 1
        self.videos += row.is_video
        self.failed += row.error is not None
        self._progress("merging", self.count, self._total)
        return row.source.encode("utf-8", "surrogateescape"), line


def _decoded(line: bytes, record: ShardRecord) -> DoneRow:
    """A row of a shard. Raises UserError for one that is damaged."""
    try:
        return JsonLines().decode(line)
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        raise UserError(
            f"the file of shard {record.shard} is damaged: score it again, into a new folder"
        ) from cause


def _write(lines: Iterator[Line], target: Path, record: ShardRecord) -> None:
    if target.suffix.lower() == ".parquet":
        with table_written(target, record.fingerprint, record.distortions) as table:
            table.write_rows(json.loads(line) for _, line in lines)
        return
    form = format_of(target, record.distortions)
    with written_whole(target, aside=unfinished(target)) as aside, open(aside, "wb") as stream:
        stream.write(form.header)
        for _, line in lines:
            stream.write(line if isinstance(form, JsonLines) else form.encode(json.loads(line)))
