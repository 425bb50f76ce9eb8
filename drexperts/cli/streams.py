"""Standard output and standard error, whatever the shell connected them to."""

import contextlib
import io
import os
import sys
from typing import TextIO

from drexperts.runtime.errors import OutputError


def open_streams() -> None:
    """Open what the shell closed (`>&-`), and make every file name printable."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # or the next file that is opened gets its descriptor
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # some file names cannot be encoded
            stream.reconfigure(errors="backslashreplace")


def flush_streams() -> None:
    """Write what is left in both streams. Raises OutputError; what cannot be written is dropped."""
    failures = [_flushed(stream) for stream in (sys.stdout, sys.stderr)]
    for cause in filter(None, failures):
        raise OutputError(cause) from cause


def _flushed(stream: TextIO) -> OSError | None:
    try:
        stream.flush()
    except OSError as error:
        # Python would try again at its end, fail, and change the exit status.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return error
    return None


def say(message: str) -> None:
    """Print to standard error, if it can be written."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)
