"""The report of `drx bench --train`: its form, and that all train the same. No test asserts a time.

Beside it what reduced precision may change: how a training goes, and not what it comes to.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from drexperts.bench.training_step import (
    OURS,
    PARTS,
    _agree,
    bench_training,
    contenders,
    print_training_report,
)
from drexperts.model.dr_experts import new_model
from drexperts.runtime.errors import ConfigError, UserError
from drexperts.training.trainer import Amp, StepSchedule, TrainConfig, Trainer

NAMES = {OURS, "ours, fp32", "dense", "released"}


@pytest.fixture(scope="module")
def report(tiny: Callable[..., Any]) -> dict[str, Any]:
    return bench_training(tiny("official"), batch=2, rounds=3, amp="bf16", threads=1)


def test_report_has_every_contender(report: dict[str, Any]) -> None:
    json.dumps(report, allow_nan=False)
    assert set(report["latency"]) == set(report["peak_bytes"]) == NAMES
    assert set(report["ratio"]) == set(report["peak_ratio"]) == NAMES - {OURS}
    assert all(len(times["samples"]) == 3 for times in report["latency"].values())
    assert report["amp"] == {
        OURS: "bf16",
        "ours, fp32": "fp32",
        "dense": "fp32",
        "released": "fp32",
    }
    assert (report["kind"], report["machine"]["threads"]) == ("training", 1)
    assert report["command"].endswith(
        "--preset official --batch 2 --repeats 3 --amp bf16 --threads 1"
    )


def test_all_contenders_train_the_same(report: dict[str, Any]) -> None:
    losses = report["loss"]
    assert losses["ours, fp32"] == pytest.approx(losses["dense"], rel=1e-5)
    assert losses["dense"] == pytest.approx(losses["released"], rel=1e-5)
    assert losses[OURS] == pytest.approx(losses["dense"], rel=0.05)
    assert losses[OURS] != losses["ours, fp32"]
    assert report["gates"] == {"losses": True}
    entrants = contenders("bf16")
    assert not _agree(losses | {"dense": 1.001 * losses["dense"]}, entrants)


def test_parts_are_a_whole_step(report: dict[str, Any]) -> None:
    assert set(report["parts"]) == set(PARTS)
    parts = zip(*(report["parts"][name]["samples"] for name in PARTS), strict=True)
    assert [sum(step) for step in parts] == pytest.approx(report["latency"][OURS]["samples"])
    assert all(min(times["samples"]) > 0 for times in report["parts"].values())
    assert min(report["data"]["samples"]) > 0


def test_report_is_shown(report: dict[str, Any]) -> None:
    shown = io.StringIO()
    print_training_report(report, Console(file=shown, width=120))
    for name in (*NAMES, *PARTS, "data"):
        assert name in shown.getvalue()


def test_mistakes(tiny: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a batch and a round at least"):
        bench_training(tiny(), batch=0)
    missing = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match=r"model\.safetensors"):
        bench_training(tiny(), rounds=1, checkpoint=missing)


def losses_of(model: Any, amp: Amp) -> Tensor:
    """Twenty steps towards the brightness of flat noisy images."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(16, generator=generator)
    images = labels[:, None, None, None] + 0.1 * torch.randn(16, 3, 64, 64, generator=generator)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.smooth_l1_loss(model(images).score.float(), labels)

    config = TrainConfig(16, schedule=StepSchedule(5e-5), amp=amp)
    trainer = Trainer(model, loss, config, epoch_steps=100)
    return torch.tensor([trainer.step([(images, labels)]).loss for _ in range(20)])


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_bf16_learns_as_fp32_does(preset: str, tiny: Callable[..., Any]) -> None:
    curves = []
    for amp in ("fp32", "bf16"):
        torch.manual_seed(0)
        curves.append(losses_of(new_model(tiny(preset)), amp))
    fp32, bf16 = curves
    assert fp32[-1] < 0.3 * fp32[0]
    torch.testing.assert_close(bf16, fp32, rtol=0, atol=0.003 * float(fp32[0]))
    assert not torch.equal(bf16, fp32)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_autocast_rounds_the_encoders_alone(
    preset: str, tiny: Callable[..., Any], random_model: Callable[..., Any]
) -> None:
    model = random_model(tiny(preset))
    images = torch.randn(2, 3, 64, 64)
    encode, prior = model.encoder.forward, model.controller._prior
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encode(images)
        # As on a GPU, where the controller is not exempt.
        rounded = prior(model.controller_input(images))
    kept = model.controller(model.controller_input(images))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.encoder, "forward", lambda _: tokens)
        for given in (kept, rounded):
            patch.setattr(model.controller, "forward", lambda _, given=given: given)
            with torch.autocast("cpu", torch.bfloat16):
                found = model(images)
            expected = model._predict(tokens.float(), given.to(images))
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_frozen_prior_is_not_rounded_on_a_cpu(
    tiny: Callable[..., Any], random_model: Callable[..., Any]
) -> None:
    controller = random_model(tiny("official")).controller
    images = torch.randn(2, 3, 48, 48)
    expected = controller(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = controller(images)
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
