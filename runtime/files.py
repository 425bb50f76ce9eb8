"""Files that are whole or not there."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what is to be at `path`, and takes its place at the end of the `with`.

    After an error, a kill or a power cut what was at `path` is there still; a kill also leaves a
    hidden file `.NAME.part-*` beside it. Several processes may write the same file at once.
    """
    aside = path.with_name(f".{path.name}.part-{secrets.token_hex(4)}")
    try:
        yield aside
        with open(aside, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
