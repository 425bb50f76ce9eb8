"""`drx train`, as it is typed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.training_verbs import SHORT, Call, Ended, refused, saved_checkpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drexperts.cli.main import main
from drexperts.data.layouts import NAMES, open_dataset
from drexperts.data.splits import read_splits
from drexperts.model.checkpoint import load_checkpoint
from drexperts.runtime.installing import install_command
from drexperts.runtime.manifest import ScoreScale
from drexperts.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

Done = tuple[Path, list[str]]


@pytest.fixture
def train(start: Path, tmp_path: Path, call: Call) -> Call:
    """train(NAME, ROOT, ...): a short training in `tmp_path / "run"`."""

    def run(name: str, root: Path, *options: object) -> Ended:
        given = ["--data", name, root, "--out", tmp_path / "run", "--init", start, *SHORT]
        return call("train", *given, *options)

    return run


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def times(folder: Path) -> dict[Path, int]:
    """When each file was written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


def check_events(out: Path) -> None:
    """TensorBoard's events are those of the log."""
    events = EventAccumulator(str(out / "events"))
    events.Reload()
    lines = [line for line in log(out) if "loss" in line]
    found = events.Scalars("loss")
    assert [event.step for event in found] == [line["step"] for line in lines]
    assert [event.value for event in found] == pytest.approx([line["loss"] for line in lines])
    assert {"rate", "plcc", "srcc"} <= set(events.Tags()["scalars"])


def test_training_leaves_what_eval_and_export_take(
    done: Done, data: dict[str, Path], call: Call
) -> None:
    out, command = done
    before = times(out)
    ended = call(*command, "--out", out)  # the training is done, so this only reports it
    assert ended.status == 0
    assert times(out) == before
    (result,) = ended.document["results"]
    assert result == json.loads((out / "result.json").read_text())
    assert (result["protocol"], result["selected_on"]) == ("grid", "validation")
    assert not result["fresh"]  # the checkpoint's trained head is kept
    config = result["config"]
    assert (config["epochs"], config["batch"], config["amp"]) == (2, 8, "fp32")
    assert config["schedule"] == {"rate": 1e-3, "warmup_steps": 50}  # no published weights
    assert (result["test"]["images"], result["images"]) == (4, [14, 2, 4])
    for text in ("validation", result["split_digest"], f"{out}/best.safetensors"):
        assert text in ended.error
    scale = open_dataset("livec", data["livec"]).scale
    assert load_checkpoint(out / "best.safetensors").scale == scale
    check_events(out)


def test_a_training_keeps_only_its_own_split(done: Done, call: Call) -> None:
    out, command = done
    (split,) = read_splits(str(out / "splits.json")).splits
    rows = (out / "predictions.csv").read_text().splitlines()[1:]
    assert tuple(row.split(",")[0] for row in rows) == split.test
    again = call(*command, "--out", out, "--splits", out / "splits.json")
    assert again.document["results"][0]["split_digest"] == split.digest
    ended = call(*command, "--out", out, "--splits", out / "splits.json", "--split", "1")
    refused(ended, "--split 1")


def test_tensorboard_is_optional(
    done: Done, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(call(*done[1], "--out", tmp_path / "run"), install_command("tensorboard"))


def test_only_the_first_process_prints(
    done: Done, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drexperts.training.place.speaks", lambda: False)
    assert main([*done[1], "--out", str(done[0]), "--json"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_stopped_training_continues_without_repeating_a_step(
    done: Done, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
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
    assert not (out / "result.json").exists()
    assert [line["step"] for line in log(out)] == [1, 2]  # of the three steps of an epoch
    ended = call(*command, "--out", out)
    assert ended.status == 0
    assert "step 2 of 6" in ended.error
    steps = [line["step"] for line in log(out) if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert [line.get("loss") for line in log(out)] == [line.get("loss") for line in log(whole)]
    assert (out / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    check_events(out)


@pytest.mark.slow
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
    for number, result in enumerate(results):
        (split,) = read_splits(out / f"split-{number}" / "splits.json").splits
        assert result["split_digest"] == split.digest
        assert len({*split.train, *split.test}) == 54
    assert len({result["split_digest"] for result in results}) > 1
    scale = load_checkpoint(out / "split-3" / "best.safetensors").scale
    assert scale == ScoreScale(0.0, 10.0, higher_is_better=True)
    seventh = call(*command, "--scale", "0:10", "--out", out / "split-7", "--split", "7")
    assert seventh.document["results"] == [results[7]]


# What cannot be trained


def test_missing_data(data: dict[str, Path], tmp_path: Path, train: Call) -> None:
    refused(train("kadis", tmp_path), "kadis", *NAMES, "folder")
    refused(train("livec", tmp_path / "x"), tmp_path / "x")
    refused(train("koniq10k", data["livec"]), "koniq10k_scores_and_distributions.csv")
    copied = Path(shutil.copytree(data["livec"], tmp_path / "copied"))
    name = open_dataset("livec", copied).samples[4].name
    (copied / name).unlink()
    refused(train("livec", copied), "1 of 20", copied / name, "--skip-bad")
    assert not (tmp_path / "run").exists()
    assert train("livec", copied, "--skip-bad").document["results"][0]["test"]["images"] == 4


@pytest.mark.slow
def test_unreadable_images(table: Path, tmp_path: Path, train: Call) -> None:
    pictures = table.parent / "pictures"
    Image.new("RGB", (1, 1)).save(pictures / "000.png")
    (pictures / "007.png").write_bytes(b"no image")
    refused(train("folder", table), "2 of 54", "--skip-bad", "000.png is 1x1", "007.png")
    assert not (tmp_path / "run" / "log.jsonl").exists()
    ended = train("folder", table, "--skip-bad")
    assert ended.status == 0
    assert len(ended.document["results"][0]["skipped"]) == 2
    assert ended.error.count("left out: ") == 2
    trained = read_splits(tmp_path / "run" / "splits.json").splits[0]
    assert {"pictures/000.png", "pictures/007.png"} & {*trained.train, *trained.test}


def test_a_folder_that_holds_another_run(done: Done, tmp_path: Path, call: Call) -> None:
    out, command = done
    other = saved_checkpoint(tmp_path / "official.safetensors", "official")
    refused(call(*command, "--init", other, "--out", out), out, "model: ", "--out")
    refused(call(*command, "--out", out, "--seed", "1"), "config.seed: 0, asked 1")
    refused(call(*command, "--out", out, "--split", "1"), "split_digest")


def test_splits_that_do_not_fit(
    done: Done, data: dict[str, Path], table: Path, tmp_path: Path, train: Call
) -> None:
    refused(train("livec", data["livec"], "--split", "99"), "--split 99", "0 to 9")
    refused(train("livec", data["livec"], "--split", "-1"), "--split -1", "0 to 9")
    of_livec = ["--splits", done[0] / "splits.json"]
    refused(train("folder", table, *of_livec), "livec", "folder")
    refused(train("folder", table, "--splits", table), table)
    copied = Path(shutil.copytree(data["livec"], tmp_path / "copied"))
    name = open_dataset("livec", copied).samples[0].name
    (copied / name).unlink()
    refused(train("livec", copied, "--skip-bad", *of_livec), "1 images", name)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--accumulate", "3"], "--batch a multiple of 3"),
        (["--scale", "nonsense"], "--scale"),
        (["--scale", "10:0"], "scale"),
        (["--scale", "4:5"], "4 to 5"),
        (["--epochs", "0"], "epochs"),
        (["--batch", "0"], "batch"),
        (["--crops", "0"], "--crops"),
        (["--rate", "0"], "rate"),
        (["--ema", "2"], "ema"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_invalid_options(
    options: list[str], named: str, data: dict[str, Path], train: Call
) -> None:
    refused(train("folder", data["folder"], *options), named)


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
    words = capsys.readouterr().out.replace(",", " ").replace("`", " ").split()
    assert {*NAMES, "folder"} <= set(words)


@pytest.mark.slow
def test_without_a_network_the_message_names_what_to_download(
    data: dict[str, Path], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(repository: str, filename: str, **options: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("drexperts.model.downloads.hf_hub_download", offline)
    ended = call("train", "--data", "livec", data["livec"], "--out", tmp_path / "run")
    refused(ended, "deit3_small_patch16_384", "https://huggingface.co/", "model.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_start_holds_the_whole_model(data: dict[str, Path], tmp_path: Path, train: Call) -> None:
    refused(train("livec", data["livec"], "--preset", "official"), "paper", "--preset official")
    for option, value in (("size", "base"), ("image-size", "224"), ("encoder", "a.pth")):
        refused(train("livec", data["livec"], f"--{option}", value), f"--{option}")
    assert train("livec", data["livec"], "--preset", "paper").status == 0
    refused(train("livec", data["livec"], "--init", tmp_path / "no.safetensors"), "no.safetensors")


@pytest.mark.parametrize("name", ["state.safetensors", "run.json"])
def test_a_damaged_run_is_named(name: str, done: Done, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "run"
    shutil.copytree(done[0], out)
    (out / "result.json").unlink()
    (out / name).write_bytes(b'{"half')
    refused(call(*done[1], "--out", out), name, "remove")


def test_a_training_that_is_done_needs_no_torch(done: Done) -> None:
    """The same command again, in a process that says whether it was imported."""
    out, command = done
    code = (
        "import sys\n"
        "from drexperts.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    )
    arguments = [*map(str, command), "--out", str(out), "--json"]
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout.splitlines()[-1])
    assert document["results"] == [json.loads((out / "result.json").read_text())]
    assert document["pages"] == [str(out / "index.html")]
    assert [line.split()[0] for line in ended.stderr.splitlines() if "/2 " in line] == [
        "1/2",
        "2/2",
    ]
