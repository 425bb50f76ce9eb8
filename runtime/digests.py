"""A set of names in 16 bytes each, so that a run over millions of images remembers them."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.sources import canonical

_SIZE = 16  # bytes: among 2**32 names two that differ share a digest with probability 2**-65
_RECENT = 2**12  # digests in a Python set, which takes ten times as much for each


def digest_of(name: str) -> bytes:
    """16 bytes, the same for a name on every platform and Python. File names may be any bytes."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=_SIZE).digest()


class SourceSet:
    """The sources of images. One image is one source, however its path is spelled.

    A hundred thousand sources take 1.6 MB, and while they are sorted in twice that.
    """

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._blocks: list[NDArray[np.bytes_]] = []  # each sorted, and larger than the next

    def __len__(self) -> int:
        return len(self._recent) + sum(map(len, self._blocks))

    def __contains__(self, source: str) -> bool:
        return self._holds(identity_of(source))

    def add(self, source: str) -> bool:
        """Add a source; False if it was there."""
        digest = identity_of(source)
        if self._holds(digest):
            return False
        self._recent.add(digest)
        if len(self._recent) == _RECENT:
            self._settle()
        return True

    def _holds(self, digest: bytes) -> bool:
        return digest in self._recent or any(_found(digest, block) for block in self._blocks)

    def _settle(self) -> None:
        """Sort the recent digests into a block, with the blocks that are not larger."""
        block = np.array(list(self._recent), f"S{_SIZE}")
        self._recent.clear()
        while self._blocks and len(self._blocks[-1]) <= len(block):
            block = np.concatenate([self._blocks.pop(), block])
        block.sort()
        self._blocks.append(block)


def identity_of(source: str) -> bytes:
    """The digest of a source, the same for every spelling of its path in one working directory."""
    return digest_of(canonical(source))


def _found(digest: bytes, block: NDArray[np.bytes_]) -> bool:
    place = int(block.searchsorted(digest))
    # numpy drops zeros at the end of a digest.
    return place < len(block) and bytes(block[place]) == digest.rstrip(b"\0")
