"""Score image files: into memory, or into a result file that a later run continues."""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from drexperts.runtime.errors import UserError
from drexperts.runtime.file_scorer import FileScorer
from drexperts.runtime.inputs.folders import count_passed_over
from drexperts.runtime.inputs.parquet_layout import Columns
from drexperts.runtime.inputs.shards import Shard
from drexperts.runtime.inputs.stream import Inputs
from drexperts.runtime.inputs.video_files import Videos
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.results import ResultWriter, open_results
from drexperts.runtime.results.done import DoneSources
from drexperts.runtime.results.place import Place, place_of
from drexperts.runtime.results.shard_files import ShardRecord, forget_record, write_record
from drexperts.runtime.score import Score
from drexperts.runtime.scoring_sinks import (
    Sink,
    Sinks,
    picture_writer,
    score_all,
    without_pictures,
)
from drexperts.runtime.todo import Todo, beginning
from drexperts.runtime.video_summaries import VideoSummaries, fingerprint_of_run
from drexperts.runtime.wording import remedy

_Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True, kw_only=True)
class ScoringSummary:
    """What `score_files` did.

    images: images that the inputs named, of this shard, frames of videos among them
    videos: videos that they named, of this shard
    passed_over_files: how many other files the searched folders and archives hold, by suffix, see
        `find_images`
    repeated: images in archives that were left out, because their keys came before; their archive
        is a row with an error
    already_there: images of which the result file had a row before
    scored: images that got a score in this run
    failed: images and videos that could not be read in this run
    enlarged: images that got one and were enlarged before, see `Score.enlarged`
    any_scored: whether at least one image has a score, from this run or an earlier one
    seconds: wall-clock time
    out: the result file, or its URL
    scores: the scores of this run without their maps, in the order of the paths; None where they
        went to a file
    """

    images: int
    videos: int
    passed_over_files: dict[str, int]
    repeated: int
    already_there: int
    scored: int
    failed: int
    enlarged: int
    any_scored: bool
    seconds: float
    out: Path | str | None
    scores: tuple[Score, ...] | None

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        counts = ("images", "already_there", "scored", "failed", "enlarged", "repeated", "videos")
        names = (*counts, "passed_over_files", "seconds")
        rows = None if self.scores is None else [score.as_row() for score in self.scores]
        out = None if self.out is None else str(self.out)
        return {name: getattr(self, name) for name in names} | {"out": out, "results": rows}


def score_files(
    scorer: FileScorer,
    paths: _Paths = (),
    out: str | os.PathLike[str] | None = None,
    *,
    listed: Iterable[str | os.PathLike[str]] = (),
    shard: Shard | None = None,
    image_column: str | None = None,
    key_column: str | None = None,
    videos: _Paths = (),
    every: float = 1.0,
    explain: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    retry_errors: bool = False,
    progress: Progress = SILENT,
    on_score: Callable[[Score], object] | None = None,
) -> ScoringSummary:
    """Score the images that files, folders, glob patterns, lists, archives and tables hold.

    scorer: a Scorer, or a `drexperts.scale.ray.RayScorer`
    paths: one or several files, folders, patterns or URLs, see `find_images`; tar archives and
        Parquet files stand for the images in them, see `Inputs`. Pictures that `explain` wrote
        before are left out.
    out: a `.jsonl`, `.csv` or `.parquet` file, or the URL of one, one row per image; a run with the
        same file continues it. With a file, memory does not grow with the images but for some 16
        bytes for each; without one, every score is kept for the summary. A run that was killed and
        continued with the same images, batch and threads writes the file of one that was not; for
        that it scores up to `scorer.batch` - 1 images once more.
    listed: paths of image files and archives, read as they are needed, such as `paths_in` returns
    shard: score this part of the image files and archives only; `out` is then a folder, into which
        all shards are scored, see `merge_shards`
    image_column, key_column: of Parquet files, see `Columns`
    videos: instead of images, videos of which frames are scored, see `Inputs`; each has a row of
        its own after those of its frames, see `VideoSummaries`
    every: seconds between these frames
    explain: a folder for one explanation picture per scored image; the bundle must have maps
    overwrite: start the result file anew instead of continuing it
    retry_errors: score again the images whose row in the result file is an error
    on_score: called with each score once it is there

    An image that cannot be read is a row with `error`, and so is an archive that is broken. Raises
    UserError for paths that name no image, a result file of other weights, preprocessing or
    software, and a bundle without maps where `explain` is given.

    Example:
        with runtime.load("bundle/") as scorer:
            summary = runtime.score_files(scorer, "photos/", "scores.csv")
        print(summary.scored, summary.failed)
    """
    _check_out(out, shard, anew=overwrite or retry_errors)
    scorer.check_ready(explain is not None)
    start, pictures = time.monotonic(), None if explain is None else Path(explain)
    clips = _videos(scorer, videos, every, paths, listed)
    columns = Columns(image_column, key_column)
    inputs = _inputs(scorer, videos or paths, listed, shard, columns, clips)
    fingerprint = fingerprint_of_run(scorer, clips)
    images = without_pictures(inputs, pictures)
    kept = list[Score]()
    with ExitStack() as stack:
        place = None if out is None else stack.enter_context(place_of(out, shard))
        # What makes a list may wait for the scores.
        first, is_all = beginning(images, most=1) if listed else beginning(images)
        if not (first or (shard and inputs.count)):
            raise inputs.nothing_found()
        done, keep, files = DoneSources(), _kept_in(kept), list[Path]()
        if place is not None:
            opened = _opened(scorer, fingerprint, place, overwrite, retry_errors)
            results = stack.enter_context(opened)
            done, keep, files = results.done, _row_writer(results, place), results.files
        inputs.is_done = done.__contains__
        sinks = _sinks(scorer, pictures, keep, on_score)
        if clips is not None:
            sinks.summaries = VideoSummaries(fingerprint, scorer.manifest.distortions, files, done)
        todo = Todo(itertools.chain(first, images), done, scorer.batch)
        total = sum(image.source not in done for image in first) if is_all else None
        with _completed(scorer, fingerprint, shard, place, inputs, lambda: len(done) + sinks.count):
            score_all(scorer, todo, sinks, total, progress)
    _say(inputs, todo, pictures, progress)
    name, scores = (None, tuple(kept)) if place is None else (place.name, None)
    return _summary(inputs, todo, sinks, time.monotonic() - start, name, scores)


def _videos(
    scorer: FileScorer,
    videos: _Paths,
    every: float,
    paths: _Paths,
    listed: Iterable[str | os.PathLike[str]],
) -> Videos | None:
    """How videos are read; None if images are."""
    if not videos:
        return None
    if paths or listed:
        raise UserError(
            "frames of videos and images have different fingerprints: score them in two runs, into "
            "two files"
        )
    return Videos(every, scorer.decoder.limits.max_pixels)


def _inputs(
    scorer: FileScorer,
    paths: _Paths,
    listed: Iterable[str | os.PathLike[str]],
    shard: Shard | None,
    columns: Columns,
    videos: Videos | None,
) -> Inputs:
    return Inputs(
        map(os.fsdecode, [paths] if isinstance(paths, (str, os.PathLike)) else paths),
        map(os.fsdecode, listed),
        shard=shard,
        columns=columns,
        largest=scorer.decoder.limits.for_files,
        videos=videos,
    )


def _sinks(
    scorer: FileScorer,
    pictures: Path | None,
    keep: Sink,
    on_score: Callable[[Score], object] | None,
) -> Sinks:
    sinks = Sinks(pictures is not None)
    if pictures is not None:  # before the row: an image whose row is there is not scored again
        sinks.add(picture_writer(scorer, pictures))
    sinks.add(keep)
    if on_score is not None:
        sinks.add(lambda score, source: on_score(score))
    return sinks


def _summary(
    inputs: Inputs,
    todo: Todo,
    sinks: Sinks,
    seconds: float,
    out: Path | str | None,
    scores: tuple[Score, ...] | None,
) -> ScoringSummary:
    return ScoringSummary(
        images=todo.images,
        videos=todo.videos,
        passed_over_files=inputs.passed_over_files(),
        repeated=inputs.repeated,
        already_there=todo.already_there,
        scored=sinks.scored,
        failed=sinks.failed,
        enlarged=sinks.enlarged,
        any_scored=sinks.scored > 0 or todo.any_scored,
        seconds=seconds,
        out=out,
        scores=scores,
    )


def _check_out(out: object, shard: Shard | None, *, anew: bool) -> None:
    """Raise UserError for what makes no sense without a result file."""
    option = remedy("--out", "out=")
    if out is None and anew:
        raise UserError(f"overwriting and retrying are about a result file: pass {option}")
    if out is None and shard is not None:
        raise UserError(f"a shard is scored into a folder: pass {option} with its path")


def _opened(
    scorer: FileScorer, fingerprint: str, place: Place, overwrite: bool, retry_errors: bool
) -> ResultWriter:
    return open_results(
        place.file,
        fingerprint=fingerprint,
        distortions=scorer.manifest.distortions,
        overwrite=overwrite,
        retry_errors=retry_errors,
    )


def _kept_in(scores: list[Score]) -> Sink:
    # Maps take a megabyte per image.
    return lambda score, source: scores.append(replace(score, maps=None))


def _row_writer(results: ResultWriter, place: Place) -> Sink:
    def write(score: Score, source: object) -> None:
        results.append(score)
        place.keep()

    return write


@contextmanager
def _completed(
    scorer: FileScorer,
    fingerprint: str,
    shard: Shard | None,
    place: Place | None,
    inputs: Inputs,
    rows: Callable[[], int],
) -> Iterator[None]:
    """Record that a shard is complete when the block has ended without an error."""
    if shard is None or place is None:
        yield
        return
    forget_record(place.file.parent, shard)
    yield
    record = ShardRecord(
        shard=shard,
        fingerprint=fingerprint,
        distortions=tuple(scorer.manifest.distortions),
        rows=rows(),
        bytes=place.file.stat().st_size,
        inputs=inputs.count,
        digest=inputs.digest,
    )
    write_record(place.file.parent, record)


def _say(inputs: Inputs, todo: Todo, pictures: Path | None, progress: Progress) -> None:
    if passed_over := inputs.passed_over_files():
        progress.note(count_passed_over(passed_over))
    if inputs.repeated:
        again = "images in archives have the key of an earlier one, and are not scored"
        progress.note(f"{inputs.repeated} {again}")
    if todo.already_there and pictures is not None:
        progress.note(f"{todo.already_there} images already have a row and get no new picture")
