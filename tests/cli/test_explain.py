"""`drx explain`, as it is typed."""

import errno
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.training_verbs import Call, refused, saved_checkpoint

from drexperts.model.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.fixture
def picture(photo: Callable[..., Image.Image], tmp_path: Path) -> Path:
    photo(90, 70).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.slow
def test_pictures_of_where_experts_look(
    start: Path, start_bundle: Path, picture: Path, tmp_path: Path, call: Call
) -> None:
    sizes: list[tuple[int, int]] = []
    for model, *options in ([start], [start_bundle], [start, "--compare"]):
        out = tmp_path / f"{len(sizes)}.png"
        ended = call("explain", model, picture, "--out", out, *options)
        assert (ended.status, ended.document) == (0, {"out": str(out)})
        with Image.open(out) as made:
            sizes.append(made.size)
            assert len(made.convert("RGB").getcolors(2**24) or ()) > 100
    assert sizes[0] == sizes[1] != sizes[2]
    out = tmp_path / "no.png"
    refused(call("explain", start_bundle, picture, "--out", out, "--compare"), "--compare")
    assert not out.exists()


@pytest.mark.parametrize("options", [[], ["--compare"]])
def test_another_grid_is_explained(
    options: list[str], start: Path, picture: Path, tmp_path: Path, call: Call
) -> None:
    checkpoint, model = load_checkpoint(start), tmp_path / "wide.safetensors"
    spec = replace(checkpoint.preprocessing, short_side_max=80, crops_per_side=2)
    save_checkpoint(checkpoint._replace(preprocessing=spec), model)
    found: list[bytes] = []
    for grid in ([], ["--crops-per-side", 2], ["--crops-per-side", 1]):
        out = tmp_path / f"{len(found)}.png"
        assert call("explain", model, picture, "--out", out, *options, *grid).status == 0
        found.append(out.read_bytes())
    assert found[0] == found[1] != found[2]
    refused(
        call("explain", model, picture, "--out", out, *options, "--crops-per-side", 0), "1 to 64"
    )


@pytest.mark.parametrize("options", [[], ["--compare"]])
def test_a_model_whose_scores_are_nan_explains_nothing(
    options: list[str], picture: Path, tmp_path: Path, call: Call
) -> None:
    model, out = saved_checkpoint(tmp_path / "nan.safetensors", broken=True), tmp_path / "a.png"
    refused(call("explain", model, picture, "--out", out, *options))
    assert not out.exists()


def test_an_out_that_cannot_be_written_is_refused_first(
    start: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    refused(call("explain", start, "p", "--out", tmp_path / "a.png"), "a.png", "Read-only")


def test_what_cannot_be_explained(
    start: Path, start_bundle: Path, picture: Path, tmp_path: Path, call: Call
) -> None:
    chosen = ("--engine", "abacus")
    refused(call("explain", start_bundle, picture, "--out", tmp_path / "a.png", *chosen), "abacus")
    refused(call("explain", start, tmp_path / "no.jpg", "--out", tmp_path / "a.png"), "no.jpg")
    for name in ("a.jpg", "a.psd", "a"):
        refused(call("explain", start, picture, "--out", tmp_path / name), name, ".png")
    refused(call("explain", start, picture, "--out", tmp_path / "no" / "a.png"), tmp_path / "no")
    unknown = saved_checkpoint(tmp_path / "unknown.safetensors", scale=None)
    out = tmp_path / "a.png"
    refused(call("explain", unknown, picture, "--out", out), "--scale LOW:HIGH")
    assert call("explain", unknown, picture, "--out", out, "--scale", "0:1").status == 0
