"""Files and folders that take their place whole, or not at all."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ABANDONED_AFTER = 24 * 3600.0  # seconds; nothing that is written here takes that long


@contextmanager
def written_whole(path: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """Yield where to write; the file written there replaces `path` when the block ends.

    After an error, a kill or a power cut, what was at `path` is still there; a kill also leaves the
    unfinished file beside it. Several processes may write the same file at once.

    aside: the unfinished file; by default a hidden `.NAME.part-*` with a new name each time. A
        fixed name is for one writer, who overwrites what a kill left.
    """
    aside = aside or path.with_name(f".{path.name}.part-{secrets.token_hex(4)}")
    try:
        yield aside
        replace_file(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def replace_file(source: Path, target: Path) -> None:
    """Move a finished file to `target`, after its contents are on the disk. Raises OSError."""
    with open(source, "rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(source, target)


@contextmanager
def folder_written_whole(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which replaces `out` when the block ends.

    After an error, what was at `out` is still there. Its parent folder is created. `out` must be
    resolved, so that a link is followed and not replaced.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        yield aside
        _replace_folder(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_abandoned(out: Path) -> None:
    """Remove what killed runs left beside `out`."""
    kinds = [f".{out.name}.partial-"]
    if out.exists():  # otherwise the old contents may be all that is left of it
        kinds.append(f".{out.name}.old-")
    for path in out.parent.iterdir():
        left = path.name.startswith(tuple(kinds))
        if left and time.time() - path.stat().st_mtime > ABANDONED_AFTER:
            shutil.rmtree(path, ignore_errors=True)


def _replace_folder(source: Path, target: Path) -> None:
    """Put `source` at `target`; the old contents are removed once the new ones are in place."""
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    os.chmod(source, 0o755)  # mkdtemp made it for its owner alone
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(source, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
