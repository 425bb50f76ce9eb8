"""A copy of a file in memory that nobody can change, and that a library can open by a path.

By a path ONNX Runtime opens a model in less memory than from bytes, of which it makes two copies.
But a file on a disk may be exchanged after its hash was taken; this copy cannot.
"""

import contextlib
import hashlib
import mmap
import os
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

_MOST = 2**31 - 1  # bytes: of a protobuf message


class SealedCopy(NamedTuple):
    """The bytes, and a path by which this process can open them until they are closed."""

    content: mmap.mmap
    path: str


@contextlib.contextmanager
def sealed_copy(path: str | os.PathLike[str], sha256: str) -> Iterator[SealedCopy | None]:
    """A copy of the file if it has this SHA-256; None for another, and where no copy can be made.

    Only Linux has such memory, and there a container may lack it or the folder /proc.
    """
    with contextlib.ExitStack() as opened:
        try:
            copy = _sealed(path, opened)
        except (OSError, ValueError):  # it is missing or empty, or there is no memory for it
            copy = None
        recorded = copy and hashlib.sha256(copy.content).hexdigest() == sha256
        yield copy if recorded else None


def _sealed(path: str | os.PathLike[str], opened: contextlib.ExitStack) -> SealedCopy | None:
    if sys.platform != "linux" or not os.path.isfile(path) or os.path.getsize(path) > _MOST:
        return None
    import fcntl  # which other systems lack

    number = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    memory = opened.enter_context(os.fdopen(number, "wb"))
    with open(path, "rb") as stream:
        shutil.copyfileobj(stream, memory, 2**20)
    memory.flush()
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
    content = opened.enter_context(mmap.mmap(number, 0, access=mmap.ACCESS_READ))
    named = f"/proc/self/fd/{number}"
    return SealedCopy(content, named) if os.path.exists(named) else None
