"""A bucket in memory, at memory://bucket."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec


@contextmanager
def memory_bucket() -> Iterator[Any]:
    """Yield fsspec's file system in memory, and empty it."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]
