"""How many pixels, bytes and seconds decoding may take: one budget for a process's decoders."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from drexperts.runtime.decoding.stored import NotReadError
from drexperts.runtime.errors import ConfigError
from drexperts.runtime.forks import renew_in_children
from drexperts.runtime.wording import remedy


@dataclass(frozen=True, kw_only=True)
class DecodingLimits:
    """What decoding may take.

    max_pixels: pixels of one image
    memory: bytes that all decoders of the process hold at once, a fifth of them for files and the
        rest for pixels; an image that needs more by itself is refused, and one that does not fit
        beside the others waits for them
    seconds: of processor time for one image, where it is decoded in a process of its own; one that
        hangs is ended after ten times as long

    Raises ConfigError for what is not a whole number of at least 1.
    """

    max_pixels: int = 100_000_000
    memory: int = 2**30
    seconds: int = 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")

    @property
    def for_files(self) -> int:
        """The share of `memory` for the bytes of files."""
        return self.memory // 5

    @property
    def for_pixels(self) -> int:
        """The share of `memory` for pixels."""
        return self.memory - self.for_files


DEFAULT_LIMITS = DecodingLimits()


class Pool:
    """Bytes that threads hold at once. Whoever came first is served first.

    what: what the bytes are for, in messages
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.after_fork()
        renew_in_children(self)

    def after_fork(self) -> None:
        """The threads that held bytes are not in the child."""
        self._held = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    def check(self, size: int, most: int) -> None:
        """Raise NotReadError for a `size` that could never be held."""
        if size > most:
            raise NotReadError(
                f"{self._what} takes up to {-(-size // 2**20)} MiB of memory, and {most // 2**20} "
                "MiB are allowed: reduce the image, or raise "
                f"{remedy('--decode-memory of `drx score`', 'DecodingLimits.memory')}"
            )

    @contextmanager
    def reserved(self, size: int, most: int) -> Iterator[None]:
        """Hold `size` of `most` bytes, waiting until they are free.

        Raises NotReadError if they never could be.
        """
        self.check(size, most)
        self._hold(size, most)
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()

    def _hold(self, size: int, most: int) -> None:
        me = object()
        with self._changed:
            self._waiting.append(me)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is me and self._held + size <= most)
                self._held += size
            finally:  # an interrupt, too, must not leave the next one waiting
                self._waiting.remove(me)
                self._changed.notify_all()


# Two pools, always taken in this order: with one, two threads that each hold a file could wait for
# each other's bytes for ever.
FILES = Pool("reading it")
PIXELS = Pool("decoding it")
