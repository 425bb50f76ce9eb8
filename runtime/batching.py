"""Scores for many callers at once: their crops share the calls of one engine."""

import functools
import math
import time
import weakref
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drexperts.runtime.batch_workers import BatchObserver as BatchObserver
from drexperts.runtime.batch_workers import Workers
from drexperts.runtime.decoding import Source
from drexperts.runtime.errors import ArgumentError, UserError
from drexperts.runtime.pending import Job, Pending
from drexperts.runtime.preprocess import most_crops
from drexperts.runtime.score import Score
from drexperts.runtime.scorer import DECODERS, Scorer
from drexperts.runtime.wording import remedy
from drexperts.runtime.work import ImageWork, Work, key_and_source


class Batcher:
    """Scores images for many callers with one Scorer: crops of different callers share its batches.

    It never waits while the engine is idle, unless `max_delay` says so; batches fill while the
    engine is busy. Groups take turns, so that one image never waits for all of a large group. A
    failure is that of one submission, except for an engine that fails for good. Safe to share
    between threads. Use it in a `with` statement, or close it. After a fork the child has an empty
    one of its own.

    Futures end in the threads of the Batcher: keep their callbacks short, because the engine waits
    for them. `asyncio.wrap_future` makes a future that can be awaited and cancelled.

    max_pending_crops: crops that may wait or run; a submission beyond it raises QueueFullError
    decoders: threads that decode
    max_delay: seconds for which a batch that is not full waits for more crops
    observer: is told what the threads do

    Raises UserError for invalid arguments.

    Example:
        with Batcher(scorer) as batcher:
            futures = [batcher.submit(path) for path in paths]
            scores = [future.result() for future in futures]
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        max_pending_crops: int = 512,
        decoders: int = DECODERS,
        max_delay: float = 0.0,
        observer: BatchObserver | None = None,
    ) -> None:
        least = most_crops(scorer.preprocessing)
        if type(max_pending_crops) is not int or max_pending_crops < least:
            name = remedy("--queue", "max_pending_crops")
            raise UserError(
                f"{name} must be a whole number of at least {least}, the most crops of an image, "
                f"got {max_pending_crops!r}"
            )
        if type(decoders) is not int or decoders < 1:
            raise UserError(f"decoders must be a whole number of at least 1, got {decoders!r}")
        if not 0 <= max_delay < math.inf:
            name = remedy("--max-delay", "max_delay")
            raise UserError(f"{name} must be at least 0 seconds, got {max_delay!r}")
        self.scorer = scorer
        self._pending = Pending(max_pending_crops, scorer.batch, max_delay)
        self._workers = Workers(scorer, self._pending, decoders, observer)
        # Whoever drops a Batcher without closing it gets what was submitted, and loses its threads.
        weakref.finalize(self, self._pending.close).atexit = False

    @property
    def pending_crops(self) -> int:
        """Crops that are reserved for images being decoded, or wait, or run."""
        return self._pending.crops

    @property
    def failure(self) -> Exception | None:
        """The error for which the engine cannot be used any more, which `submit` raises, too."""
        return self._pending.failure

    def submit(
        self,
        source: Source,
        *,
        key: str | None = None,
        maps: bool = False,
        timeout: float | None = None,
        group: Hashable = None,
    ) -> Future[Score]:
        """Score one image.

        The future gets the Score, ImageError if the image cannot be read, DeadlineError, or the
        error of the engine. A PIL image or an array is read before this returns, files and bytes
        later.

        source: a path, the bytes of a file, a PIL image or a uint8 array
        key: becomes the `source` of the Score
        timeout: seconds until which the engine must have begun it; None is for ever
        group: submissions with an equal group, such as the images of one request, take turns with
            others as if they were one; None is a group of its own

        Raises QueueFullError, ClosedError after `close`, the engine's `failure`, and UserError for
        maps that the bundle lacks.
        """
        self.scorer.check_ready(maps)
        job = Job(
            prepare=functools.partial(self._prepared, source, key),
            answer=functools.partial(self._score, maps),
            group=object() if group is None else group,
            deadline=_deadline(timeout),
            reserved=most_crops(self.scorer.preprocessing),
        )
        return self._accepted(job, now=isinstance(source, (Image.Image, np.ndarray)))

    def submit_crops(
        self,
        pixels: NDArray[np.uint8],
        *,
        timeout: float | None = None,
        group: Hashable = None,
    ) -> Future[dict[str, NDArray[np.float32]]]:
        """Score crops that the caller has cut.

        pixels: uint8 [n, 3, crop, crop], copied

        The future gets each output of the engine by name, as float32 [n, ...]. Otherwise as
        `submit`. Raises ArgumentError for other pixels, and for more than may ever be pending.
        """
        side, most = self.scorer.preprocessing.crop, self._pending.most
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (3, side, side) or not len(pixels):
            raise ArgumentError(
                f"pixels must be uint8 [n, 3, {side}, {side}] with n of at least 1, got "
                f"{pixels.dtype} {list(pixels.shape)}"
            )
        if len(pixels) > most:
            raise ArgumentError(
                f"pixels are {len(pixels)} crops, and at most {most} may be pending: submit fewer, "
                f"or raise {remedy('--queue', 'max_pending_crops')}"
            )
        self.scorer.check_ready(maps=False)
        job = Job(
            prepare=functools.partial(Work, pixels=pixels.copy()),
            answer=self._outputs,
            group=object() if group is None else group,
            deadline=_deadline(timeout),
            reserved=len(pixels),
        )
        return self._accepted(job, now=True)

    def close(self, *, timeout: float | None = None) -> None:
        """Accept nothing more, and wait until everything that was accepted has ended.

        What is left after `timeout` seconds gets ClosedError; None waits for ever. Twice is fine.
        In a callback of a future it does not wait.
        """
        self._pending.close()
        self._workers.end(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accepted(self, job: Job, now: bool) -> Future[Any]:
        """The future of a job, whose work is prepared by this thread if `now`."""
        self._pending.add(job, prepared_here=now)
        self._workers.start()
        if now:
            self._workers.prepare(job)
        return job.future

    def _prepared(self, source: Source, key: str | None) -> ImageWork:
        if key is not None:
            key, _ = key_and_source((key, source))
        return self.scorer.prepare(source, key)

    def _score(self, maps: bool, work: ImageWork) -> Score:
        return self.scorer.score_of(work, maps)

    def _outputs(self, work: Work) -> dict[str, NDArray[np.float32]]:
        return {name: work.stacked(name) for name in self.scorer.manifest.outputs}


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if math.isnan(timeout):
        raise UserError("timeout must be a number of seconds or None, got NaN")
    return time.monotonic() + timeout
