"""Runs that are killed, stopped, divided among processes, or given bad input."""

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
from drexperts.model.checkpoint import load_checkpoint
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
from drexperts.training import run as training
from drexperts.training.distributed import Processes
from drexperts.training.loop import _memory_advice
from drexperts.training.result import TrainingResult
from drexperts.training.run_folder import RunFolder
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
        *("best.safetensors", "log.jsonl", "predictions.csv", "result.json", "run.json"),
        *("splits.json", "index.html"),
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


def test_the_best_model_says_what_it_was_trained_on(done: Path, root: Path) -> None:
    run, found = run_of(root), result(done)
    trained = load_checkpoint(done / "best.safetensors").trained
    assert trained is not None
    assert (trained.dataset, trained.data_digest) == ("livec", run.dataset.digest)
    assert trained.split_digest == run.split.digest
    assert list(trained.images) == found["images"]
    assert (trained.selected_on, trained.selected_by) == ("validation", "srcc")
    assert trained.epoch == found["best_epoch"]
    assert (trained.srcc, trained.plcc) == (found["test"]["srcc"], found["test"]["plcc"])
    with open_model(done / "best.safetensors", "cpu") as scorer:
        assert scorer.manifest.trained == trained


def test_a_kill_before_the_result_leaves_a_usable_model_and_a_run_that_continues(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = tmp_path / "run", run_of(root, epochs=1)

    def killed(self: RunFolder, result: TrainingResult) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(run, out)
    before = load_checkpoint(out / "best.safetensors").trained
    found = train(run, out)
    after = load_checkpoint(out / "best.safetensors").trained
    assert before is not None
    assert after is not None
    assert after.srcc == before.srcc == found.test.srcc


def train_until(run: Run, out: Path, phase: str) -> None:
    """Stop by SIGTERM at the first image of a phase, such as "validating epoch 2"."""

    def stop(text: str, number: int, _: int | None) -> None:
        if text.startswith(phase) and number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    resources, progress = Resources("cpu", workers=0), Recorder(at=stop)
    with pytest.raises(StoppedError) as error:
        training.train(run, tiny_model, out, resources=resources, progress=progress)
    assert error.value.status == 128 + signal.SIGTERM


def logged(count: int, root: Path, out: Path) -> subprocess.Popen[str]:
    """A run that has logged so many steps, and saved the state after the one before the last."""
    return holding([sys.executable, str(SCRIPT), str(root), str(out), "8", str(count)])


@pytest.mark.slow
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
    assert "step 6 of 12" in printed
    assert not (out / "result.json").exists()
    train(run_of(root), out)
    assert losses(out) == losses(done)
    for name in ("predictions.csv", "result.json"):
        assert (out / name).read_bytes() == (done / name).read_bytes(), name
    (weights, metadata), (expected, told) = (
        read_safetensors(folder / "best.safetensors") for folder in (out, done)
    )
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    # All but the time of the test.
    trained, expected_training = (json.loads(each.pop("trained")) for each in (metadata, told))
    assert metadata == told
    assert trained | {"when": ""} == expected_training | {"when": ""}


@pytest.mark.parametrize("phase", ["reading", "validating epoch 2", "testing"])
@pytest.mark.slow
def test_a_signal_stops_every_phase(phase: str, done: Path, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    train_until(run_of(root), out, phase)
    assert not (out / "result.json").exists()
    train(run_of(root), out)
    assert losses(out) == losses(done)
    assert (out / "result.json").read_bytes() == (done / "result.json").read_bytes()


def test_images_that_changed_meanwhile_are_noticed(root: Path, tmp_path: Path) -> None:
    copied, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(root, copied)
    train_until(run_of(copied), out, "validating")
    first, second = (copied / name for name in run_of(copied).split.train[:2])
    shutil.copyfile(first, second)
    with pytest.raises(DataError, match=str(out)):
        train(run_of(copied), out)


def test_a_single_validation_image_chooses_no_epoch(root: Path, tmp_path: Path) -> None:
    run = run_of(root, epochs=1)
    run = replace(run, split=replace(run.split, validation=run.split.validation[:1]))
    found = train(run, tmp_path / "run")
    assert (found.selected_on, found.selected_by) == ("last epoch", None)
    trained = load_checkpoint(tmp_path / "run" / "best.safetensors").trained
    assert trained is not None
    assert trained.choice == "the last, as there is nothing to choose it by"


@pytest.mark.parametrize(
    ("crops", "parts", "advice"),
    [(39, 1, "--accumulate 3 "), (8, 2, "--accumulate 4 "), (1, 4, "--amp bf16, --size small")],
)
def test_a_full_memory_names_a_divisor(crops: int, parts: int, advice: str) -> None:
    assert advice in _memory_advice(crops, parts)


def test_weights_that_are_nan_are_refused(root: Path, tmp_path: Path) -> None:
    def broken() -> DRExperts:
        model = tiny_model()
        torch.nn.init.constant_(model.score.bias, float("nan"))
        return model

    with pytest.raises(WeightsError):
        train(run_of(root), tmp_path / "run", broken)


def test_a_model_that_diverges_in_the_last_step_is_an_error(root: Path, tmp_path: Path) -> None:
    run = run_of(root, batch=24, schedule=StepSchedule(1e30))
    with pytest.raises(UserError, match="learning rate"):
        train(run, tmp_path / "run")


@pytest.mark.slow
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
    with pytest.raises(UserError, match=r"config.rate: \S+, asked 1.0; data_digest: "):
        train(run_of(root), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_state_is_named(root: Path, tmp_path: Path) -> None:
    run, out = run_of(root), tmp_path / "run"
    train_until(run, out, "validating epoch 2")
    (out / "best.safetensors").rename(out / "kept")
    with pytest.raises(UserError, match=r"best\.safetensors"):
        train(run, out)
    (out / "kept").rename(out / "best.safetensors")
    tensors, metadata = read_safetensors(out / "state.safetensors")
    tensors.pop(next(name for name in tensors if name.startswith("weights.")))
    write_safetensors(tensors, metadata, out / "state.safetensors")
    with pytest.raises(WeightsError, match=str(out)):
        train(run, out)


def test_a_damaged_result_is_named(done: Path, root: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(done, tmp_path / "run"))
    changes: list[dict[str, Any]] = [{"test": {}}, {"epochs": [1]}, {"skipped": None}]
    for change in changes:
        (out / "result.json").write_text(json.dumps(result(done) | change))
        with pytest.raises(UserError, match=r"result\.json"):
            train(run_of(root), out)


@pytest.mark.slow
def test_the_epoch_can_be_chosen_as_the_released_code_does(root: Path, tmp_path: Path) -> None:
    run = replace(run_of(root, epochs=2), select_on_test=True, select_by="plcc")
    found = train(run, tmp_path / "run")
    assert (found.selected_on, found.selected_by) == ("test", "plcc")
    best = max(epoch.plcc or 0 for epoch in found.epochs)
    assert found.test.plcc == pytest.approx(best, abs=1e-6)


def test_the_released_protocol_and_an_ablation(root: Path, tmp_path: Path) -> None:
    run = replace(run_of(root, epochs=1), protocol="released", variant="encoder")
    found = train(run, tmp_path / "run")
    assert (found.settings["protocol"], found.settings["variant"]) == ("released", "encoder")
    with pytest.raises(UserError, match="encoder"):
        open_model(tmp_path / "run" / "best.safetensors", "cpu")


def test_a_loss_that_is_not_finite_keeps_its_batch(root: Path, tmp_path: Path) -> None:
    def broken() -> DRExperts:
        model = tiny_model()
        torch.nn.init.constant_(model.score.weight, 3e38)
        return model

    with pytest.raises(NotFiniteError) as error:
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
    with pytest.raises(TrainingError, match="--accumulate 2"):
        train(run_of(root), tmp_path / "run")
