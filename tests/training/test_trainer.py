"""A step of training: schedules, accumulation, averages, and a state that continues to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drexperts.model.backbones import normalised
from drexperts.model.dr_experts import DRExperts, new_model
from drexperts.runtime.errors import ConfigError, NotFiniteError
from drexperts.training.trainer import CosineSchedule, StepSchedule, TrainConfig, Trainer, start_at

SIDE = 64
EPOCH_STEPS = 4


@pytest.fixture
def model(tiny: Callable[..., Any], random_model: Callable[..., Any]) -> DRExperts:
    return random_model(tiny()).train()


def batches(count: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Flat noisy images labelled with their brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(count, size, generator=generator)
    noise = torch.randn(count, size, 3, SIDE, SIDE, generator=generator)
    pixels = (255 * labels[..., None, None, None] + 8 * noise).clamp(0, 255).to(torch.uint8)
    return [(normalised(images), targets) for images, targets in zip(pixels, labels, strict=True)]


def trainer_of(model: DRExperts, **changes: Any) -> Trainer:
    def loss(images: Tensor, targets: Tensor) -> Tensor:
        return F.smooth_l1_loss(model(images).score.float(), targets)

    defaults: dict[str, Any] = {"batch": 4, "epochs": 3, "schedule": StepSchedule(1e-3)}
    return Trainer(model, loss, TrainConfig(**(defaults | changes)), EPOCH_STEPS)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_papers_rate_falls_to_a_tenth_after_every_third_epoch() -> None:
    rates = [StepSchedule()(step, 10, 90) for step in range(90)]
    assert rates == pytest.approx([2e-4] * 30 + [2e-5] * 30 + [2e-6] * 30)


def test_the_released_warm_up_reaches_the_rate_at_the_end_of_the_third_epoch() -> None:
    rates = [StepSchedule(warmup_epochs=3)(step, 10, 90) for step in range(90)]
    assert rates[0] == pytest.approx(2e-7)
    assert rates[:30] == sorted(rates[:30])
    assert rates[29] == pytest.approx(2e-4 - (2e-4 - 2e-7) / 30)
    assert rates[30:] == pytest.approx([2e-5] * 30 + [2e-6] * 30)


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 11])
def test_every_training_has_its_three_thirds(steps: int) -> None:
    rates = [StepSchedule()(step, 1, steps) for step in range(steps)]
    assert rates == pytest.approx([2e-4 * 0.1 ** (3 * step // steps) for step in range(steps)])
    assert len({f"{rate:.1e}" for rate in rates}) == min(steps, 3)


def test_the_cosine_rises_then_falls_to_zero() -> None:
    schedule = CosineSchedule(3e-3, warmup_steps=4)
    rates = [schedule(step, 10, 40) for step in range(41)]
    assert rates[:4] == pytest.approx([3e-3 * k / 4 for k in (1, 2, 3, 4)])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[40] == pytest.approx(0)


def test_a_warm_up_longer_than_the_training_only_rises() -> None:
    schedule = CosineSchedule(3e-3, warmup_steps=10)
    rates = [schedule(step, 5, 5) for step in range(5)]
    assert rates == pytest.approx([3e-4, 6e-4, 9e-4, 12e-4, 15e-4])


def test_the_loss_falls_and_every_step_is_told(model: DRExperts) -> None:
    start_at(model, 0.5)
    trainer = trainer_of(model, epochs=15)
    steps = [trainer.step([batch]) for batch in 15 * batches(EPOCH_STEPS)]
    assert [step.number for step in steps] == list(range(1, 61))
    assert {step.steps for step in steps} == {60}
    assert sum(step.loss for step in steps[-4:]) < 0.3 * sum(step.loss for step in steps[:4])


def test_the_prior_stays_bit_for_bit_and_the_rest_moves(model: DRExperts) -> None:
    before = copied(model)
    trainer = trainer_of(model)
    for batch in batches(4):
        trainer.step([batch])
    for name, value in model.state_dict().items():
        if name.startswith(("controller.", "prompts.")):
            assert torch.equal(value, before[name]), name
    for name in ("score.weight", "saliency.value.weight", "encoder.vit.patch_embed.proj.weight"):
        assert not torch.equal(model.state_dict()[name], before[name]), name


def test_parts_of_a_batch_have_the_gradient_of_the_whole(
    tiny: Callable[..., Any], random_model: Callable[..., Any]
) -> None:
    losses = []
    for parts in (1, 2, 4):
        model = random_model(tiny()).double().train()
        trainer = trainer_of(model, accumulate=parts)
        found = []
        for images, targets in batches(6):
            chunks = zip(images.double().chunk(parts), targets.double().chunk(parts), strict=True)
            found.append(trainer.step(list(chunks)).loss)
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] == pytest.approx(losses[0], rel=1e-6)


def test_the_same_parameters_decay_as_in_the_released_code(model: DRExperts) -> None:
    trainer = trainer_of(model)
    decaying, free = trainer._optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {names[id(parameter)] for parameter in decaying["params"]}
    assert {"encoder.vit.cls_token", "encoder.vit.pos_embed", "score.weight"} <= decays
    assert {"saliency.alpha", "weighting.lambda_", "saliency.features.linear.weight"} <= decays
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    for name in ("saliency.features.linear.bias", "weighting.norm.weight", "score.bias"):
        assert name not in decays
    assert not any("prelu" in name or name.endswith((".bias", "gamma")) for name in decays)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_state_continues_to_the_bit(
    ema: float | None, tiny: Callable[..., Any], random_model: Callable[..., Any]
) -> None:
    models = [random_model(tiny()).train() for _ in range(2)]
    whole, first = (trainer_of(model, ema=ema) for model in models)
    for batch in batches(6):
        whole.step([batch])
    for batch in batches(6)[:3]:
        first.step([batch])
    tensors, values = first.state()
    resumed = random_model(tiny(), seed=1).train()
    second = trainer_of(resumed, ema=ema)
    resumed.controller.load_state_dict(models[0].controller.state_dict())
    resumed.prompts.load_state_dict(models[0].prompts.state_dict())
    second.load_state({name: value.clone() for name, value in tensors.items()}, values)
    for batch in batches(6)[3:]:
        second.step([batch])
    assert_same(resumed, models[0].state_dict())
    with second.averaged(), whole.averaged():
        assert_same(resumed, models[0].state_dict())


def test_an_average_lags_behind_and_is_taken_back(model: DRExperts) -> None:
    trainer = trainer_of(model, ema=0.5)
    expected = model.score.weight.detach().clone()
    for batch in batches(3):
        trainer.step([batch])
        decay = min(0.5, trainer.done / (9 + trainer.done))
        expected = decay * expected + (1 - decay) * model.score.weight.detach()
    now = copied(model)
    with trainer.averaged():
        torch.testing.assert_close(model.score.weight.detach(), expected)
        assert not torch.equal(model.score.weight, now["score.weight"])
    assert_same(model, now)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(value: float, model: DRExperts) -> None:
    trainer = trainer_of(model, ema=0.9)
    (images, targets), good = batches(2)
    trainer.step([good])
    before, done = copied(model), trainer.done
    with pytest.raises(NotFiniteError, match="step 2"):
        trainer.step([(images, torch.full_like(targets, value))])
    assert_same(model, before)
    assert trainer.done == done


def exploding(amp: str, model: DRExperts) -> Trainer:
    """A trainer whose losses are finite and whose gradients are not."""

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        return (model(images).score.float() * 0).sum().abs().sqrt()

    return Trainer(model, loss, TrainConfig(4, amp=amp), 100)  # type: ignore[arg-type]


def test_gradients_that_are_not_finite_change_nothing(model: DRExperts) -> None:
    before = copied(model)
    with pytest.raises(NotFiniteError, match="step 1"):
        exploding("fp32", model).step([batches(1)[0]])
    assert_same(model, before)


def test_in_fp16_some_steps_may_be_lost_and_not_all(model: DRExperts) -> None:
    before, trainer = copied(model), exploding("fp16", model)
    for _ in range(20):
        trainer.step([batches(1)[0]])
    with pytest.raises(NotFiniteError, match="--amp bf16"):
        trainer.step([batches(1)[0]])
    assert_same(model, before)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_reduced_precision_follows_float32(amp: str, tiny: Callable[..., Any]) -> None:
    losses = []
    for precision in ("fp32", amp):
        torch.manual_seed(0)
        model = new_model(tiny()).train()
        start_at(model, 0.0)
        trainer = trainer_of(model, amp=precision)
        losses.append([trainer.step([batch]).loss for batch in 2 * batches(EPOCH_STEPS)])
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_a_start_is_near_the_asked_score(preset: str, tiny: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = new_model(tiny(preset))
    start_at(model, 60.0)
    with torch.no_grad():
        scores = torch.cat([model(images).score for images, _ in batches(3)])
    assert (scores - 60).abs().max() < 15


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch": 0},
        {"accumulate": 0},
        {"schedule": StepSchedule(0.0)},
        {"schedule": StepSchedule(float("nan"))},
        {"weight_decay": -1.0},
        {"ema": 1.0},
        {"amp": "int8"},
        {"seed": -1},
    ],
)
def test_invalid_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TrainConfig(**({"batch": 4} | changes))
