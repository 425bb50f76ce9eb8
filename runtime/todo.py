"""What is left to do of a stream of images, some of which have a row of results already."""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from drexperts.runtime.decoding import Source
from drexperts.runtime.inputs.listed import ListedImage
from drexperts.runtime.results.done import DoneSources
from drexperts.runtime.work import Fetch

_Item: TypeAlias = tuple[ListedImage, Source | Fetch]

# As many images are listed, for at most so long, before the first is scored: if these are all, the
# total is known.
_LISTED, _SECONDS = 50_000, 2.0


def beginning(
    images: Iterator[ListedImage], most: int = _LISTED, seconds: float = _SECONDS
) -> tuple[list[ListedImage], bool]:
    """The first images of a stream, and whether they are all. Nothing of them is read.

    At least one, if there is any. What is in an archive, or on a network, ends the listing.
    """
    start, listed = time.monotonic(), list[ListedImage]()
    for image in itertools.islice(images, most):
        listed.append(image)
        if image.read is not None or time.monotonic() - start > seconds:
            return listed, False
    return listed, len(listed) < most


class Todo:
    """The images to score: those without a row, and before them some to be scored once more.

    Rounding depends on an image's place in its batch, and so on the images before it in its group,
    see `Scorer.score_stream`. A run that was killed ended within a group. The images of that group
    are scored again, so that the others get the rows of a run that was not killed.

    done: the images that have a row
    group: images that share batches

    Attributes:
        repeats: how many of the first items are for their neighbours only
        images, already_there: how many images came, and how many of them have a row
        videos: how many of what stands for a video
        any_scored: whether one of these rows holds a score
    """

    def __init__(self, images: Iterable[ListedImage], done: DoneSources, group: int) -> None:
        self._images, self._done, self._group = images, done, group
        self.repeats = self.images = self.already_there = self.videos = 0
        self.any_scored = False

    def items(self) -> Iterator[_Item]:
        """The images in order, each with what a Scorer takes of it."""
        recent: deque[tuple[int, _Item]] = deque(maxlen=self._group)
        began = False
        for place, image in enumerate(self._images):
            self.images += not image.is_video
            self.videos += image.is_video
            if image.source in self._done:
                self.already_there += not image.is_video
                self.any_scored = self.any_scored or self._done.is_scored(image.source)
                if not began and self._may_be_repeated(image, place):
                    recent.append((place, (image, image.content())))
                continue
            if not began:
                began = True
                yield from self._repeated(recent, place)
                recent.clear()
            yield image, image.content()

    def _may_be_repeated(self, image: ListedImage, place: int) -> bool:
        """Whether to keep an image. One in an archive is read for it, so only at the last rows."""
        return not image.passing or place >= len(self._done) - len(self._done) % self._group

    def _repeated(self, recent: deque[tuple[int, _Item]], place: int) -> list[_Item]:
        """The images of the group in which the image at `place` is, if all of them were kept."""
        wanted = place % self._group
        items = [item for at, item in recent if at >= place - wanted]
        self.repeats = len(items) if len(items) == wanted else 0
        return items if self.repeats else []
