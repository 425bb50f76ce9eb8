"""Where the rows of a run go: a file, or the file of a shard in a folder; here or at a URL."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drexperts.runtime.errors import UserError
from drexperts.runtime.inputs.remote import is_remote, without_file
from drexperts.runtime.inputs.shards import Shard
from drexperts.runtime.results.mirror import RECORD_SUFFIX, mirrored
from drexperts.runtime.results.shard_files import check_folder, file_of
from drexperts.runtime.wording import remedy

_SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Place:
    """A file of rows.

    file: the file, which is a copy where the rows go to a URL
    name: how it is named in messages and summaries
    keep: called after each row
    """

    file: Path
    name: Path | str
    keep: Callable[[], None] = lambda: None


@contextmanager
def place_of(out: str | os.PathLike[str], shard: Shard | None) -> Iterator[Place]:
    """The file of the rows of a run; see `score_files`.

    Raises UserError for a file where shards need a folder, and the reverse.
    """
    text = without_file(os.fspath(out))
    _check(text, shard)
    if not is_remote(text):
        if shard is not None and os.path.isdir(text):
            check_folder(text, os.listdir(text), shard)
        file = Path(text) if shard is None else file_of(Path(text), shard)
        if file.is_symlink():  # a file that takes its place whole would replace the link
            file = Path(os.path.realpath(file))
        yield Place(file, file)
        return
    url, name = (text.rstrip("/"), "") if shard is not None else _split(text)
    with mirrored(url) as mirror:
        if shard is not None:
            check_folder(text, mirror.names(), shard)
            name = file_of(mirror.folder, shard).name
        stem = re.escape(name.removesuffix(".jsonl"))
        mirror.pull(f"{re.escape(name)}(\\.jsonl)?|{stem}{re.escape(RECORD_SUFFIX)}")
        yield Place(mirror.folder / name, f"{url}/{name}", mirror.push_if_due)


def _split(url: str) -> tuple[str, str]:
    folder, _, name = url.rpartition("/")
    return folder, name


def _check(out: str, shard: Shard | None) -> None:
    if shard is None and (os.path.isdir(out) or out.endswith(("/", os.sep))):
        part = remedy("--shard I/N", "shard=")
        raise UserError(f"{out!r} is a folder, for shards: name a file, or pass {part}")
    if shard is not None and out.lower().endswith(_SUFFIXES):
        raise UserError(f"shards are scored into a folder, not into {out!r}: name a folder")
