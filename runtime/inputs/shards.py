"""Which part of the inputs a run scores, where several runs share them."""

import posixpath
from dataclasses import dataclass

from drexperts.runtime.digests import digest_of
from drexperts.runtime.errors import ConfigError
from drexperts.runtime.wording import remedy

MOST = 1_000_000  # shards; each is a file


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of the inputs; together they are all, and none overlaps.

    index: 1 to `count`

    Raises ConfigError for other numbers.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not (1 <= self.count <= MOST and 1 <= self.index <= self.count):
            option = remedy("--shard takes I/N", "Shard takes index and count")
            raise ConfigError(
                f"{option}, with I from 1 to N and N up to {MOST}, not {self.index}/{self.count}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def takes(self, name: str) -> bool:
        """Whether an image file or an archive belongs to this shard.

        It depends on nothing but the name, so listing order, platform and version do not matter.
        """
        number = int.from_bytes(digest_of(posixpath.normpath(name)), "big")
        return number % self.count == self.index - 1
