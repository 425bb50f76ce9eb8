"""What every protocol of the server shares: images to scores, and whether it is ready."""

import asyncio

from drexperts.runtime.batching import Batcher
from drexperts.runtime.errors import DeadlineError, ImageError
from drexperts.runtime.preprocess import most_crops
from drexperts.runtime.score import Score
from drexperts.serve.settings import ServeSettings

# The share of the queue that the images of one request take at most: a large request must not be
# refused for its own images, nor leave no place for others.
_SHARE = 4


class Service:
    """Scores the images of requests with one Batcher.

    warm: whether the engine has run at every batch size, and scored what it is tested on
    stopping: whether a signal has ended it
    """

    def __init__(self, batcher: Batcher, settings: ServeSettings) -> None:
        self.batcher = batcher
        self.settings = settings
        self.warm = self.stopping = False

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return self.warm and not self.stopping and self.batcher.failure is None

    async def score(
        self, name: str, image: bytes, *, maps: bool = False, group: object = None
    ) -> Score:
        """The score of one encoded image, whose `source` is `name`.

        Raises ImageError, QueueFullError, DeadlineError, or the failure of the engine. Cancelled,
        it drops what the engine has not begun.
        """
        timeout = self.settings.timeout
        future = self.batcher.submit(image, key=name, maps=maps, timeout=timeout, group=group)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout)
        except TimeoutError as cause:
            raise DeadlineError(f"the image was not scored within {timeout:g} seconds") from cause

    async def score_all(
        self, images: list[tuple[str, bytes]], *, maps: bool = False
    ) -> list[Score | ImageError]:
        """The score of each image with its name, or why it cannot be read.

        Raises as `score` for what is not an image's own failure.
        """
        most = most_crops(self.batcher.scorer.preprocessing)
        places = asyncio.Semaphore(max(1, self.settings.queue // (_SHARE * most)))
        group = object()

        async def one(name: str, image: bytes) -> Score | ImageError:
            async with places:
                try:
                    return await self.score(name, image, maps=maps, group=group)
                except ImageError as error:
                    return error

        tasks = [asyncio.ensure_future(one(name, image)) for name, image in images]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # one that failed or was cancelled takes the others with it
            for task in tasks:
                task.cancel()
