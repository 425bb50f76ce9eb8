"""Crops on their way through an engine: what they are from, and what the engine returned."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.decoding import Source
from drexperts.runtime.errors import DrexpertsError, ImageError, InternalError
from drexperts.runtime.preprocess import Crops

# Returns the bytes of an image file, or an image as `Source` has it, or raises ImageError. It is
# called in a decoder's thread.
Fetch: TypeAlias = Callable[[], Source]

# A source, or a pair of a key and a source or what fetches it: the key becomes the `source` of its
# Score.
Item: TypeAlias = Source | tuple[str | os.PathLike[str], Source | Fetch]


@dataclass(eq=False, kw_only=True)
class Work:
    """Crops that are being scored together.

    pixels: uint8 [n, 3, crop, crop]
    rows: for each crop that the engine has seen, by its index, one row of each output
    failure: why there is no result; None if there is none yet or no failure
    """

    pixels: NDArray[np.uint8]
    rows: dict[int, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    failure: DrexpertsError | None = None

    @property
    def done(self) -> bool:
        """Whether the engine has seen every crop."""
        return len(self.rows) == len(self.pixels)

    def add_row(self, index: int, row: dict[str, NDArray[np.float32]]) -> None:
        """Keep what the engine returned for a crop. Not finite, it fails this work alone."""
        if not all(np.isfinite(array).all() for array in row.values()):
            self.failure = InternalError("the engine returned a non-finite score")
        self.rows[index] = row  # last: with all rows the work is done, for other threads, too

    def stacked(self, name: str) -> NDArray[np.float32]:
        """One output of all crops, in their order: [n, ...]."""
        return np.stack([self.rows[index][name] for index in range(len(self.pixels))])


@dataclass(eq=False, kw_only=True)
class ImageWork(Work):
    """The crops of an image that is being scored, or why it has none.

    key: what its Score is to name as its source; None is the source itself
    crops: None if the image cannot be read
    """

    source: Source
    key: str | None = None
    crops: Crops | None = None


# Some crops that share a call of the engine: what each belongs to, and its index there.
Batch: TypeAlias = Sequence[tuple[Work, int]]


def image_work(source: Source, key: str | None, crops: Crops) -> ImageWork:
    """The work of scoring an image whose crops these are."""
    return ImageWork(source=source, key=key, crops=crops, pixels=crops.pixels)


def unreadable(source: Source, key: str | None, failure: ImageError) -> ImageWork:
    """The work, done already, of an image that cannot be read."""
    none = np.empty((0, 3, 0, 0), np.uint8)
    return ImageWork(source=source, key=key, failure=failure, pixels=none)


def key_and_source(item: Item) -> tuple[str | None, Source | Fetch]:
    """Raises ImageError for a tuple that is no pair of a key and a source."""
    if not isinstance(item, tuple):
        return None, item
    if len(item) != 2:
        raise ImageError(f"a tuple among sources is a pair (key, source), not {len(item)} values")
    key, source = item
    if isinstance(key, os.PathLike):
        key = os.fspath(key)
    if not isinstance(key, str):
        kind = type(key).__name__
        raise ImageError(f"a key is a string or a path: make one of this {kind}, as with str()")
    if not key:
        raise ImageError("a key must not be empty")
    try:
        key.encode("utf-8", "surrogateescape")  # as result files do
    except UnicodeEncodeError as cause:
        raise ImageError(f"the key {key!a:.80} holds characters without UTF-8 form") from cause
    return key, source
