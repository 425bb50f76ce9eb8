"""What every protocol of the server shares: images to scores, and whether it is ready."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.batching import Batcher
from drexperts.runtime.errors import ArgumentError, DeadlineError, ImageError
from drexperts.runtime.preprocess import most_crops
from drexperts.runtime.score import Score
from drexperts.serve.bodies import BodyMemory
from drexperts.serve.oip import (
    VERSION,
    InferRequest,
    InferResponse,
    ModelSpec,
    OipError,
    check,
    models_of,
    response,
)
from drexperts.serve.settings import ServeSettings

T = TypeVar("T")

# The share of the queue that the images of one request take at most: a large request must not be
# refused for its own images, nor leave no place for others.
_SHARE = 4


class Service:
    """Scores the images of requests with one Batcher.

    on_score: called with every score
    models: of the Open Inference Protocol, by their names
    bodies: the memory that what requests of all protocols send has
    warm: whether the engine has run at every batch size, and scored what it is tested on
    stopping: whether a signal has ended it
    """

    def __init__(
        self,
        batcher: Batcher,
        settings: ServeSettings,
        on_score: Callable[[Score], object] | None = None,
    ) -> None:
        self.batcher = batcher
        self._on_score = on_score
        self.models = models_of(batcher.scorer, settings.model_name)
        self.settings = settings
        self.bodies = BodyMemory(settings.body_memory)
        self.warm = self.stopping = False

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return self.warm and not self.stopping and self.batcher.failure is None

    @property
    def platform(self) -> str:
        """What runs the models, as the Open Inference Protocol names it."""
        return f"drexperts_{self.batcher.scorer.engine.backend}"

    def model(self, name: str, version: str = VERSION) -> ModelSpec:
        """A model of the Open Inference Protocol. Raises OipError if there is none."""
        if name not in self.models or version != VERSION:
            known = " and ".join(self.models)
            raise OipError(f"there is no such model or version: ask for {known}", 404)
        return self.models[name]

    async def score(
        self, name: str, image: bytes, *, maps: bool = False, group: object = None
    ) -> Score:
        """The score of one encoded image, whose `source` is `name`.

        Raises ImageError, QueueFullError, DeadlineError, or the failure of the engine. Cancelled,
        it drops what the engine has not begun.
        """
        timeout = self.settings.timeout
        score = await self._in_time(
            self.batcher.submit(image, key=name, maps=maps, timeout=timeout, group=group)
        )
        if self._on_score is not None:
            self._on_score(score)
        return score

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

    async def infer(self, model: ModelSpec, request: InferRequest) -> InferResponse:
        """What a model gives for a request.

        Raises OipError for a request that it cannot answer, and for one of which an image cannot
        be read; otherwise as `score`.
        """
        data = check(request, model).data
        if isinstance(data, list):
            arrays = await self._of_images(data)
        else:
            arrays = await self._of_crops(data.astype(np.uint8, copy=False))
        return response(model, request, arrays)

    async def _of_images(self, images: list[bytes]) -> dict[str, NDArray[np.float32]]:
        most = self.settings.max_images
        if len(images) > most:
            raise OipError(f"{len(images)} images, and {most} are allowed in a request: send fewer")
        scores = await self.score_all([(f"<image {i}>", image) for i, image in enumerate(images)])
        for index, score in enumerate(scores):
            if isinstance(score, ImageError):
                raise OipError(f"image {index} cannot be read: {score}", 422)
        good = [score for score in scores if isinstance(score, Score)]
        return {
            "score": np.array([score.value for score in good], np.float32),
            "std": np.array([score.std for score in good], np.float32),
            "weights": np.array([list(score.distortions.values()) for score in good], np.float32),
        }

    async def _of_crops(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        try:
            future = self.batcher.submit_crops(pixels, timeout=self.settings.timeout)
        except ArgumentError as error:
            raise OipError(str(error)) from error
        return await self._in_time(future)

    async def _in_time(self, future: Future[T]) -> T:
        timeout = self.settings.timeout
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout)
        except TimeoutError as cause:
            raise DeadlineError(f"it was not scored within {timeout:g} seconds") from cause
