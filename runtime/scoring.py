"""Score image files: into memory, or into a result file that a later run continues."""

import itertools
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drexperts.runtime.errors import UserError
from drexperts.runtime.explain import explanation, file_name, is_picture
from drexperts.runtime.files import written_whole
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.results import ResultFile, count_passed_over, find_images
from drexperts.runtime.score import Score
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.wording import remedy


@dataclass(frozen=True, kw_only=True)
class ScoringSummary:
    """What `score_files` did.

    images: image files that the paths named
    passed_over_files: how many other files the searched folders hold, by suffix, see `find_images`
    already_there: images of which the result file had a row before
    scored, failed: images that got a score, and that could not be read, in this run
    enlarged: images that got one and were enlarged before, see `Score.enlarged`
    any_scored: whether at least one image has a score, from this run or an earlier one
    seconds: wall-clock time
    out: the result file
    scores: the scores of this run without their maps, in the order of the paths; None where they
        went to a file
    """

    images: int
    passed_over_files: dict[str, int]
    already_there: int
    scored: int
    failed: int
    enlarged: int
    any_scored: bool
    seconds: float
    out: Path | None
    scores: tuple[Score, ...] | None

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        counts = ("images", "already_there", "scored", "failed", "enlarged")
        names = (*counts, "passed_over_files", "seconds")
        rows = None if self.scores is None else [score.as_row() for score in self.scores]
        out = None if self.out is None else str(self.out)
        return {name: getattr(self, name) for name in names} | {"out": out, "results": rows}


def score_files(
    scorer: Scorer,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    explain: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    retry_errors: bool = False,
    progress: Progress = SILENT,
    on_score: Callable[[Score], object] | None = None,
) -> ScoringSummary:
    """Score the images that files, folders and glob patterns name.

    paths: one or several, see `find_images`; pictures that `explain` wrote before are left out
    out: a `.jsonl` or `.csv` file, one row per image; a run with the same file continues it. With
        a file, memory is bounded; without one, every score is kept for the summary. A run that was
        killed and continued with the same images, batch and threads writes the file of one that
        was not; for that it scores up to `scorer.batch` - 1 images once more.
    explain: a folder for one explanation picture per scored image; the bundle must have maps
    overwrite: start the result file anew instead of continuing it
    retry_errors: score again the images whose row in the result file is an error
    on_score: called with each score once it is there

    An image that cannot be read is a row with `error`. Raises UserError for paths that name no
    image, a result file of other weights, preprocessing or software, and a bundle without maps
    where `explain` is given.

    Example:
        with runtime.load("bundle/") as scorer:
            summary = runtime.score_files(scorer, "photos/", "scores.csv")
        print(summary.scored, summary.failed)
    """
    if out is None and (overwrite or retry_errors):
        out_option = remedy("--out FILE", "out=")
        raise UserError(f"overwriting and retrying are about a result file: pass {out_option}")
    named = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    pictures = None if explain is None else Path(explain)
    found, passed_over = find_images([os.fspath(path) for path in named])
    images = _without_pictures(found, pictures)
    if passed_over:
        progress.note(count_passed_over(passed_over))
    kept: list[Score] = []
    sinks: list[Callable[[Score], object]] = []
    there: dict[str, bool] = {}
    scored, enlarged, start = 0, 0, time.monotonic()
    with ExitStack() as stack:
        # The picture before the row: an image whose row is there is not scored again.
        if pictures is not None:
            sinks.append(_picture_writer(scorer, pictures))
        if out is None:  # maps take a megabyte per image
            sinks.append(lambda score: kept.append(replace(score, maps=None)))
        else:
            results = stack.enter_context(_result_file(scorer, Path(out), overwrite, retry_errors))
            sinks.append(results.append)
            there = {os.path.abspath(source): scored for source, scored in results.done.items()}
        if on_score is not None:
            sinks.append(on_score)
        todo = [path for path in images if os.path.abspath(path) not in there]
        already = len(images) - len(todo)
        again = _to_repeat(images, todo, scorer.batch)
        if already and pictures is not None:
            progress.note(f"{already} images already have a row and get no new picture")
        progress("scoring", 0, len(todo))
        scores = scorer.score_stream([*again, *todo], maps=pictures is not None)
        for count, score in enumerate(itertools.islice(scores, len(again), None), 1):
            for sink in sinks:
                sink(score)
            scored += score.error is None
            enlarged += score.enlarged is not None
            progress("scoring", count, len(todo))
    return ScoringSummary(
        images=len(images),
        passed_over_files=passed_over,
        already_there=already,
        scored=scored,
        failed=len(todo) - scored,
        enlarged=enlarged,
        any_scored=scored > 0 or any(there.get(os.path.abspath(path)) for path in images),
        seconds=time.monotonic() - start,
        out=None if out is None else Path(out),
        scores=tuple(kept) if out is None else None,
    )


def _to_repeat(images: list[Path], todo: list[Path], group: int) -> list[Path]:
    """The images to score once more, so that a killed run gets the rows of one that was not.

    Rounding depends on an image's place in its batch, and so on the images before it in its group,
    see `Scorer.score_stream`. Where other images are missing than the last ones, no run without a
    kill would have scored them in this order.
    """
    done = len(images) - len(todo)
    is_rest = todo and todo == images[done:]
    return images[done - done % group : done] if is_rest else []


def _result_file(scorer: Scorer, path: Path, overwrite: bool, retry_errors: bool) -> ResultFile:
    return ResultFile(
        path,
        fingerprint=scorer.fingerprint(),
        distortions=scorer.manifest.distortions,
        overwrite=overwrite,
        retry_errors=retry_errors,
    )


def _without_pictures(images: list[Path], folder: Path | None) -> list[Path]:
    """Leave out the pictures that an earlier run wrote among the photographs."""
    if folder is None:
        return images
    inside = Path(os.path.abspath(folder))
    return [
        path
        for path in images
        if not (is_picture(path) and Path(os.path.abspath(path)).parent == inside)
    ]


def _picture_writer(scorer: Scorer, folder: Path) -> Callable[[Score], None]:
    folder.mkdir(parents=True, exist_ok=True)

    def write(score: Score) -> None:
        if score.error is None:
            picture = explanation(scorer.decoder.resized(score.source), score)
            with written_whole(folder / file_name(score.source)) as aside:
                picture.save(aside, "PNG")

    return write
