"""What every protocol of the server shares: images to scores, and whether it is ready."""

import asyncio

from drexperts.runtime.batching import Batcher
from drexperts.runtime.errors import DeadlineError
from drexperts.runtime.score import Score
from drexperts.serve.settings import ServeSettings


class Service:
    """Scores the images of requests with one Batcher.

    warm: whether the engine has run at every batch size
    """

    def __init__(self, batcher: Batcher, settings: ServeSettings) -> None:
        self.batcher = batcher
        self.settings = settings
        self.warm = False

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return self.warm and self.batcher.failure is None

    async def score(self, name: str, image: bytes) -> Score:
        """The score of one encoded image, whose `source` is `name`.

        Raises ImageError, QueueFullError, DeadlineError, or the failure of the engine.
        """
        timeout = self.settings.timeout
        future = self.batcher.submit(image, key=name, timeout=timeout)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout)
        except TimeoutError as cause:
            raise DeadlineError(f"the image was not scored within {timeout:g} seconds") from cause
