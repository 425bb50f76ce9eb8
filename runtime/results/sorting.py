"""Lines sorted by a key, in pieces on the disk, so that memory is bounded."""

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TypeAlias

from drexperts.runtime.results.formats import JsonLines

Line: TypeAlias = tuple[bytes, bytes]  # the source of a row of JSON, and the row

_CHUNK = 2**27  # bytes of rows that are sorted in memory
_MOST = 128  # files at once, of which a process may open few


class SortedLines:
    """Lines in the order of their sources. A context manager, which removes its files."""

    def __init__(self, lines: Iterable[Line], folder: Path) -> None:
        self._lines, self._folder = lines, folder
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> Iterator[Line]:
        try:
            for piece in _pieces(self._lines):
                if len(self._files) == _MOST:
                    self._join()
                self._files.append(self._spilled(sorted(piece)))
        except BaseException:
            self._close()
            raise
        return self._merged()

    def __exit__(self, *error: object) -> None:
        self._close()

    def _merged(self) -> Iterator[Line]:
        return heapq.merge(*map(_lines_of, self._files))

    def _join(self) -> None:
        joined = self._spilled(self._merged())
        self._close()
        self._files.append(joined)

    def _close(self) -> None:
        while self._files:
            self._files.pop().close()

    def _spilled(self, lines: Iterable[Line]) -> IO[bytes]:
        """A nameless file of sorted lines."""
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (it outlives this call)
        try:
            file.writelines(line for _, line in lines)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file


def _lines_of(file: IO[bytes]) -> Iterator[Line]:
    for line in file:
        yield JsonLines().decode(line).source.encode("utf-8", "surrogateescape"), line


def _pieces(lines: Iterable[Line]) -> Iterator[list[Line]]:
    piece, size = list[Line](), 0
    for line in lines:
        piece.append(line)
        size += len(line[1])
        if size >= _CHUNK:
            yield piece
            piece, size = [], 0
    yield piece
