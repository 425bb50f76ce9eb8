"""Two sets of scores of the same images, in numbers that are counted by hand."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from support.reporting import Recorder
from support.result_files import result_file

from drexperts.evaluation.upgrade import compare_results
from drexperts.evaluation.upgrade_result import (
    Distribution,
    FailedImage,
    MovedImage,
    ResultComparison,
)
from drexperts.evaluation.upgrade_tables import sides_table
from drexperts.runtime import load, score_files
from drexperts.runtime.errors import BundleError, UserError
from drexperts.runtime.manifest import ScoreScale, read_manifest, write_manifest

Compare = Callable[..., ResultComparison]
A = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 40.0, "e": 40.0}
B = {"e": 45.0, "d": 36.0, "c": 30.0, "b": 22.0, "a": 25.0}


@pytest.fixture
def compared(tmp_path: Path) -> Compare:
    """Compares two dictionaries of scores, in files with these suffixes."""

    def compare(
        a: Mapping[str, float | str],
        b: Mapping[str, float | str],
        suffixes: tuple[str, str] = (".jsonl", ".jsonl"),
        **options: object,
    ) -> ResultComparison:
        files = (tmp_path / f"a{suffixes[0]}", tmp_path / f"b{suffixes[1]}")
        written = [result_file(*pair) for pair in zip(files, (a, b), strict=True)]
        return compare_results(*written, **options)  # type: ignore[arg-type]

    return compare


def test_by_hand(compared: Compare) -> None:
    found = compared(A, B, threshold=3.0)
    assert (found.images, found.only_a, found.only_b) == (5, 0, 0)
    # Ranks 1, 2, 3, 4.5, 4.5 and 2, 1, 3, 4, 5.
    assert found.srcc == pytest.approx(8.5 / math.sqrt(9.5 * 10))
    assert found.srcc == pytest.approx(stats.spearmanr(list(A.values()), [25, 22, 30, 36, 45])[0])
    # d and e are tied in A; of the other nine pairs a and b changed places.
    assert found.flips == (1, 9)
    assert found.clear_flips == (1, 9)
    assert (found.moved, found.largest) == (3, 15.0)
    assert found.scores_a == Distribution(28.0, 10.0, 12.0, 30.0, 40.0, 40.0)
    assert found.scores_b.median == 30.0
    assert found.changes == pytest.approx(Distribution(3.6, -4.0, -3.2, 2.0, 13.0, 15.0))
    assert found.most_moved == (
        MovedImage("a", 10.0, 25.0, 15.0),
        MovedImage("e", 40.0, 45.0, 5.0),
        MovedImage("d", 40.0, 36.0, -4.0),
        MovedImage("b", 20.0, 22.0, 2.0),
    )


def test_the_threshold_is_a_hundredth_of_the_scale(compared: Compare) -> None:
    found = compared({"a": 1.0, "b": 2.5, "c": 3.0}, {"a": 2.5, "b": 2.0, "c": 3.0})
    assert (found.threshold, found.moved) == (1.0, 1)
    assert found.flips == (1, 3)
    assert found.clear_flips == (1, 2)  # b and c are too close


def test_errors_and_images_of_one_side_only(compared: Compare) -> None:
    a = A | {"f": "bad", "g": "bad", "h": 1.0, "i": 2.0, "only": 3.0}
    b = B | {"g": "worse", "i": "worse", "h": "cannot", "f": 1.0, "x": 1.0, "y": "bad"}
    found = compared(a, b)
    assert (found.images, found.only_a, found.only_b) == (5, 1, 2)
    assert (found.failed_a, found.failed_b, found.failed_both) == (1, 2, 1)
    assert (found.a.images, found.a.failed, found.b.images, found.b.failed) == (10, 2, 11, 4)
    assert found.newly_failed == (FailedImage("h", "cannot"), FailedImage("i", "worse"))
    assert found.flips == (1, 9)


def test_rows_of_videos_are_left_out_and_counted(tmp_path: Path) -> None:
    names = ("v/0.000", "v/1.000", "v", "w/0.000")
    for file, values in {"a.jsonl": (1.0, 2.0, 1.5, 3.0), "b.jsonl": (1.0, 4.0, 2.5, "no")}.items():
        scores: dict[str, float | str] = dict(zip(names, values, strict=True))  # type: ignore[arg-type]
        path = result_file(tmp_path / file, scores)
        lines = path.read_text().splitlines(keepends=True)
        lines[2] = lines[2].replace("}\n", ', "frames": 2}\n')
        path.write_text("".join(lines))
    found = compare_results(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert (found.a.videos, found.a.images, found.images) == (1, 3, 2)
    assert found.most_moved == (MovedImage("v/1.000", 2.0, 4.0, 2.0),)
    assert found.newly_failed == (FailedImage("w/0.000", "no"),)
    assert ("videos, left out", "1", "1") in sides_table(found).rows


@pytest.mark.parametrize("first", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("second", [".jsonl", ".csv", ".parquet"])
def test_formats_do_not_matter(compared: Compare, first: str, second: str) -> None:
    same = A | {'caf\u00e9, "1".jpg': 1 / 3, os.fsdecode(b"\xff.jpg"): 2 / 3, "bad": "bad"}
    found = compared(same, same, (first, second))
    assert (found.images, found.failed_both, found.largest) == (7, 1, 0.0)
    assert [found.srcc, found.plcc] == pytest.approx([1.0, 1.0])
    assert (found.flips.flips, found.most_moved) == (0, ())
    moved = dict.fromkeys(same, 5.0)
    names = [each.source for each in compared(same, moved, (second, first)).most_moved]
    assert sorted(names) == sorted(same.keys() - {"bad"})


def test_a_constant_side_has_no_correlation(compared: Compare) -> None:
    found = compared(A, dict.fromkeys(A, 1.0))
    assert math.isnan(found.srcc)
    assert found.as_json()["srcc"] is None
    assert found.flips == (0, 9)
    alone = compared({"a": 1.0}, {"a": 2.0})
    assert (alone.images, alone.flips, alone.largest) == (1, (0, 0), 1.0)
    assert math.isnan(alone.plcc)


def test_the_document_is_json(compared: Compare) -> None:
    document = json.loads(json.dumps(compared(A, B).as_json(), allow_nan=False))
    assert document["flips"] == {"flips": 1, "pairs": 9}
    assert document["most_moved"][0] == {"source": "a", "a": 10.0, "b": 25.0, "change": 15.0}
    assert document["a"]["scale"] == {"low": 0.0, "high": 100.0, "higher_is_better": True}
    assert "values" not in document


def test_images_that_nobody_shares(compared: Compare) -> None:
    with pytest.raises(UserError, match="'a' and 'x' are compared as paths"):
        compared(A, {"x": 1.0})
    with pytest.raises(UserError, match="none of the 1 images"):
        compared({"a": 1.0}, {"a": "bad"})


@pytest.mark.parametrize("threshold", [-1.0, math.nan, math.inf])
def test_a_threshold_that_cannot_be(compared: Compare, threshold: float) -> None:
    with pytest.raises(UserError, match="at least 0"):
        compared(A, B, threshold=threshold)


@pytest.mark.parametrize(
    ("scale", "values"),
    [
        (ScoreScale(-1.0, 1.0, higher_is_better=True), (-0.8, 0.0, 1.0)),
        (ScoreScale(0.0, 10.0, higher_is_better=False), (9.0, 5.0, 0.0)),
    ],
)
def test_other_scales_are_refused_and_mapped_when_told(
    tmp_path: Path, scale: ScoreScale, values: tuple[float, ...]
) -> None:
    a = result_file(tmp_path / "a.csv", {"a": 10.0, "b": 50.0, "c": 90.0})
    b = result_file(tmp_path / "b.csv", dict(zip("abc", values, strict=True)), scale=scale)
    with pytest.raises(UserError, match=r"do not mean the same \(scale: 0 to 100, higher"):
        compare_results(a, b)
    found = compare_results(a, b, across=True)
    assert len(found.differing) == 1
    np.testing.assert_allclose(found.values[1], [10.0, 50.0, 100.0], atol=1e-12)
    assert found.largest == pytest.approx(10.0)
    assert found.srcc == pytest.approx(1.0)
    assert found.b.scale == scale


def test_another_grid_is_refused_and_another_fingerprint_is_the_point(tmp_path: Path) -> None:
    a = result_file(tmp_path / "a.csv", A)
    b = result_file(tmp_path / "b.csv", B, "e" * 16, crops_per_side=2)
    with pytest.raises(UserError, match="crops per side: the bundle's own in A, 2 in B"):
        compare_results(a, b)
    assert compare_results(a, b, across=True).images == 5
    assert compare_results(b, b).differing == ()
    by_bundle = result_file(tmp_path / "d.csv", B, "e" * 16)  # whose own grid is 2
    assert compare_results(by_bundle, b).differing == ()
    other = result_file(tmp_path / "c.csv", B, "d" * 16)
    assert compare_results(a, other).b.fingerprint == "d" * 16


def test_many_images_are_those_of_numpy(compared: Compare) -> None:
    random = np.random.default_rng(0)
    a = random.random(2000) * 100
    b = a + random.normal(size=2000)
    names = [f"{i}.jpg" for i in range(2000)]
    shuffled = random.permutation(2000).tolist()
    found = compared(
        dict(zip(names, a.tolist(), strict=True)), {names[i]: float(b[i]) for i in shuffled}
    )
    assert found.srcc == pytest.approx(stats.spearmanr(a, b).statistic)
    assert found.plcc == pytest.approx(stats.pearsonr(a, b).statistic)
    assert found.moved == np.sum(np.abs(b - a) > 1)
    assert found.changes.p95 == pytest.approx(np.quantile(b - a, 0.95))
    order = np.argsort(-np.abs(b - a))[:20]
    assert [each.source for each in found.most_moved] == [names[i] for i in order]


@pytest.fixture
def pictures(tmp_path: Path, photo: Callable[..., Image.Image]) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        photo(60, 40, seed).save(folder / f"{seed}.png")
    (folder / "broken.jpg").write_bytes(b"junk")
    return folder


def changed(bundle: Path, folder: Path, **changes: object) -> Path:
    """A copy of a bundle whose manifest says something else."""
    shutil.copytree(bundle, folder)
    write_manifest(dataclasses.replace(read_manifest(folder), **changes), folder)  # type: ignore[arg-type]
    return folder


@pytest.mark.slow
def test_bundles_score_the_images(toy_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    progress = Recorder()
    found = compare_results(toy_bundle, toy_bundle, pictures, progress=progress)
    assert (found.images, found.failed_both, found.largest) == (3, 1, 0.0)
    assert found.a.name == str(toy_bundle)
    assert any("scoring with" in note for note in progress.notes)
    with load(toy_bundle) as scorer:
        score_files(scorer, pictures, tmp_path / "before.parquet")
    again = compare_results(tmp_path / "before.parquet", toy_bundle, [pictures])
    assert (again.largest, again.a.preprocessing) == (0.0, None)
    assert again.a.fingerprint == again.b.fingerprint == found.a.fingerprint


@pytest.mark.slow
def test_bundles_of_another_preprocessing(toy_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    own = read_manifest(toy_bundle).preprocessing
    fewer = dataclasses.replace(own, crops_per_side=own.crops_per_side + 1)
    other = changed(toy_bundle, tmp_path / "other", preprocessing=fewer)
    grid = own.crops_per_side
    progress = Recorder()
    said = f"crops_per_side of the preprocessing: {grid} in A, {grid + 1} in B"
    with pytest.raises(UserError, match=rf"\({said}\)"):
        compare_results(toy_bundle, other, pictures, progress=progress)
    assert progress.notes == []  # before anything is scored
    assert compare_results(toy_bundle, other, pictures, across=True).images == 3


def test_sides_that_cannot_be(toy_bundle: Path, tmp_path: Path) -> None:
    file = result_file(tmp_path / "a.csv", A)
    with pytest.raises(UserError, match="is a bundle: name images"):
        compare_results(file, toy_bundle)
    with pytest.raises(UserError, match="name no images"):
        compare_results(file, file, "pictures")
    with pytest.raises(BundleError):
        compare_results(tmp_path, file, "pictures")
    result_file(tmp_path / "shards" / "shard-1-of-2.jsonl", A)
    with pytest.raises(UserError, match="merge them first"):
        compare_results(tmp_path / "shards", file)
