"""Lists of paths, read while their images are scored."""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import IO

from drexperts.runtime.errors import UserError
from drexperts.runtime.inputs.remote import opened


def paths_in(file: str | os.PathLike[str]) -> Iterator[str]:
    """The paths in a file, one per line, as they are asked for; "-" is standard input.

    A path may hold any bytes but a line feed. Empty lines are skipped. Standard input is read to
    its end as it comes.

    Raises UserError at once for a file that cannot be opened.
    """
    name = os.fspath(file)
    source: AbstractContextManager[IO[bytes]]
    try:
        source = nullcontext(sys.stdin.buffer) if name == "-" else opened(name)
    except OSError as cause:
        raise UserError(
            f"cannot read the list {name!r}: {cause.strerror}; check the path"
        ) from cause

    def lines() -> Iterator[str]:
        with source as stream:
            for line in stream:
                if path := line.removesuffix(b"\n"):
                    yield os.fsdecode(path)

    return lines()
