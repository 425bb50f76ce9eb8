"""A folder that takes its place whole, or not at all."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ABANDONED = 24 * 3600.0  # seconds; nothing that is written here takes that long


@contextmanager
def folder_aside(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, which takes its place when the block ends without an error.

    What was at `out` goes only then; its parent is made. `out` must be resolved, so that where a
    link leads is what is replaced.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep_abandoned(out)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        yield aside
        _replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sweep_abandoned(out: Path) -> None:
    """Remove what runs that were killed left beside `out`."""
    kinds = [f".{out.name}.partial-"]
    if out.exists():  # else the old one may be all that is left of it
        kinds.append(f".{out.name}.old-")
    for path in out.parent.iterdir():
        left = path.name.startswith(tuple(kinds))
        if left and time.time() - path.stat().st_mtime > ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def _replace(source: Path, target: Path) -> None:
    """Put `source` at `target`, whose old contents go only once the new ones are in place."""
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    os.chmod(source, 0o755)  # made for its owner alone
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(source, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
