"""Runs that are killed, stopped, shared between processes, and fed what is bad."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import miniature
from support.reporting import Recorder
from support.run_training import run_of, tiny_model, train
from support.waiting import PATIENCE, holding

from drexperts.evaluation.predict import open_model
from drexperts.model.dr_experts import DRExperts
from drexperts.model.weight_files import read_safetensors, write_safetensors
from drexperts.runtime.errors import (
    DataError,
    NotFiniteError,
    StoppedError,
    TrainingError,
    UserError,
    WeightsError,
)
from drexperts.runtime.progress import SILENT
from drexperts.training.distributed import Processes
from drexperts.training.loop import _memory_advice
from drexperts.training.run import train_run
from drexperts.training.run_folder import RunFolder, State
from drexperts.training.settings import Resources, Run
from drexperts.training.trainer import StepSchedule

SCRIPT = Path(__file__).parent.parent / "support" / "run_training.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write("livec", tmp_path_factory.mktemp("data") / "livec", contents=6)


@pytest.fixture(scope="module")
def done(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(run_of(root), out)
    return out


def lines(out: Path) -> list[dict[str, Any]]:
    path = out / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in lines(out) if "loss" in line]


def result(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "result.json").read_text())
    return content


def test_a_run_leaves_a_model_a_log_and_a_result(done: Path, root: Path) -> None:
    assert {p.name for p in done.iterdir()} == {
        *("best.safetensors", "log.jsonl", "predictions.csv", "result.json", "run.json", ".lock")
    }
    steps = [line["step"] for line in lines(done) if "loss" in line]
    assert steps == list(range(1, 13))
    assert [line["epoch"] for line in lines(done) if "epoch" in line] == [1, 2, 3]
    run, found = run_of(root), result(done)
    assert found["test"]["images"] == len(run.split.test)
    assert (found["selected_on"], found["split_digest"]) == ("validation", run.split.digest)
    scorer = open_model(done / "best.safetensors", "cpu")
    assert scorer.manifest.scale == run.dataset.scale
    rows = (done / "predictions.csv").read_text().splitlines()[1:]
    for row in rows:
        name, _, score, _ = row.split(",")
        again = scorer.score(root / name).value
        assert float(score) == pytest.approx(again, abs=1e-4)


def test_a_run_that_is_done_is_not_run_again(done: Path, root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    assert train(run_of(root), done) == result(done)
    assert before == {path: path.stat().st_mtime_ns for path in done.iterdir()}


def logged(count: int, root: Path, out: Path) -> subprocess.Popen[str]:
    """A run that has logged so many steps, and saved the state after the one before the last."""
    return holding([sys.executable, str(SCRIPT), str(root), str(out), "8", str(count)])


def test_killed_and_stopped_it_goes_on_to_the_same_bits(
    done: Path, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "disturbed"
    process = logged(2, root, out)
    process.kill()
    process.communicate()
    assert losses(out) == losses(done)[:2]
    process = logged(5, root, out)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on" in printed
    assert not (out / "result.json").exists()
    train(run_of(root), out)
    assert losses(out) == losses(done)
    for name in ("best.safetensors", "predictions.csv", "result.json"):
        assert (out / name).read_bytes() == (done / name).read_bytes(), name


@pytest.mark.parametrize("phase", ["reading", "validating epoch 2", "testing"])
def test_a_signal_is_heard_whatever_it_is_at(
    phase: str, done: Path, root: Path, tmp_path: Path
) -> None:
    def tell(text: str, number: int, _: int | None) -> None:
        if text.startswith(phase) and number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    out, screen = tmp_path / "stopped", Recorder(at=tell)
    with pytest.raises(StoppedError) as error:
        train_run(run_of(root), tiny_model, out, Resources("cpu", workers=0), screen)
    assert error.value.status == 128 + signal.SIGTERM
    assert not (out / "result.json").exists()
    train(run_of(root), out)
    assert losses(out) == losses(done)
    assert (out / "result.json").read_bytes() == (done / "result.json").read_bytes()


def stopped_after_reading(run: Run, out: Path) -> None:
    """A run that has a state of its first epoch and no more."""

    def tell(text: str, number: int, _: int | None) -> None:
        if text.startswith("validating"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError):
        train_run(run, tiny_model, out, Resources("cpu", workers=0), Recorder(at=tell))


def test_images_that_changed_meanwhile_are_noticed(root: Path, tmp_path: Path) -> None:
    copied, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(root, copied)
    stopped_after_reading(run_of(copied), out)
    first, second = (copied / name for name in run_of(copied).split.train[:2])
    shutil.copyfile(first, second)
    with pytest.raises(DataError, match="images were changed"):
        train(run_of(copied), out)


def test_what_is_not_chosen_by_validation_does_not_say_so(root: Path, tmp_path: Path) -> None:
    run = run_of(root, epochs=1)
    run = replace(run, split=replace(run.split, validation=run.split.validation[:1]))
    assert train(run, tmp_path / "run")["selected_on"] == "last epoch"


@pytest.mark.parametrize(
    ("crops", "parts", "advice"),
    [(39, 1, "--accumulate 3 "), (8, 2, "--accumulate 4 "), (1, 4, "--amp bf16, --size small")],
)
def test_what_does_not_fit_can_be_divided(crops: int, parts: int, advice: str) -> None:
    assert advice in _memory_advice(crops, parts)


def test_weights_that_are_no_numbers_are_refused_at_once(root: Path, tmp_path: Path) -> None:
    def broken() -> DRExperts:
        model = tiny_model()
        torch.nn.init.constant_(model.score.bias, float("nan"))
        return model

    with pytest.raises(WeightsError, match="no numbers"):
        train(run_of(root), tmp_path / "run", broken)


def test_a_model_that_diverges_in_an_epochs_last_step_is_told(root: Path, tmp_path: Path) -> None:
    run = run_of(root, batch=24, schedule=StepSchedule(1e30))
    with pytest.raises(UserError, match=r"lower (the )?learning rate"):
        train(run, tmp_path / "run")


def test_two_processes_have_the_losses_of_one(done: Path, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    # A port of the system's choice: other tests may be running.
    command = [*torchrun, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, str(SCRIPT), str(root), str(out), "8"],
        check=True,
        env=environment,
        timeout=PATIENCE,
    )
    assert losses(out) == pytest.approx(losses(done), rel=1e-4)
    one, two = ([epoch["plcc"] for epoch in result(folder)["epochs"]] for folder in (done, out))
    assert two == pytest.approx(one, abs=1e-3)
    assert result(out)["processes"] == 2
    assert lines(out)[-1]["epoch"] == 3


def test_processes_of_different_runs_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first of two, whose other has another learning rate and another label."""

    def gather(processes: Processes, part: list[Any]) -> list[Any]:
        (own,) = part
        other = own | {"config": own["config"] | {"rate": 1.0}, "data_digest": "another"}
        return [own, other]

    monkeypatch.setattr(Processes, "gather", gather)
    told = r"were given different runs \(config.rate: \S+, asked 1.0; data_digest: .* start all"
    with pytest.raises(UserError, match=told):
        train(run_of(root), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_best_model_that_is_missing_is_said_at_once(root: Path, tmp_path: Path) -> None:
    run, out = run_of(root), tmp_path / "run"

    def stop(text: str, number: int, _: int | None) -> None:
        if text.startswith("validating epoch 2"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError):
        train_run(run, tiny_model, out, Resources("cpu", workers=0), Recorder(at=stop))
    (out / "best.safetensors").unlink()
    with pytest.raises(UserError, match=r"best\.safetensors, the best model so far, is missing"):
        train(run, out)


def test_a_state_that_lacks_a_tensor_is_named(root: Path, tmp_path: Path) -> None:
    run, out = run_of(root), tmp_path / "run"
    stopped_after_reading(run, out)
    tensors, metadata = read_safetensors(out / "state.safetensors")
    tensors.pop(next(name for name in tensors if name.startswith("weights.")))
    write_safetensors(tensors, metadata, out / "state.safetensors")
    with pytest.raises(WeightsError, match=r"is no state of this model .*: remove the folder"):
        train(run, out)


def test_a_batch_that_processes_cannot_divide_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--batch a multiple of 3"):
        train(run_of(root, accumulate=3), tmp_path / "run")


def test_another_setting_or_model_is_another_run(done: Path, root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds another run \(config.seed: 0, asked 1.*--out"):
        train(run_of(root, seed=1), done)
    with pytest.raises(UserError, match=r"holds another run \(.*model"):
        train(run_of(root), done, lambda: tiny_model("official"))


def test_the_epoch_can_be_chosen_as_the_released_code_does(root: Path, tmp_path: Path) -> None:
    run = replace(run_of(root, epochs=2), select_on_test=True)
    found = train(run, tmp_path / "run")
    assert found["selected_on"] == "test"
    best = max(epoch["plcc"] for epoch in found["epochs"])
    assert found["test"]["plcc"] == pytest.approx(best, abs=1e-6)


def test_the_released_protocol_and_an_ablation(root: Path, tmp_path: Path) -> None:
    run = replace(run_of(root, epochs=1), protocol="released", variant="encoder")
    found = train(run, tmp_path / "run")
    assert (found["protocol"], found["variant"]) == ("released", "encoder")
    with pytest.raises(UserError, match="is the ablation encoder"):
        open_model(tmp_path / "run" / "best.safetensors", "cpu")


def test_a_loss_that_is_no_number_keeps_its_batch(root: Path, tmp_path: Path) -> None:
    def broken() -> DRExperts:
        model = tiny_model()
        torch.nn.init.constant_(model.score.weight, 3e38)
        return model

    with pytest.raises(NotFiniteError, match="its batch is in") as error:
        train(run_of(root), tmp_path / "run", broken)
    folder = tmp_path / "run" / "not-finite-1-0"
    assert str(folder) in str(error.value)
    assert len(list(folder.glob("*.png"))) == 8
    assert len((folder / "batch.csv").read_text().splitlines()) == 9


def test_out_of_memory_names_what_to_change(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DRExperts, "forward", full)
    with pytest.raises(TrainingError, match="8 crops at once: --accumulate 2"):
        train(run_of(root), tmp_path / "run")


@pytest.fixture
def damaged(root: Path, tmp_path: Path) -> tuple[Path, str]:
    """The data with one image cut short, and its name."""
    copied = tmp_path / "damaged"
    shutil.copytree(root, copied)
    name = run_of(copied).split.train[0]
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) // 2])
    return copied, name


def test_an_unreadable_image_stops_the_run_at_its_start(
    damaged: tuple[Path, str], tmp_path: Path
) -> None:
    folder, name = damaged
    with pytest.raises(DataError, match=name):
        train(run_of(folder), tmp_path / "run")
    assert not lines(tmp_path / "run")


def test_or_is_left_out_and_counted(damaged: tuple[Path, str], tmp_path: Path) -> None:
    folder, name = damaged
    resources = Resources("cpu", workers=0, skip_bad=True)
    found = train_run(run_of(folder, epochs=1), tiny_model, tmp_path / "run", resources, SILENT)
    assert len(found["skipped"]) == 1
    assert name in found["skipped"][0]
    assert sum(found["images"]) == sum(result(tmp_path / "run")["images"]) == 23


def test_a_state_of_another_model_is_refused_by_its_settings(root: Path, tmp_path: Path) -> None:
    run: Run = run_of(root)
    folder = RunFolder(tmp_path / "run", run.settings() | {"model": "0" * 16})
    folder.cut_log(None)
    folder.save_state(State({}, {}))
    folder.close()
    with pytest.raises(UserError, match="model"):
        train(run, tmp_path / "run")
