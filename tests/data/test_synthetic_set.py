"""`synthesise`: what it writes, that it repeats itself, and that it survives a kill."""

import csv
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.reporting import Recorder

from drexperts.data.distortions import SYNTHETIC_TYPES, distort
from drexperts.data.layouts import open_dataset
from drexperts.data.synthetic_set import (
    COLUMNS,
    SynthConfig,
    parse_levels,
    similarity,
    synthesise,
    tensor_from_image,
)
from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import ConfigError, DataError, UserError
from drexperts.runtime.locks import locked
from drexperts.runtime.manifest import ScoreScale

UNEVEN = ("colour_block", "non_eccentricity_patch", "colour_quantisation")
FEW = SynthConfig(types=("jpeg", "white_noise", "lens_blur"), levels=(1, 4), blocks=2)
# Killed when ten images are whole and the next is written aside.
KILLED = """
import os, signal, sys
from pathlib import Path
from drexperts.data import synthetic_set as synth

replace, clean, out = os.replace, *map(Path, sys.argv[1:])

def killed(*paths):
    if len(list(out.glob("images/*/*.png"))) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)

os.replace = killed
synth.synthesise(clean, out, synth.SynthConfig(blocks=1), workers=1)
"""


@pytest.fixture
def clean(tmp_path: Path, photo: Callable[..., Image.Image]) -> Path:
    """Three pictures, two of one stem."""
    folder = tmp_path / "clean"
    (folder / "sub").mkdir(parents=True)
    photo(48, 40, seed=1).save(folder / "a.png")
    photo(40, 56, seed=2).save(folder / "sub" / "a.png")
    photo(64, 44, seed=3).convert("L").save(folder / "ü, b.bmp")
    return folder


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "labels.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def files_of(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_every_type_and_level_by_default(tmp_path: Path, photo: Callable[..., Image.Image]) -> None:
    (tmp_path / "clean").mkdir()
    photo(20, 16).save(tmp_path / "clean" / "x.png")
    made = synthesise(tmp_path / "clean", tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert made.images == made.made == len(rows) == 1 + 25 * 5
    kinds = {(row["distortion"], row["level"]) for row in rows}
    assert kinds == {(n, str(level)) for n in SYNTHETIC_TYPES for level in range(1, 6)} | {
        ("none", "0")
    }
    assert not (tmp_path / "out" / "blocks.json").exists()


def test_rows_describe_the_files(clean: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = synthesise(str(clean), str(out), FEW, workers=1)
    assert (report.pictures, report.images, report.skipped) == (3, 27, ())
    rows = rows_of(out)
    assert tuple(rows[0]) == COLUMNS
    assert len({row["path"] for row in rows}) == len(list((out / "images").rglob("*.png"))) == 27
    groups = {row["group"] for row in rows}
    about = json.loads((out / "about.json").read_text())
    assert sorted(about["pictures"].values()) == ["a.png", "sub/a.png", "ü, b.bmp"]
    assert groups == about["pictures"].keys()
    for row in rows:
        source = decode(clean / about["pictures"][row["group"]])
        reference, image = (
            tensor_from_image(picture) for picture in (source, decode(out / row["path"]))
        )
        assert float(row["score"]) == pytest.approx(100 * similarity(reference, image), abs=1e-3)
        assert (row["distortion"] == "none") == (float(row["score"]) == 100)
    assert about["score"] == report.score
    dataset = open_dataset("folder", report.labels)
    assert len(dataset.samples) == 27
    assert {sample.group for sample in dataset.samples} == {group.casefold() for group in groups}


def test_flat_and_transparent_pictures_have_labels_of_the_scale(tmp_path: Path) -> None:
    folder = tmp_path / "clean"
    folder.mkdir()
    for grey in (1, 128, 254, 255):
        Image.new("L", (40, 24), grey).save(folder / f"{grey}.png")
    Image.new("RGBA", (24, 40), (1, 2, 3, 0)).save(folder / "transparent.png")
    synthesise(folder, tmp_path / "out", SynthConfig(levels=(1, 5)), workers=1)
    scale = ScoreScale(0, 100, higher_is_better=True)
    dataset = open_dataset("folder", tmp_path / "out" / "labels.csv", scale=scale)
    labels = [sample.label for sample in dataset.samples]
    assert len(labels) == 5 * (1 + 25 * 2)
    assert (max(labels), dataset.scale) == (100, scale)


@pytest.mark.parametrize("grey", [0, 128, 254, 255])
def test_the_similarity_of_flat_pictures_is_at_most_one(grey: int) -> None:
    first, second = (torch.full((3, 40, 40), value / 255) for value in (grey, max(grey - 1, 0)))
    assert similarity(first, first) == pytest.approx(1, abs=1e-9)
    assert similarity(first, second) <= 1 + 1e-9


@pytest.mark.slow
def test_scores_fall_with_the_level(tmp_path: Path, photo: Callable[..., Image.Image]) -> None:
    (tmp_path / "clean").mkdir()
    for seed in range(3):
        photo(120, 90, seed=seed).save(tmp_path / "clean" / f"{seed}.png")
    types = tuple(name for name, kind in SYNTHETIC_TYPES.items() if kind.monotone)
    synthesise(tmp_path / "clean", tmp_path / "out", SynthConfig(types=types), workers=1)
    scores: dict[tuple[str, str], list[float]] = {}
    for row in rows_of(tmp_path / "out"):
        scores.setdefault((row["group"], row["distortion"]), []).append(float(row["score"]))
    for (group, name), falling in scores.items():
        # A square that is pasted over another one can be liker to what both of them hide, and so
        # can the nearest of fewer colours.
        allowed = 5.0 if name in UNEVEN else 0.1
        rises = [after - before for before, after in itertools.pairwise(falling)]
        assert max(rises, default=0) <= allowed, (group, name, falling)
        assert name == "none" or falling[-1] < falling[0], (group, name, falling)


def test_a_colour_shift_is_one_direction_for_all_levels(
    tmp_path: Path, photo: Callable[..., Image.Image]
) -> None:
    """In a direction along which a picture changes little, a small shift can be the larger one."""
    (tmp_path / "clean").mkdir()
    for seed in range(3):
        stripes = photo(60, 1, seed=seed).resize((60, 48), Image.Resampling.NEAREST)
        stripes.save(tmp_path / "clean" / f"{seed}.png")
    synthesise(
        tmp_path / "clean", tmp_path / "out", SynthConfig(types=("colour_shift",)), workers=1
    )
    scores = [float(r["score"]) for r in rows_of(tmp_path / "out") if r["level"] != "0"]
    for start in range(0, len(scores), 5):
        falling = scores[start : start + 5]
        assert falling == sorted(falling, reverse=True)


def test_a_higher_level_has_the_draws_of_a_lower_one(clean: Path, tmp_path: Path) -> None:
    types = ("colour_block", "impulse_noise")
    synthesise(clean, tmp_path / "out", SynthConfig(types=types), workers=1)
    for folder in (tmp_path / "out" / "images").iterdir():
        before = tensor_from_image(decode(folder / "clean.png"))
        for name in types:
            changed = [
                (tensor_from_image(decode(folder / f"{name}-{level}.png")) != before).any(0)
                for level in range(1, 6)
            ]
            for fewer, more in itertools.pairwise(changed):
                assert (fewer & more).sum() >= 0.98 * fewer.sum()


def test_compositions_have_the_blocks_they_say(clean: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exact = SynthConfig(types=("darken", "mean_shift", "quantisation"), blocks=3)
    synthesise(clean, out, exact, workers=1)
    blocks = json.loads((out / "blocks.json").read_text())
    composed = [row for row in rows_of(out) if row["distortion"] == "blocks"]
    assert {row["path"] for row in composed} == blocks.keys()
    assert {row["level"] for row in composed} == {""}
    grids = set()
    for path, rows in blocks.items():
        grid = len(rows)
        grids.add(grid)
        image = tensor_from_image(decode(out / path))
        whole = tensor_from_image(decode((out / path).parent / "clean.png"))
        assert len({name for row in rows for name, _ in row}) == 3
        for r, row in enumerate(rows):
            for c, (name, level) in enumerate(row):
                height, width = image.shape[1:]
                part = (
                    slice(None),
                    slice(r * height // grid, (r + 1) * height // grid),
                    slice(c * width // grid, (c + 1) * width // grid),
                )
                # These types draw nothing, so that a generator of any seed gives the same.
                expected = distort(whole, name, level, torch.Generator())[part]
                torch.testing.assert_close(image[part], expected, rtol=0, atol=0.51 / 255)
    assert grids <= {2, 3, 4}
    assert len(grids) > 1


def test_a_subset_repeats_the_same_images(clean: Path, tmp_path: Path) -> None:
    synthesise(clean, tmp_path / "all", FEW, workers=1)
    (clean / "a.png").unlink()
    few = SynthConfig(types=("white_noise",), levels=(4,))
    synthesise(clean, tmp_path / "few", few, workers=1)
    every, some = files_of(tmp_path / "all" / "images"), files_of(tmp_path / "few" / "images")
    assert len(some) == 4
    assert some.items() <= every.items()
    noise = [content for name, content in every.items() if "white_noise-4" in name]
    assert len(set(noise)) == 3
    synthesise(clean, tmp_path / "other", SynthConfig(("white_noise",), (4,), seed=1), workers=1)
    other = files_of(tmp_path / "other" / "images")
    assert {name for name in some if some[name] != other[name]} == {
        name for name in some if "noise" in name
    }


@pytest.mark.slow
def test_processes_make_the_same_set(clean: Path, tmp_path: Path) -> None:
    screen = Recorder()
    synthesise(clean, tmp_path / "one", FEW, workers=1)
    synthesise(clean, tmp_path / "two", FEW, workers=2, progress=screen)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert "27 images" in screen.messages[-1]


def test_a_second_call_replaces_missing_and_damaged_images(clean: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    synthesise(clean, out, FEW, workers=1)
    before = files_of(out)
    images = sorted(out.rglob("*.png"))
    images[3].unlink()
    images[7].write_bytes(images[7].read_bytes()[:100])
    (out / "labels.csv").unlink()
    (images[9].parent / (images[9].name + ".part")).write_bytes(b"torn")
    images[9].unlink()
    kept = images[5].stat().st_mtime_ns
    report = synthesise(clean, out, FEW, workers=1)
    assert (report.made, report.already_there) == (3, 24)
    assert files_of(out) == before
    assert images[5].stat().st_mtime_ns == kept


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(clean: Path, tmp_path: Path) -> None:
    synthesise(clean, tmp_path / "whole", SynthConfig(blocks=1), workers=1)
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-P", "-c", KILLED, str(clean), str(out)], check=False)
    assert len(list(out.glob("images/*/*.png"))) == 10
    assert not (out / "labels.csv").exists()
    report = synthesise(clean, out, SynthConfig(blocks=1), workers=1)
    assert report.made == report.images - 10
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "other", [SynthConfig(seed=1), SynthConfig(types=("jpeg",)), SynthConfig(side=32)]
)
def test_other_settings_are_refused(clean: Path, tmp_path: Path, other: SynthConfig) -> None:
    synthesise(clean, tmp_path / "out", FEW, workers=1)
    before = files_of(tmp_path / "out")
    with pytest.raises(UserError, match=str(tmp_path / "out")):
        synthesise(clean, tmp_path / "out", other, workers=1)
    assert files_of(tmp_path / "out") == before


def test_a_changed_picture_is_refused(
    clean: Path, tmp_path: Path, photo: Callable[..., Image.Image]
) -> None:
    synthesise(clean, tmp_path / "out", FEW, workers=1)
    photo(48, 40, seed=9).save(clean / "a.png")
    with pytest.raises(UserError, match=r"a\.png"):
        synthesise(clean, tmp_path / "out", FEW, workers=1)


def test_a_set_that_another_process_makes_is_refused(clean: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    with locked(out, inside=True), pytest.raises(UserError, match="process"):
        synthesise(clean, out, SynthConfig(types=("jpeg",), levels=(1,)))
    assert list(out.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(clean: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match=str(out)):
        synthesise(clean, out, FEW)
    (out / "about.json").write_text("[]")
    with pytest.raises(UserError, match="format"):
        synthesise(clean, out, FEW)
    (out / "about.json").write_text("{")
    with pytest.raises(UserError, match=r"about\.json"):
        synthesise(clean, out, FEW)
    assert len(files_of(out)) == 2


def test_unusable_pictures_are_left_out(
    clean: Path, tmp_path: Path, photo: Callable[..., Image.Image]
) -> None:
    (clean / "torn.png").write_bytes((clean / "a.png").read_bytes()[:200])
    photo(15, 40).save(clean / "small.png")
    photo(400, 20).save(clean / "long.png")
    Image.new("RGB", (1, 1)).save(clean / "dot.png")
    report = synthesise(clean, tmp_path / "out", FEW, workers=1)
    assert (report.pictures, len(rows_of(tmp_path / "out"))) == (3, 27)
    names = ("dot.png", "long.png", "small.png", "torn.png")
    assert len(report.skipped) == 4
    assert all(name in note for name, note in zip(names, report.skipped, strict=True))
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert tuple(about["skipped"]) == report.skipped


def test_a_set_needs_a_usable_picture(clean: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=str(empty)):
        synthesise(empty, tmp_path / "out", FEW)
    (empty / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"x\.png"):
        synthesise(empty, tmp_path / "out", FEW)
    with pytest.raises(UserError, match=r"a\.png"):
        synthesise(clean / "a.png", tmp_path / "other", FEW)


def test_a_set_among_its_own_pictures(clean: Path) -> None:
    few = SynthConfig(types=("jpeg",), levels=(1,))
    reports = [synthesise(clean, clean / "set", few, workers=1) for _ in range(2)]
    assert [report.pictures for report in reports] == [3, 3]
    for out in (clean, clean.parent):
        with pytest.raises(UserError, match="--out"):
            synthesise(clean, out, few)
    with pytest.raises(UserError, match=str(clean)):
        synthesise(clean.parent, clean, few)


def test_large_pictures_are_reduced(tmp_path: Path, photo: Callable[..., Image.Image]) -> None:
    folder = tmp_path / "clean"
    folder.mkdir()
    photo(90, 60).save(folder / "large.png")
    photo(31, 30).save(folder / "small.png")
    config = SynthConfig(types=("jpeg",), levels=(1,), side=40)
    synthesise(folder, tmp_path / "out", config, workers=1)
    sizes = {decode(path).size for path in (tmp_path / "out").rglob("*.png")}
    assert sizes == {(60, 40), (31, 30)}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"types": ("fog",)}, "fog"),
        ({"types": ()}, "types"),
        ({"types": ("jpeg", "jpeg")}, "types"),
        ({"levels": ()}, "levels"),
        ({"levels": (0, 1)}, "levels"),
        ({"levels": (2, 2)}, "levels"),
        ({"blocks": -1}, "blocks"),
        ({"side": 15}, "side"),
    ],
)
def test_invalid_settings(settings: dict[str, tuple[str, ...]], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SynthConfig(**settings)  # type: ignore[arg-type]


def test_levels_as_text() -> None:
    assert parse_levels("1-5") == (1, 2, 3, 4, 5)
    assert parse_levels("3") == (3,)
    assert parse_levels("1, 3-4") == (1, 3, 4)
    for text in ("", "a", "1-", "-1", "1,,2", "12"):
        with pytest.raises(ConfigError, match="levels"):
            parse_levels(text)
