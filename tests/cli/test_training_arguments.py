"""What a training starts from, as it is typed: sizes, image sizes, weights or nothing."""

import argparse
import json
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.training_verbs import SHORT, Call, refused

from drexperts.cli.training_arguments import train_config_from
from drexperts.data.recipes import RECIPES
from drexperts.model.checkpoint import load_checkpoint
from drexperts.model.config import DRExpertsConfig
from drexperts.training import from_nothing
from drexperts.training.trainer import CosineSchedule, StepSchedule

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.fixture
def short_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prior that is trained for one step."""
    short = partial(from_nothing.PriorTraining, squares=8, epochs=1, batch=8)
    monkeypatch.setattr(from_nothing, "PriorTraining", short)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "create_connection", connect)


@pytest.mark.slow
@pytest.mark.usefixtures("short_prior", "no_network")
def test_tiny_is_trained_exported_and_scores(
    table: Path, photos: Path, tmp_path: Path, call: Call
) -> None:
    out, bundle = tmp_path / "run", tmp_path / "bundle"
    command = ["train", "--size", "tiny", "--data", "folder", table, "--out", out, *SHORT]
    ended = call(*command)
    assert ended.status == 0
    (result,) = ended.document["results"]
    assert result["prior"]["squares"] == 8
    config = load_checkpoint(out / "best.safetensors").model.config
    assert (config.encoder.image_size, config.preset) == (128, "paper")
    assert config.encoder.name.startswith("ViT of ")
    assert call("export", out / "best.safetensors", "--out", bundle).status == 0
    assert "deit3" not in (bundle / "manifest.json").read_text()
    informed = call("info", bundle)
    assert informed.document["model"] == config.parts
    assert "deit3" not in json.dumps(informed.document) + informed.error
    assert "DA-CLIP" not in informed.error
    assert call("score", bundle, photos / "a.png").status == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--size", "tiny", "--image-size", "136"], ["136 px", "128 or 144"]),
        (["--size", "tiny", "--image-size", "64"], ["64 px", "such as 128"]),
        (["--size", "small", "--image-size", "200"], ["192 or 208"]),
        (["--size", "small", "--from-nothing", "--image-size", "200"], ["192 or 208"]),
        (["--size", "tiny", "--encoder", "a.pth"], ["--size tiny", "leave --encoder out"]),
        (["--size", "tiny", "--prior", "a.pt"], ["--size tiny", "leave --prior out"]),
        (["--from-nothing", "--prior", "a.pt"], ["--from-nothing", "leave --prior out"]),
        (["--size", "tiny", "--preset", "official"], ["24x24", "16x16"]),
    ],
)
def test_combinations_that_do_not_exist(
    options: list[str], named: list[str], data: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    given = ["--data", "folder", data["folder"], "--out", tmp_path / "run", *SHORT]
    refused(call("train", *given, *options), *named)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [["--size", "tiny"], ["--from-nothing"]])
def test_a_checkpoint_to_start_from_has_its_size(
    options: list[str], start: Path, data: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    given = ["--data", "folder", data["folder"], "--out", tmp_path / "run", *SHORT]
    refused(call("train", *given, "--init", start, *options), f"leave {options[0]} out")


@pytest.mark.parametrize(
    ("config", "epochs", "schedule"),
    [
        (DRExpertsConfig.paper(), 9, StepSchedule(2e-4, 0)),
        (DRExpertsConfig.official(), 9, StepSchedule(2e-4, 3)),
        (DRExpertsConfig.from_nothing("tiny", 128), 10, CosineSchedule(1e-3, 50)),
        (DRExpertsConfig.from_nothing("small", 384), 10, CosineSchedule(1e-3, 50)),
    ],
)
def test_the_optimisation_depends_on_published_weights(
    config: DRExpertsConfig, epochs: int, schedule: object
) -> None:
    given: dict[str, Any] = {"accumulate": 1, "ema": None, "seed": 0, "amp": "fp32"}
    asked = argparse.Namespace(epochs=None, rate=None, device="cpu", **given)
    found = train_config_from(asked, RECIPES["folder"], config)
    assert (found.epochs, found.schedule, found.batch) == (epochs, schedule, 32)
    asked.epochs, asked.rate = 3, 5e-4
    found = train_config_from(asked, RECIPES["folder"], config)
    assert (found.epochs, found.schedule.rate) == (3, 5e-4)
