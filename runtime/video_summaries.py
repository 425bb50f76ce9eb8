"""The row of a video: the mean over its frames, those that an earlier run scored among them."""

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from drexperts.runtime.digests import SourceSet
from drexperts.runtime.errors import UserError
from drexperts.runtime.file_scorer import FileScorer
from drexperts.runtime.inputs.video_files import Videos
from drexperts.runtime.results.done import DoneSources
from drexperts.runtime.results.rows import ResultRow, result_rows
from drexperts.runtime.score import Score
from drexperts.runtime.scorer import Scorer, fingerprint_of
from drexperts.runtime.sources import canonical
from drexperts.runtime.video_library import video_version


def fingerprint_of_run(scorer: FileScorer, videos: Videos | None) -> str:
    """The fingerprint of the scores of images in files, or of videos and their frames.

    That of videos covers what reads them, and the time between frames, on which the score of a
    video depends. See `Scorer.fingerprint`.

    Raises MissingDependencyError for videos without PyAV, and UserError for those on Ray.
    """
    if videos is None:
        return scorer.fingerprint()
    if not isinstance(scorer, Scorer):
        raise UserError("frames of videos are scored in one process: score them without Ray")
    pixels = np.empty((1, 1, 3), np.uint8)
    video = {"reader": video_version(), "every": str(videos.step)}
    return fingerprint_of(scorer.fingerprint_parts(pixels) | {"video": video})


@dataclass
class _Frames:
    """What is known of the frames of a video: of those with a score that and their weights."""

    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    scored: int = 0
    failed: int = 0

    def add(self, numbers: Iterable[float] | None) -> None:
        if numbers is None:
            self.failed += 1
        else:
            self.scored += 1
            self.numbers.extend(numbers)

    def columns(self, count: int) -> "list[array[float]]":
        return [self.numbers[place::count] for place in range(count)]


class VideoSummaries:
    """Makes the scores of frames, and of videos after their frames, those of a result file.

    A video's score is the arithmetic mean of its frames' scores, which the literature on video
    quality calls average temporal pooling, and `std` is their population standard deviation; the
    weights of its distortions are means as well. The sums are exact, so they depend on neither the
    order nor on how many runs it took. A video of which a frame has no score has none.

    fingerprint: of these scores
    distortions: their names
    files: with the rows of earlier runs, see `ResultWriter.files`
    done: the sources of those rows that stay; others are scored again
    """

    def __init__(
        self,
        fingerprint: str,
        distortions: Sequence[str],
        files: Iterable[Path],
        done: DoneSources,
    ) -> None:
        self._fingerprint, self._distortions = fingerprint, distortions
        self._videos: dict[str, _Frames] = {}  # those of which frames are known, and no row
        rows = (row for file in files for _, row in result_rows(str(file), names=distortions))
        self._recall(row for row in rows if row.source in done)

    def _recall(self, rows: Iterable[ResultRow]) -> None:
        """Take the frames that have a row already and whose video has none."""
        seen = SourceSet()
        for row in rows:
            if row.frames is not None:
                self._taken(row.source)
            elif seen.add(row.source):
                self._add(row.source, (row.value, *row.weights) if row.error is None else None)

    def completed(self, score: Score, *, is_video: bool) -> Score:
        """The score as it goes to a result file.

        is_video: whether it is of what stands for a video, see `ListedImage`
        """
        score = replace(score, fingerprint=self._fingerprint)
        if is_video:
            return self._summary(score, self._taken(score.source))
        numbers = (score.value, *score.distortions.values())
        self._add(score.source, numbers if score.error is None else None)
        return score

    def _add(self, source: str, numbers: Iterable[float] | None) -> None:
        video = canonical(source.rpartition("/")[0])
        self._videos.setdefault(video, _Frames()).add(numbers)

    def _taken(self, source: str) -> _Frames:
        return self._videos.pop(canonical(source), _Frames())

    def _summary(self, score: Score, frames: _Frames) -> Score:
        score = replace(score, frames=frames.scored)
        if score.error:
            return score
        if frames.failed:
            count = frames.scored + frames.failed
            return replace(score, error=f"{frames.failed} of its {count} frames have no score")
        columns = frames.columns(1 + len(self._distortions))
        value, *weights = map(_mean, columns)
        variance = _mean([(each - value) ** 2 for each in columns[0]])
        distortions = dict(zip(self._distortions, weights, strict=True))
        std = math.sqrt(variance)
        return replace(score, error=None, value=value, std=std, distortions=distortions)


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)
