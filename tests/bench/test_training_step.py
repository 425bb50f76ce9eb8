"""The report of `drx bench --train`, and that all variants train the same. No test asserts a time.

Also what reduced precision may change: the course of a training, but not its result.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from drexperts.bench import TrainingReport, bench_training
from drexperts.bench.json_files import read_json, write_json
from drexperts.bench.reports import OURS
from drexperts.bench.training_step import PARTS
from drexperts.model.dr_experts import new_model
from drexperts.runtime.errors import ConfigError, UserError
from drexperts.training.trainer import Amp, StepSchedule, TrainConfig, Trainer

pytestmark = pytest.mark.slow  # what they share takes seconds to make

NAMES = (OURS, "ours, fp32", "dense", "released")


@pytest.fixture(scope="module")
def report(tiny: Callable[..., Any]) -> TrainingReport:
    return bench_training(tiny("official"), batch=2, rounds=3, amp="bf16", threads=1)


def test_report_has_every_variant(report: TrainingReport, tmp_path: Path) -> None:
    assert tuple(report.variants) == NAMES
    assert [variant.amp for variant in report.variants.values()] == ["bf16", *["fp32"] * 3]
    assert all(len(variant.seconds) == 3 for variant in report.variants.values())
    assert all(variant.peak_bytes for variant in report.variants.values())
    assert report.machine.threads == 1
    assert {"drexperts.training", "drexperts.kernels"} <= set(report.source.packages)
    options = "--preset official --batch 2 --repeats 3 --amp bf16 --threads 1"
    assert report.command.endswith(options)
    write_json(report, tmp_path / "report.json")
    assert read_json(tmp_path / "report.json", TrainingReport) == report


def test_all_variants_train_the_same(report: TrainingReport) -> None:
    losses = {name: variant.loss for name, variant in report.variants.items()}
    assert losses["ours, fp32"] == pytest.approx(losses["dense"], rel=1e-5)
    assert losses["dense"] == pytest.approx(losses["released"], rel=1e-5)
    assert losses[OURS] == pytest.approx(losses["dense"], rel=0.05)
    assert losses[OURS] != losses["ours, fp32"]
    assert report.losses_agree


def test_parts_are_a_whole_step(report: TrainingReport) -> None:
    assert tuple(report.parts) == PARTS
    steps = zip(*report.parts.values(), strict=True)
    assert [sum(step) for step in steps] == pytest.approx(report.variants[OURS].seconds)
    assert all(min(times) > 0 for times in report.parts.values())
    assert min(report.data) > 0


def test_mistakes(tiny: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0"):
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
