"""`score_files` on videos: a row per frame, and one per video that is right after any kill."""

import functools
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.archives import exact_scorer, png
from support.kills import killed
from support.videos import grey_of, write_video

from drexperts import runtime
from drexperts.runtime import Score, Scorer, Shard, UserError, merge_shards, score_files
from drexperts.runtime.decoding.decoders import LocalDecoder
from drexperts.runtime.decoding.limits import DecodingLimits
from drexperts.runtime.errors import MissingDependencyError
from drexperts.runtime.results.rows import ResultRow, result_rows

pytest.importorskip("av", reason="the extra video is not installed")


@pytest.fixture(scope="module")
def scorer(toy_bundle: Path) -> Scorer:
    return exact_scorer(runtime.load(toy_bundle, threads=1))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, of 5, 4 and 3 whole seconds; the second is cut off after some."""
    folder = tmp_path_factory.mktemp("clips")
    for name, seconds in {"a": 5, "b": 4, "c": 3}.items():
        write_video(folder / f"{name}.mkv", range(0, 1000 * seconds, 250), gop=4)
    data = (folder / "b.mkv").read_bytes()
    (folder / "b.mkv").write_bytes(data[: int(0.7 * len(data))])
    return folder


def rows_of(file: Path) -> dict[str, dict[str, Any]]:
    return {row["source"]: row for row in map(json.loads, file.read_text().splitlines())}


def rows_in(file: Path, names: Sequence[str]) -> list[ResultRow]:
    """The rows of any form; errors instead of values that are NaN, which equal nothing."""
    rows = [row for _, row in result_rows(str(file), names=names)]
    return [row if row.error is None else row._replace(value=0) for row in rows]


def test_a_row_per_frame_and_one_per_video(toy_bundle: Path, clips: Path, tmp_path: Path) -> None:
    with runtime.load(toy_bundle, threads=1, isolated=True) as scorer:
        summary = score_files(scorer, videos=clips, every=0.5, out=tmp_path / "scores.jsonl")
    named = rows_of(tmp_path / "scores.jsonl").items()
    rows = {source.removeprefix(f"{clips}/"): row for source, row in named}
    frames = {source: row for source, row in rows.items() if "/" in source}
    videos = {source: row for source, row in rows.items() if "/" not in source}
    assert list(videos) == ["a.mkv", "b.mkv", "c.mkv"]
    assert (summary.images, summary.videos) == (len(frames), 3)
    assert (summary.scored, summary.failed) == (len(frames), 1)
    for number in range(10):
        row = rows[f"a.mkv/{number / 2:.3f}"]
        assert row["value"] == pytest.approx(grey(2 * number), abs=3)
        assert "frames" not in row
    of_a = [row for source, row in frames.items() if source.startswith("a.mkv/")]
    values, row = [row["value"] for row in of_a], videos["a.mkv"]
    assert (row["frames"], row["raw"], row["error"]) == (10, [], None)
    assert row["value"] == math.fsum(values) / 10
    assert row["std"] == pytest.approx(statistics.pstdev(values))
    weights = [row["distortions"]["distortion 3"] for row in of_a]
    assert row["distortions"]["distortion 3"] == math.fsum(weights) / 10
    broken = videos["b.mkv"]
    assert broken["value"] is None
    assert broken["frames"] == sum(source.startswith("b.mkv/") for source in frames) > 0
    assert f"{broken['frames']} frames before the damage" in broken["error"]
    fingerprints = {row["fingerprint"] for row in rows.values()}
    assert len(fingerprints) == 1
    assert scorer.fingerprint() not in fingerprints


def grey(number: int) -> float:
    """Full range of what is stored in limited range; the encoder is lossy."""
    return float(grey_of(number))


class KilledError(Exception):
    """Ends a run after a row, as SIGKILL would: nothing is written after it."""


def killed_after(rows: int) -> Callable[[Score], None]:
    seen = list[Score]()

    def stop(score: Score) -> None:
        seen.append(score)
        if len(seen) == rows:
            raise KilledError

    return stop


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".csv", pytest.param(".parquet", marks=pytest.mark.slow)]
)
def test_a_killed_run_ends_with_the_rows_of_one_that_was_not(
    suffix: str, scorer: Scorer, clips: Path, tmp_path: Path
) -> None:
    whole = tmp_path / f"whole{suffix}"
    done = score_files(scorer, videos=clips, every=0.5, out=whole)
    names = scorer.manifest.distortions
    expected = rows_in(whole, names)
    for rows in (1, 3, 9, 10, 11, 13, len(expected) - 1):
        out = tmp_path / f"{rows}{suffix}"
        with pytest.raises(KilledError):
            score_files(scorer, videos=clips, every=0.5, out=out, on_score=killed_after(rows))
        again = score_files(scorer, videos=clips, every=0.5, out=out)
        assert rows_in(out, names) == expected
        if suffix != ".parquet":
            assert out.read_bytes() == whole.read_bytes()
        videos_before = sum(row.frames is not None for row in expected[:rows])
        assert again.already_there == rows - videos_before
        assert (again.images, again.videos) == (done.images, done.videos)
    nothing = score_files(scorer, videos=clips, every=0.5, out=whole)
    assert (nothing.scored, nothing.failed, nothing.any_scored) == (0, 0, True)


class PlacedSession:
    """An engine whose rounding depends on a crop's place and on the size of its batch."""

    max_batch, concurrency, description = 8, 1, "placed"

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        places = np.arange(len(pixels)) + 100 * len(pixels)
        scores = pixels.mean((1, 2, 3)) + places / 1000
        return {"score": scores.astype("f4"), "weights": np.zeros((len(pixels), 10), "f4")}

    def close(self) -> None:
        """Nothing is held."""


def test_a_killed_run_begins_its_group_again(scorer: Scorer, clips: Path, tmp_path: Path) -> None:
    placed = Scorer(scorer.manifest, scorer.engine, PlacedSession(), batch=3)
    whole = tmp_path / "whole.jsonl"
    score_files(placed, videos=clips, every=0.5, out=whole)
    for rows in (1, 2, 5, 10, 12, 14):
        out = tmp_path / f"{rows}.jsonl"
        with pytest.raises(KilledError):
            score_files(placed, videos=clips, every=0.5, out=out, on_score=killed_after(rows))
        score_files(placed, videos=clips, every=0.5, out=out)
        assert out.read_bytes() == whole.read_bytes()


def test_frames_are_not_scored_again(
    scorer: Scorer, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores.jsonl"
    with pytest.raises(KilledError):
        score_files(scorer, videos=clips / "a.mkv", out=out, on_score=killed_after(3))
    seen = list[Score]()
    score_files(scorer, videos=clips / "a.mkv", out=out, on_score=seen.append)
    video = str(clips / "a.mkv")
    assert [score.source for score in seen] == [f"{video}/3.000", f"{video}/4.000", video]
    assert rows_of(out)[video]["frames"] == seen[-1].frames == 5


def test_videos_are_known_by_any_spelling_and_told_apart_by_their_folders(
    scorer: Scorer, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, clip in {"x": "a.mkv", "y": "c.mkv"}.items():
        Path(folder).mkdir()
        Path(folder, "v.mkv").write_bytes((clips / clip).read_bytes())
    with pytest.raises(KilledError):
        score_files(scorer, videos="x/v.mkv", out="r.jsonl", on_score=killed_after(3))
    videos = (tmp_path / "x" / "v.mkv", "x/v.mkv", "y/v.mkv")
    summary = score_files(scorer, videos=videos, out="r.jsonl")
    assert (summary.images, summary.videos, summary.already_there) == (8, 2, 3)
    rows = rows_of(Path("r.jsonl"))
    assert rows[f"{tmp_path}/x/v.mkv"]["frames"] == 5
    assert rows["y/v.mkv"]["frames"] == 3


def test_no_frame_counts_twice_after_a_kill_between_a_parquet_file_and_the_end_of_its_rows(
    scorer: Scorer, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, clip = tmp_path / "r.parquet", clips / "b.mkv"

    remove = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".jsonl":
            raise KilledError
        remove(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(KilledError):
        score_files(scorer, videos=clip, out=out)
    monkeypatch.undo()
    assert out.exists()
    assert out.with_name("r.parquet.jsonl").exists()
    expected = rows_in(out, scorer.manifest.distortions)
    assert score_files(scorer, videos=clip, out=out, retry_errors=True).failed == 1
    assert rows_in(out, scorer.manifest.distortions) == expected


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_videos_survive_sigkill_at_any_change_of_the_disk(
    suffix: str, scorer: Scorer, clips: Path, tmp_path: Path
) -> None:
    """Also when errors are tried again, which replaces the row of the damaged video."""
    names = scorer.manifest.distortions

    def score(out: Path, retry_errors: bool) -> None:
        # A Scorer that was made before the fork has lost its engine.
        score_files(exact_scorer(scorer), videos=clips, out=out, retry_errors=retry_errors)

    score(tmp_path / f"whole{suffix}", False)
    expected, kills = sorted(rows_in(tmp_path / f"whole{suffix}", names)), 0
    for number in range(12):
        draw, out = random.Random(number), tmp_path / f"{number}{suffix}"
        for _ in range(4):
            work = functools.partial(score, out, out.exists() and draw.random() < 0.5)
            kills += killed(work, draw.randint(0, 12), draw)
        score(out, True)
        assert sorted(rows_in(out, names)) == expected
    assert kills > 20


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_broken_video_is_retried(
    suffix: str, scorer: Scorer, clips: Path, tmp_path: Path
) -> None:
    out, clip = tmp_path / f"scores{suffix}", tmp_path / "b.mkv"
    clip.write_bytes((clips / "b.mkv").read_bytes())
    score_files(scorer, videos=clip, out=out)
    write_video(clip, range(0, 4000, 250), gop=4)
    unchanged = rows_in(out, scorer.manifest.distortions)
    score_files(scorer, videos=clip, out=out)
    assert rows_in(out, scorer.manifest.distortions) == unchanged
    kill = killed_after(1)
    with pytest.raises(KilledError):
        score_files(scorer, videos=clip, out=out, retry_errors=True, on_score=kill)
    again = score_files(scorer, videos=clip, out=out, retry_errors=True)
    assert (again.failed, again.scored + again.already_there) == (0, 4)
    (row,) = [row for row in rows_in(out, scorer.manifest.distortions) if row.source == str(clip)]
    whole = score_files(scorer, videos=clip)
    assert whole.scores is not None
    assert (row.value, row.frames) == (whole.scores[-1].value, 4)


def test_a_video_of_which_a_frame_has_no_score_has_none(
    scorer: Scorer, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = scorer.decoder.crops

    def crops(source: Any) -> Any:
        if isinstance(source, np.ndarray) and abs(source.mean() - grey(4)) < 4:
            raise runtime.ImageError("no")
        return fine(source)

    monkeypatch.setattr(scorer.decoder, "crops", crops)
    summary = score_files(scorer, videos=clips / "c.mkv")
    assert summary.scores is not None
    *_, video = summary.scores
    assert (video.error, video.frames) == ("1 of its 3 frames have no score", 2)
    assert math.isnan(video.value)
    assert (summary.scored, summary.failed) == (2, 2)


def test_what_is_refused(scorer: Scorer, clips: Path, tmp_path: Path) -> None:
    photo, out = tmp_path / "a.png", tmp_path / "scores.jsonl"
    photo.write_bytes(png(5))
    for images in ({"paths": photo}, {"listed": [photo]}):
        with pytest.raises(UserError, match="score them in two runs, into two files"):
            score_files(scorer, videos=clips, **images)
    score_files(scorer, videos=clips / "c.mkv", out=out)
    for other in ({"paths": photo}, {"videos": clips / "c.mkv", "every": 0.5}):
        with pytest.raises(UserError, match="holds scores with fingerprint"):
            score_files(scorer, out=out, **other)
    with pytest.raises(UserError, match="no video in "):
        score_files(scorer, videos=str(tmp_path / "*.png"))


def test_frames_of_more_pixels_than_may_be_decoded(scorer: Scorer, clips: Path) -> None:
    decoder = LocalDecoder(scorer.manifest.preprocessing, DecodingLimits(max_pixels=1000))
    strict = Scorer(scorer.manifest, scorer.engine, scorer.session, decoder=decoder)
    summary = score_files(strict, videos=clips / "c.mkv")
    assert (summary.scored, summary.failed, summary.any_scored) == (0, 1, False)
    assert "more than 1000 pixels" in str((summary.scores or ())[0].error)


def test_shards_take_whole_videos_and_merge_counts_them_apart(
    scorer: Scorer, clips: Path, tmp_path: Path
) -> None:
    for index in (1, 2, 3):
        score_files(scorer, videos=clips, out=tmp_path / "shards", shard=Shard(index, 3))
    for file in (tmp_path / "shards").glob("*.jsonl"):
        rows = rows_of(file)
        videos = {source for source, row in rows.items() if "frames" in row}
        assert {source.rpartition("/")[0] for source in rows.keys() - videos} == videos
    merged = merge_shards(tmp_path / "shards", tmp_path / "merged.csv")
    whole = score_files(scorer, videos=clips, out=tmp_path / "whole.csv")
    assert (merged.images, merged.videos, merged.failed) == (whole.images, 3, 1)
    lines = [(tmp_path / name).read_bytes().splitlines() for name in ("merged.csv", "whole.csv")]
    assert sorted(lines[0]) == sorted(lines[1])


def test_explanations_are_of_frames(toy_bundle: Path, clips: Path, tmp_path: Path) -> None:
    with runtime.load(toy_bundle, threads=1) as scorer:
        score_files(scorer, videos=clips / "c.mkv", explain=tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_without_the_extra(
    scorer: Scorer, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"videos need PyAV: .*(video|av)"):
        score_files(scorer, videos=clips, out=tmp_path / "scores.jsonl")
    assert not (tmp_path / "scores.jsonl").exists()
