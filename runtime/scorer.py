"""From images to scores: decoding ahead, batches across images, one row per source."""

import dataclasses
import hashlib
import itertools
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drexperts.runtime.decoding import Source, decoder_version, describe
from drexperts.runtime.decoding.decoders import Decoder, LocalDecoder
from drexperts.runtime.errors import BundleError, ImageError, InternalError, UserError
from drexperts.runtime.file_scorer import check_maps
from drexperts.runtime.forks import never_free, renew_in_children
from drexperts.runtime.manifest import CPU_BACKENDS, Engine, Manifest
from drexperts.runtime.preprocess import Preprocessing, enlargement, resampler_version
from drexperts.runtime.score import DistortionMaps, Score
from drexperts.runtime.session import Session
from drexperts.runtime.work import (
    Batch,
    Fetch,
    ImageWork,
    Item,
    Work,
    image_work,
    key_and_source,
    unreadable,
)

DECODERS = 2  # threads; decoding an image takes far less time than scoring its crops on a CPU
_AHEAD = 4  # images decoded before they are needed; bounds the memory of a stream

# Called with ("scoring", how many are done, of how many); None where that is not known.
OnProgress: TypeAlias = Callable[[str, int, int | None], object]


class PassedOver(NamedTuple):
    """A better engine of the bundle that is not used, and why."""

    file: str
    backend: str
    reason: str


class Scorer:
    """Scores images with one engine of a bundle. Safe to share between threads.

    After a fork the child opens the engine for itself when it first scores. A pickled Scorer opens
    it where it is unpickled.

    batch: the largest number of crops per call of the engine; None is 8, or fewer if the engine
        takes fewer
    concurrency: how many calls of the engine run at the same time
    decoder: what reads images and cuts their crops; None is a `LocalDecoder` with the manifest's
        preprocessing and the default limits
    reopen: opens the same engine again, in another process; a function that can be pickled
    passed_over: the better engines that `runtime.load` could not use
    """

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine,
        session: Session,
        *,
        batch: int | None = None,
        decoder: Decoder | None = None,
        reopen: Callable[[], Session] | None = None,
    ) -> None:
        self.manifest = manifest
        self.engine = engine
        self.batch = min(8, session.max_batch) if batch is None else batch
        if type(self.batch) is not int or not 1 <= self.batch <= session.max_batch:
            raise UserError(f"batch must be 1 to {session.max_batch}, got {batch!r}")
        self.passed_over: tuple[PassedOver, ...] = ()
        self.decoder = LocalDecoder(manifest.preprocessing) if decoder is None else decoder
        self._session: Session | None = session
        self._description = session.description
        self.concurrency = session.concurrency
        self._reopen = reopen
        self._closed = False
        self._renew_locks()
        renew_in_children(self)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are cropped. Its grid may be another than the manifest's, see `load`."""
        return self.decoder.spec

    @property
    def other_crops_per_side(self) -> int | None:
        """The most crops along each axis of an image; None if it is what the manifest says."""
        chosen = self.preprocessing.crops_per_side
        return None if chosen == self.manifest.preprocessing.crops_per_side else chosen

    @property
    def description(self) -> str:
        """The engine's library, and on what it runs."""
        return self._description

    @property
    def session(self) -> Session:
        """The engine. Raises UserError after a fork that it cannot follow."""
        with self._opening:
            if self._session is None:
                self._check_open()
                self._session = self._opened_again()
            return self._session

    def close(self) -> None:
        """Free the engine, after the calls of it that are running. Twice is fine."""
        self.decoder.close()
        with self._opening:
            if self._closed:
                return
            self._closed = True
        for _ in range(self.concurrency):
            self._turns.acquire()
        if self._session is not None:
            self._session.close()
        for _ in range(self.concurrency):
            self._turns.release()

    def after_fork(self) -> None:
        """The threads of the engine are not in the child, and freeing it would wait for them."""
        if self._session is not None:
            never_free(self._session)
            self._session = None
        self._renew_locks()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None:
            raise UserError("only a Scorer that `runtime.load` returned can be pickled")
        self._check_open()
        arguments = (self.manifest, self.engine, self.batch, self.decoder, self._reopen)
        return _unpickled, (*arguments, self.passed_over, self.fingerprint())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def score(
        self, source: Source, *, maps: bool = False, progress: OnProgress | None = None
    ) -> Score: ...
    @overload
    def score(
        self,
        source: list[Item] | tuple[Item, ...],
        *,
        maps: bool = False,
        progress: OnProgress | None = None,
    ) -> list[Score]: ...
    def score(
        self,
        source: Source | list[Item] | tuple[Item, ...],
        *,
        maps: bool = False,
        progress: OnProgress | None = None,
    ) -> Score | list[Score]:
        """The score of one image, or of each image in a list or tuple.

        A single image that cannot be read raises ImageError. In a list, such an image gets a Score
        with `error`, and the others are scored. Keys and `progress` are those of `score_stream`; a
        tuple that is not in a list or tuple is several images, and never a key with its image.
        """
        if isinstance(source, (list, tuple)):
            return list(self.score_stream(source, maps=maps, progress=progress))
        self.check_ready(maps)
        (work,) = self._run_all([self.prepare(source)])
        if work.failure is not None:
            raise work.failure
        (score,) = _reported([self.score_of(work, maps)], progress, 1)
        return score

    def score_stream(
        self,
        sources: Iterable[Item],
        *,
        maps: bool = False,
        flush: bool | Callable[[], bool] = False,
        progress: OnProgress | None = None,
    ) -> Iterator[Score]:
        """The score of each source, in order and in bounded memory.

        Images are decoded ahead while the engine runs. Crops of several images share a batch, so a
        score may wait for the next sources, but none reaches beyond a group of `batch` sources:
        the scores of a group do not depend on the sources before it. An unreadable image gets a
        Score with `error`.

        sources: images, or tuples (key, image) whose key, a string or a path, becomes the `source`
            of the Score. Equal keys are not told apart. An empty key, one of another type, and one
            with characters that no file name can have make a Score with `error`. In a tuple the
            image may be a function that returns the bytes of a file, such as from a network, or
            an image; it is
            called in another thread, and an ImageError that it raises is this image's error.
        flush: whether all scores of the sources so far are given out before the next source is
            asked for. A function is called each time, such as `queue.empty` of a queue that the
            sources come from: then only a source that must be waited for ends a batch.
        progress: called with ("scoring", how many scores are there, of how many), the last None
            where `sources` has no length; what it raises ends the stream

        Example:
            for score in scorer.score_stream(zip(names, arrays, strict=True)):
                print(score.source, score.value)
        """
        self.check_ready(maps)
        works = self._run_all(self._prepare_ahead(sources, flush))
        scores = (self.score_of(work, maps) for work in works)
        return _reported(scores, progress, len(sources) if isinstance(sources, Sized) else None)

    def fingerprint_parts(self, source: Source | None = None) -> dict[str, Any]:
        """What `fingerprint` is made from, JSON-ready."""
        return {
            "engine": self.engine.sha256,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "scale": dataclasses.asdict(self.manifest.scale),
            "distortions": list(self.manifest.distortions),
            "outputs": list(self.manifest.outputs),
            "decoder": decoder_version(source),
            "resampler": resampler_version(),
            "session": self._description,
        }

    def fingerprint(self, source: Source | None = None) -> str:
        """16 hex digits; equal for scores that mean the same and are made by the same software.

        source: None stands for files and bytes, which all have the same fingerprint. A PIL image
            and an array have another one, because the caller decoded them.
        """
        return fingerprint_of(self.fingerprint_parts(source))

    def check_ready(self, maps: bool) -> None:
        """Raise UserError for a Scorer that is closed, and for maps that the bundle lacks."""
        self._check_open()
        check_maps(self.manifest, maps)

    def prepare(self, source: Source | Fetch, key: str | None = None) -> ImageWork:
        """The work of scoring an image, decoded; an unreadable one has a failure and no crops."""
        fetched: Source = b""
        try:
            fetched = source() if callable(source) else source
            return image_work(fetched, key, self.decoder.crops(fetched))
        except ImageError as error:
            return unreadable(fetched, key, error)

    def run(self, batch: Batch) -> None:
        """Score crops in one call of the engine, and add the rows to the works they belong to.

        At most `concurrency` calls run at the same time; others wait for their turn. Raises what
        the engine raises, BundleError if it returns arrays of other shapes than its bundle says,
        and UserError if this Scorer is closed.
        """
        pixels = np.stack([work.pixels[index] for work, index in batch])
        session = self.session
        with self._turns:
            self._check_open()
            outputs = session.run(pixels)
        self._check_outputs(outputs, len(batch))
        for position, (work, index) in enumerate(batch):
            row = {name: outputs[name][position] for name in self.manifest.outputs}
            work.add_row(index, row)

    def score_of(self, work: ImageWork, maps: bool) -> Score:
        """The Score of a work that is done, with `error` where it failed."""
        raw, weights, found, enlarged = np.empty(0), dict[str, float](), None, None
        if work.failure is None and work.crops is not None:
            raw = work.stacked("score").astype(np.float64)
            means = work.stacked("weights").astype(np.float64).mean(axis=0)
            weights = dict(zip(self.manifest.distortions, means.tolist(), strict=True))
            enlarged = enlargement(work.crops.original, self.preprocessing)
            if maps:
                found = DistortionMaps(work.stacked("maps"), work.crops.boxes, work.crops.size)
        return Score(
            source=describe(work.source) if work.key is None else work.key,
            value=float(raw.mean()) if raw.size else math.nan,
            std=float(raw.std()) if raw.size else math.nan,
            raw=tuple(raw.tolist()),
            distortions=weights,
            scale=self.manifest.scale,
            fingerprint=self.fingerprint(work.source),
            maps=found,
            error=None if work.failure is None else str(work.failure),
            enlarged=enlarged,
            crops_per_side=self.other_crops_per_side,
        )

    def _renew_locks(self) -> None:
        self._opening = threading.Lock()
        self._turns = threading.BoundedSemaphore(self.concurrency)

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("this Scorer is closed: load the bundle again")

    def _opened_again(self) -> Session:
        if self._reopen is None:
            raise UserError(
                "this Scorer was made before the process forked: make it in the process that scores"
            )
        if self.engine.backend not in CPU_BACKENDS:  # a fork loses the GPU
            raise UserError(
                "a forked process cannot use the GPU of its parent: load the bundle in the process "
                'that scores, or start it with the method "spawn"'
            )
        return self._reopen()

    def _prepare_ahead(
        self, items: Iterable[Item], flush: bool | Callable[[], bool]
    ) -> Iterator[ImageWork | None]:
        """The works, and None wherever all of them so far are to be given out."""
        futures: deque[Future[ImageWork]] = deque()
        pool = ThreadPoolExecutor(DECODERS, "drexperts-decode")
        try:
            for item in items:
                futures.append(self._submitted(item, pool))
                flushing = flush() if callable(flush) else flush
                while len(futures) > (0 if flushing else _AHEAD):
                    yield futures.popleft().result()
                if flushing:
                    yield None
            while futures:
                yield futures.popleft().result()
        finally:  # a caller that stops early does not wait for the rest
            pool.shutdown(wait=False, cancel_futures=True)

    def _submitted(self, item: Item, pool: ThreadPoolExecutor) -> Future[ImageWork]:
        done: Future[ImageWork] = Future()
        try:
            key, source = key_and_source(item)
        except ImageError as error:
            done.set_result(unreadable(b"", describe(item), error))
            return done
        if not isinstance(source, (Image.Image, np.ndarray)):
            return pool.submit(self.prepare, source, key)
        # The caller's own object: it may be closed or used again once the next source is asked for.
        done.set_result(self.prepare(source, key))
        return done

    def _run_all(self, works: Iterable[ImageWork | None]) -> Iterator[ImageWork]:
        """Run the crops of all works in batches; yield the works in order as they are done.

        None among the works, and the end of them, runs a batch that is not full. So does every
        group of `batch` works; with equally many crops each they fill their batches.
        """
        waiting: deque[ImageWork] = deque()
        batch: list[tuple[Work, int]] = []
        in_group = 0
        for work in itertools.chain(works, [None]):
            if work is not None:
                waiting.append(work)
            for crop in () if work is None else [(work, i) for i in range(len(work.pixels))]:
                batch.append(crop)
                if len(batch) == self.batch:
                    self.run(batch)
                    batch = []
            in_group = 0 if work is None else (in_group + 1) % self.batch
            if batch and in_group == 0:
                self.run(batch)
                batch = []
            while waiting and waiting[0].done:
                yield waiting.popleft()

    def _check_outputs(self, outputs: dict[str, NDArray[np.float32]], count: int) -> None:
        """Raise BundleError for other shapes, which a graph with free sizes shows only now."""
        experts, grid = len(self.manifest.distortions), self.manifest.grid
        maps = outputs["maps"].shape[2:] if grid is None and "maps" in outputs else (grid, grid)
        wanted = {"score": (count,), "weights": (count, experts), "maps": (count, experts, *maps)}
        for name in self.manifest.outputs:
            if name not in outputs:
                raise InternalError(f"the engine has no output {name!r}")
            if (shape := outputs[name].shape) != wanted[name]:
                raise BundleError(
                    f"the engine's output {name!r} has the shape {shape}, its bundle says "
                    f"{wanted[name]}: export the bundle again with `drx export`"
                )


def fingerprint_of(parts: dict[str, Any]) -> str:
    """16 hex digits, see `Scorer.fingerprint`."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _reported(
    scores: Iterable[Score], progress: OnProgress | None, total: int | None
) -> Iterator[Score]:
    for done, score in enumerate(scores, 1):
        if progress is not None:
            progress("scoring", done, total)
        yield score


def _unpickled(
    manifest: Manifest,
    engine: Engine,
    batch: int,
    decoder: Decoder,
    reopen: Callable[[], Session],
    passed_over: tuple[PassedOver, ...],
    fingerprint: str,
) -> Scorer:
    scorer = Scorer(manifest, engine, reopen(), batch=batch, decoder=decoder, reopen=reopen)
    scorer.passed_over = passed_over
    if scorer.fingerprint() != fingerprint:
        raise UserError(
            "a Scorer from another process would make other scores here, because versions of "
            f"libraries or devices differ: load the bundle here ({scorer.session.description})"
        )
    return scorer
