"""What a forked child must not share with its parent: threads, locks, pipes and engines."""

import ctypes
import os
import threading
import weakref
from typing import Protocol


class Forkable(Protocol):
    """An object that holds what a fork breaks."""

    def after_fork(self) -> None:
        """Called in the child, where no other thread runs, before any other code does."""
        ...


_LIVE: "weakref.WeakSet[Forkable]" = weakref.WeakSet()


def renew_in_children(thing: Forkable) -> None:
    """Call `thing.after_fork()` in each child that this process forks while `thing` lives."""
    _LIVE.add(thing)


class ForkSafeLock:
    """A lock that is free in a forked child, even if a thread of the parent held it."""

    def __init__(self) -> None:
        self.after_fork()
        renew_in_children(self)

    def after_fork(self) -> None:
        """The thread that held it is not in the child."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def never_free(thing: object) -> None:
    """Leak an object on purpose, because its destructor waits for threads that a fork lost.

    A reference from a module would not do: the interpreter clears modules when it ends.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _renew_all() -> None:
    for thing in list(_LIVE):
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_renew_all)
