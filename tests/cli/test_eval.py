"""`drx eval`, as it is typed."""

import csv
import json
from pathlib import Path

import pytest
from support.training_verbs import Call, refused, saved_checkpoint

from drexperts.data.layouts import open_dataset
from drexperts.data.splits import make_splits, write_splits
from drexperts.runtime.manifest import ScoreScale

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache", "one_thread")]


@pytest.fixture
def livec(data: dict[str, Path]) -> list[object]:
    return ["--data", "livec", data["livec"], "--device", "cpu"]


def test_a_checkpoint_beside_its_bundle(
    data: dict[str, Path],
    livec: list[object],
    start: Path,
    start_bundle: Path,
    tmp_path: Path,
    call: Call,
) -> None:
    out = tmp_path / "scores.csv"
    ended = call("eval", start, start_bundle, *livec, "--out", out)
    assert ended.status == 0
    one, other = ended.document["models"]
    assert (one["model"], other["model"]) == (str(start), str(start_bundle))
    assert one["splits"][0]["images"] == 20
    (difference,) = ended.document["differences"]
    assert (difference["model"], difference["from"]) == (str(start_bundle), str(start))
    assert difference["srcc"] == pytest.approx(1)
    assert difference["score_max"] < 1e-3
    with open(out, newline="") as stream:
        header, *rows = csv.reader(stream)
    columns = [f"{kind} {model}" for model in (start, start_bundle) for kind in ("score", "std")]
    assert header == ["image", "label", *columns]
    for row in rows:
        assert float(row[4]) == pytest.approx(float(row[2]), abs=1e-3)
    labels = {s.name: s.label for s in open_dataset("livec", data["livec"]).samples}
    assert {row[0]: float(row[1]) for row in rows} == labels
    for text in ("PLCC, logistic fit", "against", ended.document["data"]["digest"]):
        assert text in ended.error


def test_grids_are_compared(start: Path, data: dict[str, Path], call: Call) -> None:
    given = ["eval", start, "--data", "folder", data["folder"], "--scale", "0:100"]
    given += ["--device", "cpu"]
    ended = call(*given, "--crops-per-side", "own,2")
    assert [model["crops_per_side"] for model in ended.document["models"]] == [None, 2]
    (difference,) = ended.document["differences"]
    assert set(difference["changes"][0]) == {"srcc", "plcc"}
    for text in (f"{start}, 2 per side", "Δ SRCC with labels"):
        assert text in ended.error
    refused(call(*given, "--crops-per-side", "0"), "--crops-per-side must be a whole number")
    refused(call(*given, "--protocol", "released", "--crops-per-side", "2"), "random crops")
    with pytest.raises(SystemExit):
        call(*given, "--crops-per-side", "2,")


def test_the_parts_of_a_training(
    done: tuple[Path, list[str]], livec: list[object], call: Call
) -> None:
    out, _ = done
    given = ["eval", out / "best.safetensors", *livec, "--splits", out / "splits.json"]
    (model,) = call(*given).document["models"]
    trained = json.loads((out / "result.json").read_text())["test"]
    assert model["splits"][0]["plcc"] == pytest.approx(trained["plcc"], abs=1e-5)
    for part, images in (("test", 4), ("train", 14), ("validation", 2), ("all", 20)):
        document = call(*given, "--part", part).document
        assert document["models"][0]["splits"][0]["images"] == images
        assert document["data"]["part"] == part


def test_several_splits_are_printed_with_their_median(
    data: dict[str, Path],
    livec: list[object],
    start: Path,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no text is broken, however long the folder's name is
    splits = make_splits(open_dataset("livec", data["livec"]), count=3)
    write_splits(splits, tmp_path / "three.json")
    given = ["--splits", tmp_path / "three.json", "--protocol", "released"]
    ended = call("eval", start, *livec, *given)
    assert len(ended.document["models"][0]["splits"]) == 3
    assert ended.document["protocol"]["crops"] == 20
    for text in ("median of 3", *(split.digest for split in splits.splits), "crops 20"):
        assert text in ended.error
    assert call("eval", start, *livec, *given).document == ended.document
    other = call("eval", start, *livec, *given, "--seed", "1").document
    assert other["models"][0]["median"] != ended.document["models"][0]["median"]


def test_published_and_mirrored_dmos_are_judged_alike(
    data: dict[str, Path], start: Path, tmp_path: Path, call: Call
) -> None:
    live = ["--data", "live", data["live"], "--device", "cpu"]
    worse = ScoreScale(0.0, 100.0, higher_is_better=False)
    other = saved_checkpoint(tmp_path / "worse.safetensors", scale=worse)
    published = call("eval", start, other, *live)
    mirrored = call("eval", start, *live, "--higher-is-better")
    (one, same), two = published.document["models"], mirrored.document["models"][0]
    assert same["splits"][0]["srcc"] == pytest.approx(-one["splits"][0]["srcc"])
    assert [each["labels_mirrored"] for each in (one, same, two)] == [True, False, False]
    assert one["splits"][0]["srcc"] == pytest.approx(two["splits"][0]["srcc"])
    assert not published.document["data"]["scale"]["higher_is_better"]
    assert mirrored.document["data"]["scale"]["higher_is_better"]
    assert published.document["differences"][0]["score_max"] is None
    for text in ("other scale", "mirrored"):
        assert text in published.error


def test_what_cannot_be_evaluated(
    done: tuple[Path, list[str]],
    livec: list[object],
    start: Path,
    start_bundle: Path,
    table: Path,
    tmp_path: Path,
    call: Call,
) -> None:
    refused(call("eval", tmp_path / "no.safetensors", *livec), "no.safetensors")
    refused(call("eval", tmp_path, *livec), tmp_path)
    refused(call("eval", start, *livec, "--part", "test"), "--splits", "--part all")
    refused(call("eval", start_bundle, *livec, "--engine", "abacus"), "abacus", "model.onnx")
    folder = ["--data", "folder", table, "--device", "cpu"]
    refused(call("eval", start, *folder, "--splits", done[0] / "splits.json"), "livec", "folder")
    (table.parent / "pictures" / "000.png").write_bytes(b"no image")
    refused(call("eval", start, *folder), "000.png", "--skip-bad")
    ended = call("eval", start, *folder, "--skip-bad")
    (model,) = ended.document["models"]
    assert (model["images"], model["splits"][0]["images"]) == (53, 53)
    assert "000.png" in model["skipped"][0]
    assert "1 unusable images" in ended.error
