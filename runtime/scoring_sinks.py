"""Where scores go on their way out: result rows, pictures, a caller."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from drexperts.runtime.decoding import Source
from drexperts.runtime.explain import explanation, file_name, is_picture
from drexperts.runtime.file_scorer import FileScorer
from drexperts.runtime.files import written_whole
from drexperts.runtime.inputs.listed import ListedImage
from drexperts.runtime.progress import Progress
from drexperts.runtime.score import Score
from drexperts.runtime.todo import Todo
from drexperts.runtime.video_summaries import VideoSummaries
from drexperts.runtime.work import Fetch, Item

Sink: TypeAlias = Callable[[Score, Any], object]


class Sinks:
    """Where each score goes, with the source that it was made of, and a count of them.

    maps: whether scores have maps, and sources are kept until their scores are there

    Attributes:
        summaries: makes the scores of videos from those of their frames; may be set
        count, failed: all scores, and those with an error
        scored, enlarged: images with a score, and those of them that were enlarged
    """

    def __init__(self, maps: bool) -> None:
        self.maps = maps
        self.summaries: VideoSummaries | None = None
        self._sinks: list[Sink] = []
        self.count = self.scored = self.failed = self.enlarged = 0

    def add(self, sink: Sink) -> None:
        """Add a function that is called with each score and its source, in the order of adding."""
        self._sinks.append(sink)

    def take(self, score: Score, source: Any, *, is_video: bool) -> None:
        """Pass on the score of an image, or of what stands for a video."""
        if self.summaries is not None:
            score = self.summaries.completed(score, is_video=is_video)
        for sink in self._sinks:
            sink(score, source)
        self.count += 1
        self.failed += score.error is not None
        self.scored += score.error is None and score.frames is None
        self.enlarged += score.enlarged is not None


class _Once:
    """Calls a function once and returns the same again. It can be pickled, unlike `cache`'s."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._fetched: tuple[Source, ...] = ()

    def __call__(self) -> Source:
        if not self._fetched:
            self._fetched = (self._fetch(),)
        return self._fetched[0]


def score_all(
    scorer: FileScorer, todo: Todo, sinks: Sinks, total: int | None, progress: Progress
) -> None:
    """Score what is left to do, and pass on all scores but those of repeated images."""
    waiting = deque[tuple[bool, Any]]()  # the images that are being scored

    def items() -> Iterator[Item]:
        for image, source in todo.items():
            if sinks.maps and callable(source):  # a picture is drawn of what was scored
                source = _Once(source)
            waiting.append((image.is_video, source if sinks.maps else None))
            yield image.source, source

    progress("scoring", 0, total)
    for place, score in enumerate(scorer.score_stream(items(), maps=sinks.maps)):
        is_video, source = waiting.popleft()
        if place >= todo.repeats:
            sinks.take(score, source, is_video=is_video)
            progress("scoring", sinks.count, total)


def without_pictures(images: Iterable[ListedImage], folder: Path | None) -> Iterator[ListedImage]:
    """Leave out the pictures that an earlier run wrote among the photographs."""
    if folder is None:
        return iter(images)
    inside = os.path.abspath(folder)
    return (
        image
        for image in images
        if image.read is not None
        or not is_picture(Path(image.source))
        or os.path.dirname(os.path.abspath(image.source)) != inside
    )


def picture_writer(scorer: FileScorer, folder: Path) -> Sink:
    """What draws the explanation of each score into a folder."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(score: Score, source: Any) -> None:
        if score.error is None and score.frames is None:
            image = scorer.decoder.resized(source() if callable(source) else source)
            picture = explanation(image, score)
            with written_whole(folder / file_name(score.source)) as aside:
                picture.save(aside, "PNG")

    return write
