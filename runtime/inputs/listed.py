"""An image that is to be scored, before it is read."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, TypeAlias

from drexperts.runtime.decoding import Source
from drexperts.runtime.errors import ImageError
from drexperts.runtime.work import Fetch

Opener: TypeAlias = Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image that the inputs name. Nothing of it has been read.

    source: the `source` of its row: a path, or what it is in, a slash and its key there
    read: returns the image's bytes, or what fetches them or pixels; None for a file, of which
        `source` is the path
    passing: whether it can be read only until the next image is asked for
    is_video: whether it stands for a video, after its frames. What is read of it fails, with an
        empty message if nothing is wrong with the video.
    """

    source: str
    read: Callable[[], bytes | Fetch] | None = None
    passing: bool = False
    is_video: bool = False

    def content(self) -> Source | Fetch:
        """What a Scorer takes of it. Called before the next image is asked for."""
        return self.source if self.read is None else self.read()


def failing(source: str, reason: str) -> ListedImage:
    """An image, or an archive, that becomes a row with an error."""
    return ListedImage(source, lambda: failure(source, reason))


def failure(source: str, reason: str) -> Fetch:
    """What is read of an image that cannot be read. It can be pickled."""
    return functools.partial(_fail, source, reason)


def _fail(source: str, reason: str) -> bytes:
    raise ImageError(f"cannot read {source}: {reason}")
