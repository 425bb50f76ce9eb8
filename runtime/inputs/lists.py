"""Lists of paths, read while their images are scored."""

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO

from drexperts.runtime.errors import UserError
from drexperts.runtime.inputs.remote import opened


def paths_in(file: str | os.PathLike[str]) -> Iterator[str]:
    """The paths in a file, one per line, as they are asked for; "-" is standard input.

    Lines end as they do on Unix or Windows; otherwise a path may hold any bytes. Empty lines are
    skipped. Standard input is read to its end as it comes.

    Raises UserError, for a file that cannot be opened at once.
    """
    name = os.fspath(file)
    stack = ExitStack()
    try:
        stream = sys.stdin.buffer if name == "-" else stack.enter_context(opened(name))
    except UserError:
        raise
    except Exception as cause:  # each file system of fsspec has its own
        raise _unreadable(name, cause) from cause
    return _paths(name, stream, stack)


def _paths(name: str, stream: IO[bytes], stack: ExitStack) -> Iterator[str]:
    with stack:
        for number, line in enumerate(_lines(name, stream)):
            path = line.removesuffix(b"\n").removesuffix(b"\r")
            if number == 0:
                path = path.removeprefix(codecs.BOM_UTF8)
            if path:
                yield os.fsdecode(path)


def _lines(name: str, stream: IO[bytes]) -> Iterator[bytes]:
    try:
        yield from stream
    except Exception as cause:  # as above
        raise _unreadable(name, cause) from cause


def _unreadable(name: str, cause: Exception) -> UserError:
    reason = getattr(cause, "strerror", None) or " ".join(str(cause).split())
    return UserError(
        f"cannot read the list {name!r}: {reason or type(cause).__name__}; check the path"
    )
