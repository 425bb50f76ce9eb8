"""What runs in each actor of Ray: one engine, with its decoders."""

import contextlib
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from drexperts.runtime.decoding.limits import DecodingLimits
from drexperts.runtime.errors import UserError
from drexperts.runtime.loading import load
from drexperts.runtime.manifest import Engine, Manifest
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.score import Score
from drexperts.runtime.scorer import PassedOver, Scorer
from drexperts.runtime.work import Item
from drexperts.scale.tasks import Answer, source_of


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is to be known of an engine elsewhere; see `Scorer`. machine: its host name"""

    machine: str
    manifest: Manifest
    engine: Engine
    batch: int
    description: str
    fingerprint: str
    preprocessing: Preprocessing
    limits: DecodingLimits
    other_crops_per_side: int | None
    passed_over: tuple[PassedOver, ...]


class RemoteEngine:
    """An engine that scores tasks, two at a time: one is decoded while the other is computed."""

    _scorer: Scorer

    def start(self, bundle: str, options: Mapping[str, Any], folder: str) -> Facts:
        """Open the engine. Raises UserError where `load` does, with the machine's name.

        folder: where relative paths begin; a machine that lacks it may still have absolute ones
        """
        with contextlib.suppress(OSError):
            os.chdir(folder)
        try:
            self._scorer = scorer = load(bundle, **options)
        except UserError as error:
            raise UserError(f"on {platform.node()}: {error}") from error
        return Facts(
            machine=platform.node(),
            manifest=scorer.manifest,
            engine=scorer.engine,
            batch=scorer.batch,
            description=scorer.description,
            fingerprint=scorer.fingerprint(),
            preprocessing=scorer.preprocessing,
            limits=scorer.decoder.limits,
            other_crops_per_side=scorer.other_crops_per_side,
            passed_over=scorer.passed_over,
        )

    def score(self, items: list[Item], maps: bool) -> Answer:
        """Score the images of a task. One that cannot be read has a Score with `error`."""
        start = time.monotonic()
        scores = list(self._scorer.score_stream(items, maps=maps))
        return Answer(
            platform.node(), scores, list(_missing(items, scores)), time.monotonic() - start
        )


def _missing(items: Iterable[Item], scores: Iterable[Score]) -> Iterator[str]:
    for item, score in zip(items, scores, strict=True):
        source = source_of(item)
        if score.error is not None and isinstance(source, (str, os.PathLike)):
            path = os.fspath(source)
            if not os.path.exists(path):
                yield path
