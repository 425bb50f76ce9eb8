"""How many pixels and bytes decoding may take: one budget for all decoders of the process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from drexperts.runtime.decoding.stored import NotReadError


@dataclass(frozen=True, kw_only=True)
class DecodingLimits:
    """What decoding may take.

    max_pixels: pixels of one image
    memory: bytes that all decoders of the process hold at once, a quarter of them for files and the
        rest for pixels; an image that needs more by itself is refused, and one that does not fit
        beside the others waits for them
    """

    max_pixels: int = 100_000_000
    memory: int = 2**30

    @property
    def for_files(self) -> int:
        """The share of `memory` for the bytes of files."""
        return self.memory // 4

    @property
    def for_pixels(self) -> int:
        """The share of `memory` for pixels."""
        return self.memory - self.for_files


DEFAULT_LIMITS = DecodingLimits()


class Pool:
    """Bytes that threads hold at once. Fair enough: whoever fits goes on.

    what: what the bytes are for, in messages
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, size: int, most: int) -> Iterator[None]:
        """Hold `size` of `most` bytes, waiting until they are free.

        Raises NotReadError if they never could be.
        """
        if size > most:
            raise NotReadError(
                f"{self._what} takes up to {size / 2**20:.0f} MiB of memory, and "
                f"{most / 2**20:.0f} MiB are allowed: raise the limit or reduce the image"
            )
        with self._changed:
            self._changed.wait_for(lambda: self._held + size <= most)
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()


# Two pools, always taken in this order: with one, two threads that each hold a file could wait for
# each other's bytes for ever.
FILES = Pool("reading it")
PIXELS = Pool("decoding it")
