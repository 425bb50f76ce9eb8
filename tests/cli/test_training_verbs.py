"""`drx train`, `eval`, `reproduce`, `synth` and `explain`, as they are typed."""

import csv
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from support import miniature
from support.run_training import tiny_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drexperts.cli.main import main
from drexperts.data.layouts import NAMES, open_dataset
from drexperts.data.splits import read_splits
from drexperts.export.bundle import export_bundle
from drexperts.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.training.trainer import Trainer

SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)
CROPS = Preprocessing(crop=64, short_side_min=64, short_side_max=64, crops_per_side=1)
SHORT = ["--epochs", "1", "--batch", "8", "--crops", "1", "--device", "cpu", "--workers", "0"]


class Ended(NamedTuple):
    """How a verb ended."""

    status: int
    document: dict[str, Any]
    error: str  # stderr, where with --json everything for people goes


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """call(...): `drx ... --json`."""

    def run(*arguments: object) -> Ended:
        status = main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        return Ended(status, json.loads(out.splitlines()[-1]), " ".join(err.split()))

    return run


Call = Callable[..., Ended]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three miniature data sets. Shared: copy one before changing it."""
    root = tmp_path_factory.mktemp("data")
    return {
        name: miniature.write(name, root / name, contents=contents, side=(72, 66))
        for name, contents in (("livec", 5), ("folder", 6), ("live", 6))
    }


@pytest.fixture
def table(data: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the folder's table of labels with its pictures."""
    shutil.copytree(data["folder"].parent, tmp_path / "folder")
    return tmp_path / "folder" / data["folder"].name


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to train from."""
    return saved(tmp_path_factory.mktemp("start") / "start.safetensors")


def saved(path: Path, preset: str = "paper", scale: ScoreScale | None = SCALE) -> Path:
    torch.manual_seed(0)
    model = tiny_model(preset)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_checkpoint(Checkpoint(model.eval(), scale, CROPS), path)
    return path


@pytest.fixture(scope="module")
def bundle(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `drx export` makes of the checkpoint."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    export_bundle(load_checkpoint(start), folder)
    return folder


@pytest.fixture(scope="module")
def done(
    data: dict[str, Path], start: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A training on LIVE-C that is done, and its command but for the folder's name."""
    out = tmp_path_factory.mktemp("runs") / "livec"
    command = ["train", "--data", "livec", str(data["livec"]), "--init", str(start), *SHORT]
    command += ["--epochs", "2", "--crops", "2", "--tensorboard"]
    assert main([*command, "--out", str(out)]) == 0
    return out, command


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def times(folder: Path) -> dict[Path, int]:
    """When each file was written, but for the split file, which is written again."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "splits.json")
    return {path: path.stat().st_mtime_ns for path in files}


# train


def test_training_leaves_what_eval_and_export_take(
    done: tuple[Path, list[str]], data: dict[str, Path], call: Call
) -> None:
    out, command = done
    before = times(out)
    ended = call(*command, "--out", out)  # it is done: this only tells of it
    assert ended.status == 0
    assert times(out) == before
    (result,) = ended.document["results"]
    assert result == json.loads((out / "result.json").read_text())
    assert (result["protocol"], result["selected_on"]) == ("grid", "validation")
    assert not result["fresh"]  # the checkpoint's head goes on from what it learnt
    config = result["config"]
    assert (config["epochs"], config["batch"], config["amp"]) == (2, 8, "fp32")
    assert config["schedule"] == {"rate": 2e-4, "warmup_epochs": 0.0}
    assert result["test"]["images"] == 4
    assert result["images"] == [14, 2, 4]
    assert "chosen on: validation" in ended.error
    assert result["split_digest"] in ended.error
    assert f"{out}/best.safetensors" in ended.error
    assert (
        load_checkpoint(out / "best.safetensors").scale
        == open_dataset("livec", data["livec"]).scale
    )


def test_the_split_of_a_training_is_kept_and_is_its_own_alone(
    done: tuple[Path, list[str]], data: dict[str, Path], call: Call
) -> None:
    out, command = done
    splits = read_splits(out / "splits.json")
    (split,) = splits.splits
    rows = (out / "predictions.csv").read_text().splitlines()[1:]
    assert tuple(row.split(",")[0] for row in rows) == split.test
    again = call(*command, "--out", out, "--splits", out / "splits.json")
    assert again.document["results"][0]["split_digest"] == split.digest
    ended = call(*command, "--out", out, "--splits", out / "splits.json", "--split", "1")
    refused(ended, "--split 1: there are splits 0 to 0")


def events_are_those_of_the_log(out: Path) -> None:
    events = EventAccumulator(str(out / "events"))
    events.Reload()
    lines = [line for line in log(out) if "loss" in line]
    found = events.Scalars("loss")
    assert [event.step for event in found] == [line["step"] for line in lines]
    assert [event.value for event in found] == pytest.approx([line["loss"] for line in lines])
    assert {"rate", "plcc", "srcc"} <= set(events.Tags()["scalars"])


def test_events_for_tensorboard(done: tuple[Path, list[str]]) -> None:
    events_are_those_of_the_log(done[0])


def test_tensorboard_is_asked_for(
    done: tuple[Path, list[str]], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    ended = call(*done[1], "--out", tmp_path / "run")
    refused(ended, 'pip install "drexperts[tensorboard]"')


def test_of_several_processes_the_first_speaks(
    done: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, command = done
    monkeypatch.setattr("drexperts.training.torchrun.speaks", lambda: False)
    assert main([*command, "--out", str(out), "--json"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_stopped_training_goes_on_without_a_step_twice(
    done: tuple[Path, list[str]], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, command = done
    out, step = tmp_path / "run", Trainer.step

    def stopped(self: Trainer, *arguments: Any) -> Any:
        if self.done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        ended = call(*command, "--out", out)
    assert ended.status == 128 + signal.SIGTERM
    assert ended.document["error"].startswith("stopped after step 2 of ")
    assert not (out / "result.json").exists()
    assert [line["step"] for line in log(out)] == [1, 2]  # of the first three steps
    ended = call(*command, "--out", out)
    assert ended.status == 0
    assert "going on after step 2 of 6" in ended.error
    steps = [line["step"] for line in log(out) if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert [line.get("loss") for line in log(out)] == [line.get("loss") for line in log(whole)]
    assert (out / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    events_are_those_of_the_log(out)


def test_all_splits_of_a_folder_chosen_on_the_test(
    table: Path, start: Path, tmp_path: Path, call: Call
) -> None:
    out = tmp_path / "runs"
    command = ["train", "--data", "folder", table, "--init", start, *SHORT, "--select-on-test"]
    ended = call(*command, "--scale", "0:10", "--out", out, "--all-splits")
    assert ended.status == 0
    results = ended.document["results"]
    assert len(results) == 10
    assert {result["selected_on"] for result in results} == {"test"}
    assert {tuple(result["images"]) for result in results} == {(45, 0, 9)}
    assert "chosen on: test" in ended.error
    for number, result in enumerate(results):
        (split,) = read_splits(out / f"split-{number}" / "splits.json").splits
        assert result["split_digest"] == split.digest
        assert len({name for name in (*split.train, *split.test)}) == 54
    assert len({result["split_digest"] for result in results}) > 1
    scale = load_checkpoint(out / "split-3" / "best.safetensors").scale
    assert scale == ScoreScale(0.0, 10.0, higher_is_better=True)
    seventh = call(*command, "--scale", "0:10", "--out", out / "split-7", "--split", "7")
    assert seventh.document["results"] == [results[7]]


def test_labels_of_which_lower_is_better_can_be_mirrored(
    data: dict[str, Path], start: Path, tmp_path: Path, call: Call
) -> None:
    found = {}
    for name, options in (("as published", []), ("mirrored", ["--higher-is-better"])):
        out = tmp_path / name
        command = ["train", "--data", "live", data["live"], "--init", start, *SHORT, *options]
        ended = call(*command, "--epochs", "1", "--out", out)
        assert ended.status == 0
        rows = csv.DictReader((out / "predictions.csv").read_text().splitlines())
        labels = {row["path"]: float(row["label"]) for row in rows}
        scale = load_checkpoint(out / "best.safetensors").scale
        assert scale is not None
        found[name] = (labels, scale.higher_is_better)
    (published, first), (mirrored, second) = found["as published"], found["mirrored"]
    assert (first, second) == (False, True)
    assert mirrored == pytest.approx({name: 100 - label for name, label in published.items()})


# What cannot be trained


def refused(ended: Ended, *said: str) -> None:
    """The user's mistake, told once, as a document too, and without a traceback."""
    assert ended.status == 2
    for text in said:
        assert text in ended.document["error"]
    assert "Traceback" not in ended.error
    assert ended.error.endswith(" ".join(f"drx: {ended.document['error']}".split()))


@pytest.fixture
def train(start: Path, tmp_path: Path, call: Call) -> Call:
    def run(name: str, root: Path, *options: object) -> Ended:
        given = ["--data", name, root, "--out", tmp_path / "run", "--init", start, *SHORT]
        return call("train", *given, *options)

    return run


def test_data_that_are_not_there(data: dict[str, Path], tmp_path: Path, train: Call) -> None:
    refused(train("kadis", tmp_path), "no data set 'kadis': choose livec, koniq10k", "or folder")
    refused(train("livec", tmp_path / "x"), f"there is no folder {tmp_path / 'x'}")
    refused(train("folder", tmp_path), "no .csv or .parquet file")
    refused(train("koniq10k", data["livec"]), "koniq10k_scores_and_distributions.csv", "unpack")
    copied = tmp_path / "copied"
    shutil.copytree(data["livec"], copied)
    name = open_dataset("livec", copied).samples[4].name
    (copied / name).unlink()
    refused(train("livec", copied), "1 of 20 images", str(copied / name), "--skip-bad")
    assert not (tmp_path / "run").exists()
    assert train("livec", copied, "--skip-bad").document["results"][0]["test"]["images"] == 4


def test_bad_rows_are_named_all_at_once(table: Path, train: Call) -> None:
    lines = table.read_text().splitlines()
    lines[1] = "pictures/000.png,nan,scene 0,none"
    lines[2] = "pictures/001.png,11.5,scene 0,none"
    lines.append("pictures/002.png,0.25,scene 0,none")
    table.write_text("\n".join(lines) + "\n")
    ended = train("folder", table, "--scale", "0:10")
    refused(ended, "3 ratings of folder cannot be used", "row 2", "'nan'", "row 3", "11.5")
    refused(ended, "pictures/002.png has more than one rating", "--skip-bad")
    ended = train("folder", table, "--scale", "0:10", "--skip-bad")
    assert ended.status == 0
    assert "51 images of folder" in ended.error


def test_images_that_are_none(table: Path, tmp_path: Path, train: Call) -> None:
    pictures = table.parent / "pictures"
    Image.new("RGB", (1, 1)).save(pictures / "000.png")
    (pictures / "007.png").write_bytes(b"no image")
    ended = train("folder", table)
    refused(ended, "2 of 54 images", "--skip-bad", "000.png is 1x1", "007.png")
    assert not (tmp_path / "run" / "log.jsonl").exists()
    ended = train("folder", table, "--skip-bad")
    assert ended.status == 0
    (result,) = ended.document["results"]
    assert len(result["skipped"]) == 2
    assert ended.error.count("left out: ") == 2
    trained = read_splits(tmp_path / "run" / "splits.json").splits[0]
    assert {"pictures/000.png", "pictures/007.png"} & {*trained.train, *trained.test}


def test_a_folder_that_holds_another_run(
    done: tuple[Path, list[str]], tmp_path: Path, call: Call
) -> None:
    out, command = done
    other = saved(tmp_path / "official.safetensors", "official")
    ended = call(*command, "--init", other, "--out", out)
    refused(ended, f"{out} holds another run", "model: ", "--out")
    refused(call(*command, "--out", out, "--seed", "1"), "config.seed: 0, asked 1")
    refused(call(*command, "--out", out, "--split", "1"), "split_digest")


def test_splits_that_do_not_fit(
    done: tuple[Path, list[str]], data: dict[str, Path], table: Path, tmp_path: Path, train: Call
) -> None:
    out, _ = done
    refused(train("livec", data["livec"], "--split", "99"), "--split 99: there are splits 0 to 9")
    refused(train("livec", data["livec"], "--split", "-1"), "--split -1: there are splits 0 to 9")
    of_livec = ["--splits", out / "splits.json"]
    refused(train("folder", table, *of_livec), "the splits are of livec, not of folder")
    refused(train("folder", table, "--splits", table), f"{table} is no usable split file")
    refused(train("folder", table, "--splits", tmp_path / "no.json"), "no.json", "split file")
    copied = tmp_path / "copied"
    shutil.copytree(data["livec"], copied)
    name = open_dataset("livec", copied).samples[0].name
    (copied / name).unlink()
    refused(
        train("livec", copied, "--skip-bad", *of_livec), f"1 images are not there, first {name}"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--accumulate", "3"], "make --batch a multiple of 3"),
        (["--scale", "nonsense"], "--scale takes LOW:HIGH"),
        (["--scale", "10:0"], "scale"),
        (["--scale", "4:5"], "outside 4 to 5"),
        (["--epochs", "0"], "at least one"),
        (["--batch", "0"], "at least one"),
        (["--crops", "0"], "--crops 0: give 1 or more"),
        (["--rate", "0"], "above zero"),
        (["--ema", "2"], "a decay is between 0 and 1"),
        (["--device", "abacus"], "choose cpu, cuda"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], said: str, data: dict[str, Path], train: Call
) -> None:
    refused(train("folder", data["folder"], *options), said)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "livec", "x", "--out", "y", "--seed", "-1"],
        ["train", "--data", "livec", "x", "--out", "y", "--workers", "-1"],
        ["train", "--data", "livec", "x", "--out", "y", "--split", "1", "--all-splits"],
        ["train", "--data", "livec", "--out", "y"],
        ["train", "--data", "livec", "x"],
        ["train", "--data", "livec", "x", "--out", "y", "--amp", "fp8"],
        ["eval", "--data", "livec", "x"],
        ["eval", "m", "--data", "livec", "x", "--seed", "9223372036854775808"],
        ["eval", "m", "--data", "livec", "x", "--part", "some"],
        ["reproduce", "table6", "--data-root", "x"],
        ["reproduce", "table1", "--data-root", "x", "--workers", "1.5"],
        ["explain", "m", "p"],
        ["synth", "x"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert f"usage: drx {arguments[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "eval"])
def test_help_names_every_data_set(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    words = capsys.readouterr().out.replace(",", " ").replace(";", " ").split()
    assert {*NAMES, "folder"} <= set(words)


def test_a_scale_is_for_a_folder_only(data: dict[str, Path], train: Call) -> None:
    refused(train("livec", data["livec"], "--scale", "0:100"), "has a scale of its own")


def test_without_a_network_the_message_names_what_to_download(
    data: dict[str, Path], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(repository: str, filename: str) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("drexperts.model.weight_files.hf_hub_download", offline)
    ended = call("train", "--data", "livec", data["livec"], "--out", tmp_path / "run")
    refused(ended, "deit3_small_patch16_384", "https://huggingface.co/", "model.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_start_brings_the_whole_model(data: dict[str, Path], train: Call) -> None:
    asked = ("--preset", "official")
    refused(train("livec", data["livec"], *asked), "is of the preset paper, and --preset official")
    for option, value in (("size", "base"), ("image-size", "224"), ("encoder", "a.pth")):
        refused(train("livec", data["livec"], f"--{option}", value), f"leave --{option} out")
    assert train("livec", data["livec"], "--preset", "paper").status == 0


def test_a_start_that_is_no_checkpoint(data: dict[str, Path], tmp_path: Path, train: Call) -> None:
    refused(train("livec", data["livec"], "--init", tmp_path / "no.safetensors"), "no.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"junk")
    refused(train("livec", data["livec"], "--init", tmp_path / "a.safetensors"), "a.safetensors")


@pytest.mark.parametrize(
    ("name", "said"),
    [("state.safetensors", "remove it to start over"), ("run.json", "remove its folder")],
)
def test_a_damaged_run_is_told_with_its_remedy(
    name: str, said: str, done: tuple[Path, list[str]], tmp_path: Path, call: Call
) -> None:
    _, command = done
    out = tmp_path / "run"
    shutil.copytree(done[0], out)
    (out / "result.json").unlink()
    (out / name).write_bytes(b'{"half')
    refused(call(*command, "--out", out), name, said)


# eval


def test_a_checkpoint_beside_its_bundle(
    data: dict[str, Path], start: Path, bundle: Path, tmp_path: Path, call: Call
) -> None:
    out = tmp_path / "scores.csv"
    livec = ["--data", "livec", data["livec"], "--device", "cpu"]
    ended = call("eval", start, bundle, *livec, "--out", out)
    assert ended.status == 0
    one, other = ended.document["models"]
    assert (one["model"], other["model"]) == (str(start), str(bundle))
    assert one["splits"][0]["images"] == 20
    (difference,) = ended.document["differences"]
    assert difference["srcc"] == pytest.approx(1)
    assert difference["score_max"] < 1e-3
    with open(out, newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header[:3] == ["image", "label", f"score {start}"]
    labels = {s.name: s.label for s in open_dataset("livec", data["livec"]).samples}
    assert {row[0]: float(row[1]) for row in rows} == labels
    assert "PLCC, logistic fit" in ended.error


def test_the_test_part_of_a_training(
    done: tuple[Path, list[str]], data: dict[str, Path], call: Call
) -> None:
    out, _ = done
    best, splits = out / "best.safetensors", out / "splits.json"
    livec = ["--data", "livec", data["livec"], "--splits", splits, "--device", "cpu"]
    ended = call("eval", best, *livec)
    (model,) = ended.document["models"]
    trained = json.loads((out / "result.json").read_text())["test"]
    assert model["splits"][0]["plcc"] == pytest.approx(trained["plcc"], abs=1e-5)
    assert model["splits"][0]["images"] == 4
    for part, images in (("train", 14), ("validation", 2), ("all", 20)):
        ended = call("eval", best, *livec, "--part", part)
        assert ended.document["models"][0]["splits"][0]["images"] == images
        assert ended.document["data"]["part"] == part


def test_published_dmos_and_mirrored_dmos_are_judged_alike(
    data: dict[str, Path], start: Path, call: Call
) -> None:
    live = ["--data", "live", data["live"], "--device", "cpu"]
    published = call("eval", start, *live)
    mirrored = call("eval", start, *live, "--higher-is-better")
    (one,), (other,) = published.document["models"], mirrored.document["models"]
    assert (one["labels_mirrored"], other["labels_mirrored"]) == (True, False)
    assert one["splits"][0]["srcc"] == pytest.approx(other["splits"][0]["srcc"])
    assert [e.document["data"]["scale"]["higher_is_better"] for e in (published, mirrored)] == [
        False,
        True,
    ]


def test_the_released_protocol_can_be_repeated(
    data: dict[str, Path], start: Path, call: Call
) -> None:
    command = ["eval", start, "--data", "livec", data["livec"], "--protocol", "released"]
    first, again = (call(*command, "--device", "cpu").document for _ in range(2))
    assert first == again
    assert first["protocol"]["crops"] == 20
    other = call(*command, "--device", "cpu", "--seed", "1").document
    assert other["models"][0]["splits"][0]["plcc"] != first["models"][0]["splits"][0]["plcc"]


def test_what_cannot_be_evaluated(
    done: tuple[Path, list[str]],
    data: dict[str, Path],
    start: Path,
    table: Path,
    tmp_path: Path,
    call: Call,
) -> None:
    livec = ["--data", "livec", data["livec"], "--device", "cpu"]
    refused(call("eval", tmp_path / "no.safetensors", *livec), "no.safetensors")
    refused(call("eval", tmp_path, *livec), "drx export")
    refused(call("eval", start, *livec, "--part", "test"), "--splits", "--part all")
    folder = ["--data", "folder", table, "--device", "cpu", "--splits", done[0] / "splits.json"]
    refused(call("eval", start, *folder), "the splits are of livec, not of folder")
    (table.parent / "pictures" / "000.png").write_bytes(b"no image")
    refused(call("eval", start, *folder[:-2]), "000.png", "--skip-bad")
    ended = call("eval", start, *folder[:-2], "--skip-bad")
    assert ended.document["models"][0]["splits"][0]["images"] == 53


# reproduce


def test_a_table_with_its_page(tmp_path: Path, start: Path, call: Call) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    miniature.write("koniq10k", root / "koniq10k", contents=4, side=(72, 66))
    command = ["reproduce", "table4", "--data-root", root, "--out", out, "--init", start]
    command += ["--splits", "1", "--epochs", "1", "--device", "cpu", "--workers", "0"]
    ended = call(*command, "--only", "koniq10k", "--only", "encoder")
    assert ended.status == 0
    assert ended.document["failures"] == []
    measured = [cell for cell in ended.document["cells"] if cell["runs"]]
    assert [cell["name"] for cell in measured] == ["koniq10k-encoder"]
    text = (out / "table4.md").read_text()
    assert f"Trained from the checkpoint {start}, 1 epoch at" in text
    assert "This is no reproduction of the paper's numbers" in text
    assert "(1 of 1)" in text
    assert json.loads((out / "table4.json").read_text()) == ended.document
    ended = call(*command, "--only", "livec", "--only", "encoder")
    assert ended.status == 1
    assert len(ended.document["failures"]) == 1
    failed = (out / "table4.md").read_text().partition("## Failed")[2]
    assert f"there is no folder {root / 'livec'}" in failed
    assert "there is no folder" in ended.error
    refused(call(*command, "--only", "kadid10k"), "--only kadid10k is not in this table")


# synth


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
    assert ended.error.count("left out: ") == 1
    assert "broken.png" in ended.document["skipped"][0]
    assert "a score is " in ended.error
    dataset = open_dataset("folder", out / "labels.csv")
    assert len(dataset.samples) == 16
    assert len({sample.group for sample in dataset.samples}) == 2
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert call(*command, "--blocks", "1", "--workers", "1").status == 0
    assert {path: path.read_bytes() for path in before} == before
    refused(call(*command, "--workers", "1", "--seed", "1"), str(out))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--types", "rain"], "rain"),
        (["--levels", "0-9"], "levels"),
        (["--workers", "0"], "workers"),
        (["--side", "2"], "side"),
        (["--blocks", "-1"], "blocks"),
    ],
)
def test_sets_that_cannot_be(
    options: list[str], said: str, clean: Path, tmp_path: Path, call: Call
) -> None:
    refused(call("synth", clean, "--out", tmp_path / "set", *options), said)
    refused(call("synth", tmp_path / "no", "--out", tmp_path / "set"), "no folder")


# explain


def test_pictures_of_where_experts_look(
    start: Path, bundle: Path, tmp_path: Path, photo: Callable[..., Image.Image], call: Call
) -> None:
    picture = tmp_path / "photo.png"
    photo(90, 70).save(picture)
    sizes = {}
    for name, model, options in (
        ("checkpoint", start, []),
        ("bundle", bundle, []),
        ("compared", start, ["--compare"]),
    ):
        out = tmp_path / f"{name}.png"
        ended = call("explain", model, picture, "--out", out, *options)
        assert (ended.status, ended.document) == (0, {"out": str(out)})
        with Image.open(out) as made:
            sizes[name] = made.size
            assert len(made.convert("RGB").getcolors(2**24) or ()) > 100
    assert sizes["checkpoint"] == sizes["bundle"] != sizes["compared"]
    out = tmp_path / "no.png"
    refused(call("explain", bundle, picture, "--out", out, "--compare"), "takes a checkpoint")
    assert not out.exists()


@pytest.mark.parametrize("options", [[], ["--compare"]])
def test_a_model_that_gives_no_numbers_explains_nothing(
    options: list[str], tmp_path: Path, photo: Callable[..., Image.Image], call: Call
) -> None:
    photo(90, 70).save(tmp_path / "photo.png")
    start, out = saved(tmp_path / "model.safetensors"), tmp_path / "a.png"
    checkpoint = load_checkpoint(start)
    torch.nn.init.constant_(checkpoint.model.score.weight, torch.nan)
    save_checkpoint(checkpoint, start)
    refused(call("explain", start, tmp_path / "photo.png", "--out", out, *options), "take another")
    assert not out.exists()


def test_an_out_that_cannot_be_written_is_refused_first(
    start: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    out = tmp_path / "a.png"
    refused(call("explain", start, "p", "--out", out), "a.png cannot be written: Read-only file")


def test_what_cannot_be_explained(
    start: Path, tmp_path: Path, photo: Callable[..., Image.Image], call: Call
) -> None:
    picture = tmp_path / "photo.png"
    photo(90, 70).save(picture)
    refused(call("explain", start, tmp_path / "no.jpg", "--out", tmp_path / "a.png"), "no.jpg")
    for name in ("a.jpg", "a.psd", "a"):
        refused(call("explain", start, picture, "--out", tmp_path / name), f"{name}: the picture")
    refused(
        call("explain", start, picture, "--out", tmp_path / "no" / "a.png"), "there is no folder"
    )
    unknown = saved(tmp_path / "unknown.safetensors", scale=None)
    out = tmp_path / "a.png"
    refused(call("explain", unknown, picture, "--out", out), "--scale LOW:HIGH")
    assert call("explain", unknown, picture, "--out", out, "--scale", "0:1").status == 0
