"""Result files at a URL: written to a local folder, and copied from there again and again.

Object stores cannot append to a file, but they replace one as a whole. So a kill costs the rows
since the last copy, and what is there is always whole.
"""

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drexperts.runtime.errors import UserError
from drexperts.runtime.inputs.remote import file_system

RECORD_SUFFIX = ".done.json"

_SECONDS = 60.0  # between two copies,
_SHARE = 0.05  # or longer, so that copying takes at most this share of the time


class Mirror:
    """A local folder whose files are copied to and from a folder at a URL.

    Records of shards, which say that other files are complete, are removed before these are
    changed, and copied after them.

    folder: the local folder
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self._url = url
        with self._named():
            self._system, self._root = file_system(url)
        self._copied: dict[str, tuple[int, int]] = {}
        self._last, self._took, self._failed = time.monotonic(), 0.0, False

    def names(self) -> list[str]:
        """The names of the files at the URL."""
        with self._named():
            self._system.invalidate_cache()
            if not self._system.isdir(self._root):
                return []
            return sorted(path.rpartition("/")[2] for path in self._system.ls(self._root, False))

    def pull(self, pattern: str) -> None:
        """Copy the files whose whole name matches a regular expression into the local folder."""
        for name in filter(re.compile(pattern).fullmatch, self.names()):
            with self._named():
                self._system.get_file(self._path(name), str(self.folder / name))
            self._copied[name] = _state(self.folder / name)

    def push_if_due(self) -> None:
        """Copy what has changed, unless that was done a short time ago.

        A copy that fails is tried again when the next is due. Raises UserError for two in a row.
        """
        if time.monotonic() - self._last <= max(_SECONDS, self._took / _SHARE):
            return
        try:
            self.push()
        except UserError:
            if self._failed:
                raise
            self._failed, self._last = True, time.monotonic()
        else:
            self._failed = False

    def push(self) -> None:
        """Copy what has changed, and remove what is no longer there. Raises UserError."""
        start = time.monotonic()
        states = {path.name: _state(path) for path in self.folder.iterdir() if path.is_file()}
        states = {name: state for name, state in states.items() if not name.startswith(".")}
        changed = [name for name, state in states.items() if self._copied.get(name) != state]
        gone = [name for name in self._copied if name not in states]
        with self._named():
            self._remove(filter(_is_record, gone))
            for name in sorted(changed, key=_is_record):
                self._system.makedirs(self._root, exist_ok=True)
                self._system.put_file(str(self.folder / name), self._path(name))
            self._remove(name for name in gone if not _is_record(name))
        self._copied = states
        self._last = time.monotonic()
        self._took = self._last - start

    def _remove(self, names: Iterator[str]) -> None:
        for name in names:
            self._system.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the file system as UserError; each has its own."""
        try:
            yield
        except UserError:
            raise
        except Exception as cause:
            reason = " ".join(str(cause).split()) or type(cause).__name__
            raise UserError(
                f"cannot use {self._url!r}: {type(cause).__name__}: {reason}; check the address "
                "and the access to it, and run the same command again"
            ) from cause


@contextmanager
def mirrored(url: str) -> Iterator[Mirror]:
    """A mirror of the folder at a URL in a temporary folder; what is left to copy is copied."""
    with tempfile.TemporaryDirectory(prefix="drexperts-") as folder:
        mirror = Mirror(url, Path(folder))
        try:
            yield mirror
        finally:
            mirror.push()


def _is_record(name: str) -> bool:
    return name.endswith(RECORD_SUFFIX)


def _state(path: Path) -> tuple[int, int]:
    found: Any = path.stat()
    return found.st_size, found.st_mtime_ns
