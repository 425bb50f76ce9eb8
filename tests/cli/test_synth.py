"""`drx synth`, as it is typed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.training_verbs import Call, refused

from drexperts.data.layouts import open_dataset


@pytest.fixture
def clean(tmp_path: Path, photo: Callable[..., Image.Image]) -> Path:
    folder = tmp_path / "clean"
    folder.mkdir()
    for seed in range(2):
        photo(90, 70, seed).save(folder / f"{seed}.png")
    return folder


def test_a_set_of_distorted_pictures_can_be_opened(clean: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "set"
    (clean / "broken.png").write_bytes(b"no image")
    command = ["synth", clean, "--out", out, "--types", "jpeg,white_noise", "--levels", "1,4-5"]
    ended = call(*command, "--blocks", "1", "--workers", "1")
    assert ended.status == 0
    assert ended.document["images"] == 2 * (1 + 2 * 3 + 1)
    assert ended.document["labels"] == str(out / "labels.csv")
    assert ended.document["settings"]["levels"] == [1, 4, 5]
    assert ended.error.count("left out: ") == 1
    assert "broken.png" in ended.document["skipped"][0]
    dataset = open_dataset("folder", str(out / "labels.csv"))
    assert len(dataset.samples) == 16
    assert len({sample.group for sample in dataset.samples}) == 2
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert call(*command, "--blocks", "1", "--workers", "1").status == 0
    assert {path: path.read_bytes() for path in before} == before
    refused(call(*command, "--workers", "1", "--seed", "1"), out)


@pytest.mark.parametrize(
    ("option", "value"),
    [("types", "rain"), ("levels", "0-9"), ("workers", "0"), ("side", "2"), ("blocks", "-1")],
)
def test_invalid_options(option: str, value: str, clean: Path, tmp_path: Path, call: Call) -> None:
    refused(call("synth", clean, "--out", tmp_path / "set", f"--{option}", value), option)
    refused(call("synth", tmp_path / "no", "--out", tmp_path / "set"), tmp_path / "no")
