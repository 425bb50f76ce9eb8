"""What every protocol of the server shares: images to scores, and whether it is ready."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.batching import Batcher
from drexperts.runtime.errors import (
    ArgumentError,
    DeadlineError,
    ImageError,
    QueueFullError,
)
from drexperts.runtime.preprocess import most_crops
from drexperts.runtime.score import Score
from drexperts.serve.body_memory import BodyMemory
from drexperts.serve.oip import (
    VERSION,
    InferRequest,
    InferResponse,
    ModelSpec,
    OipError,
    Outputs,
    check,
    models_of,
    response,
)
from drexperts.serve.settings import ServeSettings

S = TypeVar("S")
T = TypeVar("T")

# The share of the queue that the images of one request take at most: a large request must not be
# refused for its own images, nor leave no place for others.
_SHARE = 4
_AGAIN = 0.02  # seconds until a part of a request asks for room again


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
        future = self.batcher.submit(image, key=name, maps=maps, timeout=timeout, group=group)
        score = await self._in_time(asyncio.wrap_future(future))
        if self._on_score is not None:
            self._on_score(score)
        return score

    async def score_all(
        self, images: list[tuple[str, bytes]], *, maps: bool = False
    ) -> list[Score | ImageError]:
        """The score of each image with its name, or why it cannot be read.

        Together they have the time of one request. Raises as `score` for what is not an image's own
        failure.
        """
        group = object()

        async def one(named: tuple[str, bytes]) -> Score | ImageError:
            try:
                return await self.score(*named, maps=maps, group=group)
            except ImageError as error:
                return error

        return await self._all(one, images, most_crops(self.batcher.scorer.preprocessing))

    async def _all(
        self, ask: Callable[[S], Awaitable[T]], parts: Sequence[S], crops: int
    ) -> list[T]:
        """What is answered to each part of one request, in the time of one.

        The first is refused if the queue is full. Once it was taken, the others wait for room,
        because what is done would be lost.

        crops: that each part takes at most
        """
        places = asyncio.Semaphore(max(1, self.settings.queue // (_SHARE * crops)))

        async def one(index: int) -> T:
            async with places:
                while True:
                    try:
                        return await ask(parts[index])
                    except QueueFullError:
                        if index == 0:
                            raise
                        await asyncio.sleep(_AGAIN)

        tasks = [asyncio.ensure_future(one(index)) for index in range(len(parts))]
        try:
            answers: list[T] = await self._in_time(asyncio.gather(*tasks))
            return answers
        finally:  # one that failed or was cancelled takes the others with it
            for task in tasks:
                task.cancel()

    async def infer(self, model: ModelSpec, request: InferRequest) -> InferResponse:
        """What a model gives for a request.

        Raises OipError for a request that it cannot answer, and for one of which no image can be
        read; otherwise as `score`.
        """
        data = check(request, model).data
        outputs: Outputs
        if isinstance(data, list):
            outputs = await self._of_images(data)
        else:
            outputs = {**await self._of_crops(data.astype(np.uint8, copy=False))}
        return response(model, request, outputs)

    async def _of_images(self, images: list[bytes]) -> Outputs:
        most = self.settings.max_images
        if len(images) > most:
            raise OipError(f"{len(images)} images, and {most} are allowed in a request: send fewer")
        scores = await self.score_all([(f"<image {i}>", image) for i, image in enumerate(images)])
        if all(isinstance(score, ImageError) for score in scores):
            raise OipError(f"no image can be read, image 0 because: {scores[0]}", 422)
        return _rows(scores, len(self.batcher.scorer.manifest.distortions))

    async def _of_crops(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """In parts of a batch, so that what nobody waits for any more is not computed."""
        group, size = object(), min(self.batcher.scorer.batch, self.settings.queue)
        parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]

        async def one(part: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            future = self.batcher.submit_crops(part, timeout=self.settings.timeout, group=group)
            return await asyncio.wrap_future(future)

        try:
            found = await self._all(one, parts, size)
        except ArgumentError as error:
            raise OipError(str(error)) from error
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}

    async def _in_time(self, answer: asyncio.Future[T]) -> T:
        timeout = self.settings.timeout
        try:
            return await asyncio.wait_for(answer, timeout)
        except TimeoutError as cause:
            raise DeadlineError(f"it was not scored within {timeout:g} seconds") from cause


def _rows(scores: list[Score | ImageError], experts: int) -> Outputs:
    """A row per image: what is known of it, or NaN and its error."""
    unknown = [math.nan] * experts
    good = [score if isinstance(score, Score) else None for score in scores]
    weights = [list(each.distortions.values()) if each else unknown for each in good]
    return {
        "score": np.array([each.value if each else math.nan for each in good], np.float32),
        "std": np.array([each.std if each else math.nan for each in good], np.float32),
        "weights": np.array(weights, np.float32),
        "error": [str(each).encode() if isinstance(each, ImageError) else b"" for each in scores],
    }
