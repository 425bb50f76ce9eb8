"""`score_files`: which images it scores, and where the scores go."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.reporting import Recorder

from drexperts import runtime
from drexperts.runtime import Score, Scorer, UserError, score_files


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


def test_one_image_is_scored_once_however_its_path_is_spelled(
    scorer: Scorer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores.jsonl"
    score_files(scorer, [folder / "a.png"], out)
    monkeypatch.chdir(folder)
    assert score_files(scorer, ["./a.png"], out).already_there == 1


def test_a_result_file_of_another_bundle_is_refused(
    scorer: Scorer, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.jsonl"
    score_files(scorer, [folder], out)
    spec = dataclasses.replace(scorer.manifest.preprocessing, crops_per_side=1)
    manifest = dataclasses.replace(scorer.manifest, preprocessing=spec)
    other = Scorer(manifest, scorer.engine, scorer.session)
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


def test_what_cannot_be_scored(scorer: Scorer, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path / "none")):
        score_files(scorer, [tmp_path / "none"])
    with pytest.raises(UserError, match="--out"):
        score_files(scorer, [folder], overwrite=True)
    with pytest.raises(UserError, match="--out"):
        score_files(scorer, [folder], retry_errors=True)
    manifest = dataclasses.replace(scorer.manifest, outputs=("score", "weights"))
    without_maps = Scorer(manifest, scorer.engine, scorer.session)
    with pytest.raises(UserError, match="maps"):
        score_files(without_maps, [folder], explain=tmp_path / "e")
