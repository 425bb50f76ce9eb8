"""`score_files`: which images it scores, and where the scores go."""

import dataclasses
import io
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.archives import exact_scorer, png, write_parquet, write_tar
from support.memory_bucket import memory_bucket
from support.reporting import Recorder

from drexperts import runtime
from drexperts.runtime import Score, Scorer, UserError, score_files
from drexperts.runtime.decoding.decoders import LocalDecoder
from drexperts.runtime.inputs import remote


@pytest.fixture(scope="module")
def scorer(toy_bundle: Path) -> Scorer:
    return runtime.load(toy_bundle, threads=1)


@pytest.fixture
def folder(tmp_path: Path, photo: Callable[..., Image.Image]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        photo(40, 36, seed).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"junk")
    return folder


def test_scores_are_returned_in_the_order_of_the_paths(scorer: Scorer, folder: Path) -> None:
    progress, seen = Recorder(), list[Score]()
    summary = score_files(scorer, [folder], progress=progress, on_score=seen.append)
    assert (summary.images, summary.scored, summary.failed, summary.any_scored) == (3, 2, 1, True)
    assert (summary.already_there, summary.out) == (0, None)
    # As rows: the NaN of the broken image equals no other, itself included.
    expected = [score.as_row() for score in scorer.score_stream(sorted(folder.iterdir()))]
    assert [score.as_row() for score in summary.scores or ()] == expected
    assert [score.source for score in seen] == [score.source for score in summary.scores or ()]
    assert progress.messages == ["scoring"] * 4
    assert summary.enlarged == summary.as_json()["enlarged"] == 0
    document = json.loads(json.dumps(summary.as_json()))
    assert [row["source"] for row in document["results"]] == [score.source for score in seen]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_result_file_is_continued(
    suffix: str, scorer: Scorer, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"scores{suffix}"
    first = score_files(scorer, [folder], out)
    assert (first.scored, first.failed, first.out, first.scores) == (2, 1, out, None)
    shutil.copy(folder / "a.png", folder / "c.png")
    again = score_files(scorer, [folder], str(out))
    assert (again.images, again.already_there, again.scored, again.failed) == (4, 3, 1, 0)
    shutil.copy(folder / "a.png", folder / "broken.jpg")
    retried = score_files(scorer, folder, out, retry_errors=True)
    assert (retried.already_there, retried.scored, retried.any_scored) == (3, 1, True)
    nothing_to_do = score_files(scorer, [folder], out)
    assert (nothing_to_do.scored, nothing_to_do.any_scored) == (0, True)
    assert score_files(scorer, [folder], out, overwrite=True).scored == 4


class KilledError(Exception):
    """Ends a run after a row, as SIGKILL would: nothing is written after it."""


class PlacedSession:
    """An engine whose rounding depends on a crop's place and on the size of its batch."""

    max_batch, concurrency, description = 8, 1, "placed"

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        places = np.arange(len(pixels)) + 100 * len(pixels)
        scores = pixels.mean((1, 2, 3)) + places / 1000
        return {"score": scores.astype(np.float32), "weights": np.zeros((len(pixels), 10), "f4")}

    def close(self) -> None:
        pass


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("batch", [3, 8])
def test_a_killed_run_ends_with_the_file_of_one_that_was_not(
    suffix: str, batch: int, scorer: Scorer, photo: Callable[..., Image.Image], tmp_path: Path
) -> None:
    folder, whole = tmp_path / "photos", tmp_path / f"whole{suffix}"
    folder.mkdir()
    for seed in range(18):  # of one or two crops each
        photo(32 + 40 * (seed % 3), 32, seed).save(folder / f"{seed:02}.png")
    (folder / "04.png").write_bytes(b"junk")
    manifest = dataclasses.replace(scorer.manifest, outputs=("score", "weights"))
    placed = Scorer(manifest, scorer.engine, PlacedSession(), batch=batch)
    assert len({len(row.raw) for row in placed.score_stream(sorted(folder.iterdir()))}) > 2
    score_files(placed, folder, whole)

    for rows in (1, batch, 11):
        out = tmp_path / f"{rows}{suffix}"
        for more in (rows, 4):
            with pytest.raises(KilledError):
                score_files(placed, folder, out, on_score=killed_after(more))
        summary = score_files(placed, folder, out)
        assert out.read_bytes() == whole.read_bytes()
        assert (summary.already_there, summary.scored + summary.failed) == (rows + 4, 14 - rows)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".parquet"])
def test_a_killed_run_over_an_archive_does_so_too(
    suffix: str, scorer: Scorer, photo: Callable[..., Image.Image], tmp_path: Path
) -> None:
    pictures = [encoded(photo(32 + 40 * (seed % 3), 32, seed)) for seed in range(18)]
    archive, whole = tmp_path / f"x{suffix}", tmp_path / "whole.jsonl"
    if suffix == ".parquet":
        write_parquet(archive, {"image": pictures}, rows_per_group=5)
    else:
        write_tar(archive, [(f"{i}.png", data) for i, data in enumerate(pictures)])
    manifest = dataclasses.replace(scorer.manifest, outputs=("score", "weights"))
    placed = Scorer(manifest, scorer.engine, PlacedSession(), batch=3)
    score_files(placed, archive, whole)
    for rows in (1, 3, 11):
        out = tmp_path / f"{rows}.jsonl"
        for more in (rows, 4):
            with pytest.raises(KilledError):
                score_files(placed, archive, out, on_score=killed_after(more))
        summary = score_files(placed, archive, out)
        assert out.read_bytes() == whole.read_bytes()
        assert (summary.already_there, summary.scored) == (rows + 4, 14 - rows)


GREY = png(5)


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drexperts.runtime.digests._RECENT", 64)
    quick = exact_scorer(scorer, batch=8)

    def peak_of(count: int) -> int:
        path = write_tar(tmp_path / f"{count}.tar", ((f"{i}.png", GREY) for i in range(count)))
        tracemalloc.start()
        summary = score_files(quick, path, tmp_path / f"{count}.jsonl")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert summary.scored == count
        return peak

    few = peak_of(800)  # which is more than is read of an archive at once
    assert peak_of(2400) < few + 1600 * 16 * 2 + 2**14


def test_a_broken_archive_costs_its_own_row(scorer: Scorer, tmp_path: Path) -> None:
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", [(f"{i}.png", png(i)) for i in range(3)])
    data = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(data[:1600])
    out = tmp_path / "r.jsonl"
    summary = score_files(scorer, f"{tmp_path}/*.tar", out)
    assert (summary.scored, summary.failed) == (7, 2)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["source"] for row in rows if row["error"]] == [
        f"{tmp_path}/b.tar/1.png",
        f"{tmp_path}/b.tar",
    ]
    (tmp_path / "b.tar").write_bytes(data)
    summary = score_files(scorer, f"{tmp_path}/*.tar", out, retry_errors=True)
    assert (summary.already_there, summary.scored, summary.failed) == (7, 2, 0)


def test_the_total_is_known_where_all_was_listed_and_lists_are_not_listed_ahead(
    scorer: Scorer, folder: Path, tmp_path: Path
) -> None:
    def totals(*paths: Path) -> set[int | None]:
        seen = list[int | None]()
        score_files(
            scorer, paths, progress=Recorder(at=lambda text, done, total: seen.append(total))
        )
        return set(seen)

    assert totals(folder) == {3}
    asked = list[int]()

    def names() -> Iterator[Path]:
        for asked_for in range(40):
            asked.append(asked_for)
            yield folder / f"{asked_for}.png"

    with pytest.raises(KilledError):
        score_files(scorer, (), listed=names(), on_score=killed_after(1))
    assert len(asked) < 20
    archive = write_tar(tmp_path / "x.tar", [("a.png", png(1))])
    assert totals(folder, archive) == {None}


def killed_after(rows: int) -> Callable[[Score], None]:
    left = iter(range(rows - 1))

    def count(_: Score) -> None:
        if next(left, None) is None:
            raise KilledError

    return count


def test_one_image_is_scored_once_however_its_path_is_spelled(
    scorer: Scorer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores.jsonl"
    score_files(scorer, [folder / "a.png"], out)
    monkeypatch.chdir(folder)
    assert score_files(scorer, ["./a.png"], out).already_there == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_link_to_a_result_file_stays_one(
    suffix: str, scorer: Scorer, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    link, real = tmp_path / f"link{suffix}", tmp_path / "real" / f"r{suffix}"
    link.symlink_to(real)
    score_files(scorer, [folder], link)
    shutil.copy(folder / "a.png", folder / "broken.jpg")
    assert score_files(scorer, [folder], link, retry_errors=True).scored == 1
    assert link.is_symlink()
    assert score_files(scorer, [folder], real, retry_errors=True).already_there == 3
    assert os.listdir(real.parent) == [real.name]


def test_a_key_that_comes_again_is_counted_as_a_failure(scorer: Scorer, tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "x.parquet", {"image": [png(1), png(2)], "key": ["a", "a"]})
    out = tmp_path / "r.jsonl"
    for first in (True, False):
        summary = score_files(scorer, table, out, key_column="key")
        counts = (summary.scored, summary.failed, summary.already_there, summary.repeated)
        assert counts == ((1, 1, 0, 1) if first else (0, 0, 2, 1))
    # Without it the rows are numbered, and what is wrong no longer is.
    summary = score_files(scorer, table, out, retry_errors=True)
    assert (summary.scored, summary.failed, summary.repeated) == (2, 0, 0)
    assert [json.loads(line)["error"] for line in out.read_text().splitlines()] == [None] * 3


def test_a_result_file_of_another_grid_is_refused(
    scorer: Scorer, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.jsonl"
    score_files(scorer, [folder], out)
    decoder = LocalDecoder(dataclasses.replace(scorer.preprocessing, crops_per_side=1))
    other = Scorer(scorer.manifest, scorer.engine, scorer.session, decoder=decoder)
    before = out.read_bytes()
    with pytest.raises(UserError, match=scorer.fingerprint()):
        score_files(other, [folder], out)
    assert out.read_bytes() == before


@pytest.mark.parametrize("pictures", ["explained", "."])
@pytest.mark.slow
def test_pictures_of_an_earlier_run_are_not_scored(
    pictures: str, scorer: Scorer, folder: Path
) -> None:
    for _ in range(2):
        summary = score_files(scorer, [folder], explain=folder / pictures)
        assert (summary.scored, summary.failed) == (2, 1)
    names = [path.name for path in (folder / pictures).iterdir() if path.name.count(".") == 2]
    assert sorted(name.split("-")[0] for name in names) == ["a.png", "b.png"]


def test_images_with_a_row_get_no_new_picture(scorer: Scorer, folder: Path, tmp_path: Path) -> None:
    score_files(scorer, [folder], tmp_path / "r.csv")
    progress = Recorder()
    score_files(scorer, [folder], tmp_path / "r.csv", explain=tmp_path / "e", progress=progress)
    assert os.listdir(tmp_path / "e") == []
    assert "3" in progress.notes[0]


def test_a_list_of_anything_costs_no_more_than_its_lines(scorer: Scorer, tmp_path: Path) -> None:
    """As a list in UTF-16, or a picture for a list, would be read."""
    names = [
        "a\0.png",
        "\0/../a.png",
        "\0.tar",
        "\0.parquet",
        "x" * 5000,
        "\udcff\n\x1b",
        "::",
        "/",
    ]
    out = tmp_path / "r.jsonl"
    summary = score_files(scorer, listed=names, out=out)
    assert (summary.scored, summary.failed) == (0, len(names))
    assert [json.loads(line)["source"] for line in out.read_text().splitlines()] == names
    assert score_files(scorer, listed=names, out=out).already_there == len(names)


def test_an_explained_image_is_fetched_once(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network could fail the second time, or hold another image."""
    fetched, fetch = list[str](), remote._fetched

    def counted(url: str, largest: int) -> bytes:
        fetched.append(url)
        return fetch(url, largest)

    monkeypatch.setattr(remote, "_fetched", counted)
    with memory_bucket() as system:
        for i in range(3):
            system.pipe(f"/bucket/{i}.png", png(i))
        summary = score_files(scorer, "memory://bucket", explain=tmp_path / "e")
    assert (summary.scored, len(fetched), len(os.listdir(tmp_path / "e"))) == (3, 3, 3)


def test_what_cannot_be_scored(scorer: Scorer, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path / "none")):
        score_files(scorer, [tmp_path / "none"])
    with pytest.raises(UserError, match="out="):
        score_files(scorer, [folder], overwrite=True)
    with pytest.raises(UserError, match="out="):
        score_files(scorer, [folder], retry_errors=True)
    manifest = dataclasses.replace(scorer.manifest, outputs=("score", "weights"))
    without_maps = Scorer(manifest, scorer.engine, scorer.session)
    with pytest.raises(UserError, match="maps"):
        score_files(without_maps, [folder], explain=tmp_path / "e")
