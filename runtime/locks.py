"""Locks that keep a second process from writing the same file or folder.

A lock is held on a file of its own, because what it protects may be replaced. The kernel releases
it when its process ends, however that ends, so that a lock file which a kill left holds nobody up.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drexperts.runtime.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK_INSIDE = ".lock"  # the lock file in a folder that is never replaced as a whole

_log = logging.getLogger(__name__)
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
# A link in a folder that others may write must not make us empty the file that it points to.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextmanager
def locked(target: Path, *, inside: bool = False) -> Iterator[None]:
    """Hold `target` until the block ends; see `lock`."""
    unlock = lock(target, inside=inside)
    try:
        yield
    finally:
        unlock()


def lock(target: Path, *, inside: bool = False) -> Callable[[], None]:
    """Hold a file or folder for writing, and return the function that lets it go.

    Whoever asks for it meanwhile is refused, in this process as well. A forked child does not hold
    it. On a file system without locks a warning is logged and nothing is held.

    inside: for a folder that exists and is not replaced: the lock file is `.lock` in it. Otherwise
        it is hidden beside `target`, which need not exist: `.NAME.lock`.

    Raises UserError if another process holds it, and if the lock file cannot be made.
    """
    if fcntl is None:
        return lambda: None
    real = Path(os.path.realpath(target))
    file = real / LOCK_INSIDE if inside else real.with_name(f".{real.name}.lock")
    try:
        return _acquired(file, target).release
    except OSError as cause:
        raise UserError(
            f"{str(target)!r} cannot be written, because {str(file)!r} cannot be made: "
            f"{cause.strerror or cause}; make its folder writable, or choose another place"
        ) from cause


@dataclass(eq=False)
class _Lock:
    """A lock file, and the descriptor that holds it; None once it is closed."""

    file: Path
    descriptor: int | None

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.descriptor = None
        _held.discard(self)

    def release(self) -> None:
        """Remove the file while it is locked, then unlock it; does nothing the second time."""
        if self.descriptor is not None and _is_still(self.file, self.descriptor):
            self.file.unlink(missing_ok=True)
        self.close()


_held: set[_Lock] = set()


def _acquired(file: Path, target: Path) -> _Lock:
    """The lock. Raises OSError if its file cannot be made, and UserError if it is held."""
    while True:
        descriptor = os.open(file, _FLAGS, 0o666)
        held = _Lock(file, descriptor)
        _held.add(held)
        try:
            _flock(descriptor, file, target)
            # Its last holder may have removed it after we opened it.
            if _is_still(file, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return held
        except BaseException:
            held.close()
            raise
        held.close()


def _flock(descriptor: int, file: Path, target: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        raise UserError(
            f"{str(target)!r} is being written by {_holder(descriptor)}: wait for it, or choose "
            "another place"
        ) from cause
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _log.warning("%s: this file system has no locks; let one process write at a time", file)


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        return f"process {int(os.pread(descriptor, 20, 0))}"
    except (OSError, ValueError):  # it has not written its number yet
        return "another process"


def _drop_inherited() -> None:
    """In a forked child, which may outlive its parent: the lock is the parent's alone."""
    for held in list(_held):
        held.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_inherited)
