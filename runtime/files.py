"""Files and folders that take their place whole, or not at all."""

import ctypes
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drexperts.runtime.locks import locked

_PARTIAL, _OLD = ".partial-", ".old-"  # in the names of folders beside the one that is replaced
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <fcntl.h> and <stdio.h>


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


def unfinished(path: Path) -> Path:
    """Where `written_whole` may write a file that one process writes at a time."""
    return path.with_name(f".{path.name}.part")


def replace_file(source: Path, target: Path) -> None:
    """Move a finished file to `target`, after its contents are on the disk. Raises OSError."""
    with open(source, "rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(source, target)


@contextmanager
def folder_written_whole(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which replaces `out` when the block ends.

    At every moment `out` is the old folder or the new one, on file systems that can exchange two
    names (most of Linux's). After an error, what was at `out` is still there. Its parent folder is
    created. `out` must be resolved, so that a link is followed and not replaced.

    Raises UserError while another process writes `out`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _clear_up(out)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}{_PARTIAL}", dir=out.parent))
        try:
            yield aside
            _replace_folder(aside, out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _clear_up(out: Path) -> None:
    """Remove what killed runs left beside `out`; a kill between two renames left its contents."""
    beside = sorted(out.parent.iterdir())
    for old in (path for path in beside if path.name.startswith(f".{out.name}{_OLD}")):
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, out)
    for partial in (path for path in beside if path.name.startswith(f".{out.name}{_PARTIAL}")):
        shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(source: Path, target: Path) -> None:
    """Put `source` at `target`; if both exist, the old contents end at `source` or are removed."""
    os.chmod(source, 0o755)  # mkdtemp made it for its owner alone
    if not target.exists():
        os.replace(source, target)
    elif not _exchanged(source, target):
        _replace_in_two_steps(source, target)


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two names at once; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    return renameat2(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0


def _replace_in_two_steps(source: Path, target: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}{_OLD}", dir=target.parent))
    os.replace(target, old)
    try:
        os.replace(source, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
