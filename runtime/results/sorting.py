"""Lines sorted by a key, in pieces on the disk, so that memory is bounded."""

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TypeAlias

from drexperts.runtime.results.formats import JsonLines

Line: TypeAlias = tuple[bytes, bytes]  # the source of a row of JSON, and the row

_CHUNK = 2**27  # bytes of rows that are sorted in memory


class SortedLines:
    """Lines in the order of their sources. A context manager, which removes its files."""

    def __init__(self, lines: Iterable[Line], folder: Path) -> None:
        self._lines, self._folder = lines, folder
        self._stack = ExitStack()

    def __enter__(self) -> Iterator[Line]:
        try:
            pieces = [self._spilled(piece) for piece in _pieces(self._lines)]
        except BaseException:
            self._stack.close()
            raise
        return heapq.merge(*pieces)

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _spilled(self, piece: list[Line]) -> Iterator[Line]:
        """A sorted piece, from a nameless file."""
        temporary = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        file = self._stack.enter_context(temporary)
        file.writelines(line for _, line in sorted(piece))
        file.seek(0)
        return _lines_of(file)


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
