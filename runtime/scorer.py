"""From images to scores: decoding ahead, batches across images, one row a source."""

import dataclasses
import hashlib
import json
import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, overload

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.errors import (
    DrexpertsError,
    ImageError,
    InternalError,
    UserError,
)
from drexperts.runtime.manifest import Engine, Manifest, ScoreScale
from drexperts.runtime.preprocess import (
    Crops,
    Source,
    crops_from_image,
    decode,
    decoder_version,
    describe,
    resampler_version,
)

_DECODERS = 2  # threads; decoding one image takes far less than scoring its crops on a CPU
_AHEAD = 4  # images decoded before they are needed: bounds the memory of a stream


class Session(Protocol):
    """An engine ready to run. The Scorer calls it from `concurrency` threads at most."""

    max_batch: int
    concurrency: int
    description: str
    image_size: int | None  # the side of the images it takes, None for any

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """pixels: uint8 [B, 3, H, W] -> "score" [B], "weights" [B, D], perhaps "maps"."""
        ...

    def close(self) -> None:
        """Free what it holds, and keep what its next start would have to make again."""
        ...


@dataclass(frozen=True, eq=False)
class DistortionMaps:
    """Where each distortion's expert looked.

    values: float32 [n, D, g, g], one map a crop and distortion
    boxes: int64 [n, 4], (left, top, right, bottom) of each crop in the resized image
    size: (width, height) of the resized image
    """

    values: NDArray[np.float32]
    boxes: NDArray[np.int64]
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One image's quality, or why there is none.

    value: mean over the crops, on `scale`; NaN when there is an error
    std: population standard deviation over the crops
    raw: the score of each crop
    distortions: mean weight of each distortion's expert over the crops, in the manifest's order
    fingerprint: equal for two scores made by the same weights, preprocessing and software
    """

    source: str
    value: float
    std: float
    raw: tuple[float, ...]
    distortions: dict[str, float]
    scale: ScoreScale
    fingerprint: str
    maps: DistortionMaps | None = None
    error: str | None = None

    def as_row(self) -> dict[str, Any]:
        """A JSON-ready dictionary without the maps; NaN becomes None."""
        row = {name: value for name, value in vars(self).items() if name != "maps"}
        numbers = {"value": _none_if_nan(self.value), "std": _none_if_nan(self.std)}
        return row | numbers | {"raw": list(self.raw), "scale": dataclasses.asdict(self.scale)}


class PassedOver(NamedTuple):
    """A better engine of the bundle that was not taken, and why."""

    file: str
    backend: str
    reason: str


@dataclass
class _Work:
    """One source on its way: its crops, the rows the engine returned, or its failure."""

    source: Source
    crops: Crops | None = None
    failure: DrexpertsError | None = None
    rows: list[dict[str, NDArray[np.float32]]] = field(default_factory=list)

    @property
    def pixels(self) -> Iterable[NDArray[np.uint8]]:
        return () if self.crops is None else self.crops.pixels

    @property
    def done(self) -> bool:
        return self.crops is None or len(self.rows) == len(self.crops.pixels)


class Scorer:
    """Scores images with one engine of a bundle. Safe to share between threads.

    batch: most crops in one call of the engine; by default 8, or fewer if the engine takes fewer.
    passed_over: the better engines that `runtime.load` did not take
    """

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine,
        session: Session,
        *,
        batch: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.engine = engine
        self.session = session
        self.batch = min(8, session.max_batch) if batch is None else batch
        if not 1 <= self.batch <= session.max_batch:
            raise UserError(f"batch must be 1 to {session.max_batch}, got {batch}")
        self.passed_over: tuple[PassedOver, ...] = ()
        self._turns = threading.BoundedSemaphore(session.concurrency)

    def close(self) -> None:
        """Free the engine. The kernels that TensorRT for RTX compiled are kept for the next one."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def score(self, source: Source, *, maps: bool = False) -> Score: ...
    @overload
    def score(
        self, source: list[Source] | tuple[Source, ...], *, maps: bool = False
    ) -> list[Score]: ...
    def score(
        self, source: Source | list[Source] | tuple[Source, ...], *, maps: bool = False
    ) -> Score | list[Score]:
        """The score of one image, or of each image in a list or tuple.

        Of one image, raises ImageError when it cannot be read. In a list such an image is a row
        with `error`, and costs the others nothing.
        """
        if isinstance(source, (list, tuple)):
            return list(self.score_stream(source, maps=maps))
        self._check_maps(maps)
        (work,) = self._run_all([self._prepare(source)])
        if work.failure is not None:
            raise work.failure
        return self._score(work, maps)

    def score_stream(self, sources: Iterable[Source], *, maps: bool = False) -> Iterator[Score]:
        """The score of each source, in their order, in bounded memory.

        Images are decoded ahead while the engine runs, and crops of several images share a batch:
        a row may wait for the next sources. An unreadable image is a row with `error`.
        """
        self._check_maps(maps)
        return (self._score(work, maps) for work in self._run_all(self._prepare_ahead(sources)))

    def fingerprint_parts(self, source: Source) -> dict[str, Any]:
        """What the fingerprint of a score of `source` is made from, JSON-ready."""
        return {
            "engine": self.engine.sha256,
            "preprocessing": dataclasses.asdict(self.manifest.preprocessing),
            "decoder": decoder_version(source),
            "resampler": resampler_version(),
            "session": self.session.description,
        }

    def fingerprint(self, source: Source) -> str:
        """16 hex digits; equal for scores made by the same weights, preprocessing and software."""
        parts = json.dumps(self.fingerprint_parts(source), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def _check_maps(self, maps: bool) -> None:
        if maps and "maps" not in self.manifest.outputs:
            raise UserError("this bundle has no maps: export it again with maps among its outputs")

    def _prepare(self, source: Source) -> _Work:
        try:
            return _Work(source, crops_from_image(decode(source), self.manifest.preprocessing))
        except ImageError as error:
            return _Work(source, failure=error)

    def _prepare_ahead(self, sources: Iterable[Source]) -> Iterator[_Work]:
        futures: deque[Future[_Work]] = deque()
        with ThreadPoolExecutor(_DECODERS, "drexperts-decode") as pool:
            try:
                for source in sources:
                    futures.append(pool.submit(self._prepare, source))
                    if len(futures) > _AHEAD:
                        yield futures.popleft().result()
                while futures:
                    yield futures.popleft().result()
            finally:
                for future in futures:  # whoever stops early does not wait for the rest
                    future.cancel()

    def _run_all(self, works: Iterable[_Work]) -> Iterator[_Work]:
        """Run the crops of all works in batches; yield each work, in order, when it is done."""
        waiting: deque[_Work] = deque()
        batch: list[tuple[_Work, NDArray[np.uint8]]] = []
        for work in works:
            waiting.append(work)
            for pixels in work.pixels:
                batch.append((work, pixels))
                if len(batch) == self.batch:
                    self._run(batch)
                    batch = []
            while waiting and waiting[0].done:
                yield waiting.popleft()
        if batch:
            self._run(batch)
        yield from waiting

    def _run(self, batch: list[tuple[_Work, NDArray[np.uint8]]]) -> None:
        pixels = np.stack([pixels for _, pixels in batch])
        with self._turns:
            outputs = self.session.run(pixels)
        self._check_outputs(outputs, len(batch))
        for index, (work, _) in enumerate(batch):
            row = {name: outputs[name][index] for name in self.manifest.outputs}
            work.rows.append(row)
            if not all(np.isfinite(array).all() for array in row.values()):
                work.failure = InternalError("the engine returned a non-finite score")

    def _check_outputs(self, outputs: dict[str, NDArray[np.float32]], count: int) -> None:
        wanted = {"score": (count,), "weights": (count, len(self.manifest.distortions))}
        for name in self.manifest.outputs:
            shape = outputs[name].shape if name in outputs else None
            if shape is None or shape != wanted.get(name, shape):
                raise InternalError(f"the engine's output {name!r} has shape {shape}")

    def _score(self, work: _Work, maps: bool) -> Score:
        if work.failure is not None or work.crops is None:
            return self._failed(work)
        raw = np.array([row["score"] for row in work.rows], np.float64)
        weights = np.array([row["weights"] for row in work.rows], np.float64).mean(axis=0)
        return Score(
            source=describe(work.source),
            value=float(raw.mean()),
            std=float(raw.std()),
            raw=tuple(raw.tolist()),
            distortions=dict(zip(self.manifest.distortions, weights.tolist(), strict=True)),
            scale=self.manifest.scale,
            fingerprint=self.fingerprint(work.source),
            maps=_maps(work.rows, work.crops) if maps else None,
        )

    def _failed(self, work: _Work) -> Score:
        return Score(
            source=describe(work.source),
            value=math.nan,
            std=math.nan,
            raw=(),
            distortions={},
            scale=self.manifest.scale,
            fingerprint=self.fingerprint(work.source),
            error=str(work.failure),
        )


def _maps(rows: list[dict[str, NDArray[np.float32]]], crops: Crops) -> DistortionMaps:
    values = np.stack([row["maps"] for row in rows])
    return DistortionMaps(values, crops.boxes, crops.size)


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
