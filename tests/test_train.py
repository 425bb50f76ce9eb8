"""The trainer: it learns, repeats itself, leaves the prior alone, and stops at NaN."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drexperts.backbone import IMAGENET_MEAN, IMAGENET_STD, normalised
from drexperts.config import ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.model import DRExperts, new_model
from drexperts.runtime.errors import ConfigError
from drexperts.train import (
    Step,
    TrainConfig,
    TrainingError,
    random_crops,
    scale_scores,
    train,
)

SIDE = 16
CONFIG = TrainConfig(
    epochs=12, batch_size=16, learning_rate=3e-3, weight_decay=0.01, warmup_steps=4, seed=0
)


def tiny_model() -> DRExperts:
    torch.manual_seed(0)
    encoder = EncoderConfig(image_size=SIDE, patch_size=8, width=32, depth=1, heads=2)
    controller = ControllerConfig(SIDE, patch_size=8, width=16, depth=1, heads=2, embedding=16)
    return new_model(DRExpertsConfig.paper().with_sizes(encoder, controller))


def brightness_problem() -> tuple[Tensor, Tensor]:
    """Flat noisy images larger than the model's, labelled with their brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(64, generator=generator)
    noise = torch.randn(64, 3, SIDE + 4, SIDE + 6, generator=generator)
    pixels = (255 * labels[:, None, None, None] + 8 * noise).clamp(0, 255).to(torch.uint8)
    return pixels, labels


def ignore(_: Step) -> None:
    pass


def test_the_loss_falls_and_every_step_is_told() -> None:
    model, told = tiny_model(), list[Step]()
    losses = train(model, *brightness_problem(), CONFIG, told.append)
    assert losses == [step.loss for step in told]
    assert [step.number for step in told] == list(range(1, 12 * 4 + 1))
    assert {step.steps for step in told} == {len(losses)}
    assert sum(losses[-4:]) < 0.2 * sum(losses[:4])
    assert not model.training


def test_the_prior_stays_bit_for_bit_and_the_rest_moves() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, *brightness_problem(), replace(CONFIG, epochs=2), ignore)
    for name, value in model.state_dict().items():
        frozen = name.startswith(("controller.", "prompts."))
        if frozen:
            assert torch.equal(value, before[name]), name
    for name in ("score.weight", "saliency.value.weight", "encoder.vit.patch_embed.proj.weight"):
        assert not torch.equal(model.state_dict()[name], before[name]), name


def test_a_seed_repeats_a_training_whatever_the_global_generator() -> None:
    states: list[Tensor] = []
    for seed in (0, 0, 1):
        model = tiny_model()
        torch.manual_seed(len(states))
        config = replace(CONFIG, epochs=2, seed=seed)
        train(model, *brightness_problem(), config, ignore)
        states.append(torch.cat([p.flatten() for p in model.parameters()]))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.equal(states[0], states[2])


def test_nan_stops_with_what_to_do() -> None:
    pixels, labels = brightness_problem()
    labels[:] = float("nan")
    with pytest.raises(TrainingError, match="lower the learning rate"):
        train(tiny_model(), pixels, labels, CONFIG, ignore)


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = [CONFIG.rate(step, 40) for step in range(41)]
    assert rates[:4] == pytest.approx([3e-3 * k / 4 for k in (1, 2, 3, 4)])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[4] == pytest.approx(3e-3)
    assert rates[40] == pytest.approx(0)


def test_a_warmup_longer_than_the_training_only_rises() -> None:
    config = replace(CONFIG, warmup_steps=10)
    assert [config.rate(step, 5) for step in range(5)] == pytest.approx(
        [3e-4, 6e-4, 9e-4, 12e-4, 15e-4]
    )


def test_scaling_multiplies_the_scores() -> None:
    model = tiny_model()
    images = normalised(brightness_problem()[0][:4, :, :SIDE, :SIDE])
    with torch.no_grad():
        before = model(images)
        scale_scores(model, 100)
        after = model(images)
    torch.testing.assert_close(after.score, 100 * before.score)
    torch.testing.assert_close(after.weights, before.weights, rtol=0, atol=0)


def test_normalised_undoes_to_pixels() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [
        (v - m) / s for v, m, s in zip((0, 0.2, 1), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    ]
    torch.testing.assert_close(normalised(pixels).flatten(), torch.tensor(expected))


def test_crops_are_pieces_of_their_own_image_some_mirrored() -> None:
    rows, columns = torch.arange(6)[:, None], torch.arange(7)
    image = (10 * rows + columns).to(torch.uint8).expand(40, 3, 6, 7)
    crops = random_crops(image, 4, torch.Generator().manual_seed(0)).int()
    steps = crops.diff(dim=-1)
    mirrored = steps[:, 0, 0, 0] == -1
    assert 0 < mirrored.sum() < 40
    assert torch.equal(steps.abs(), torch.ones_like(steps))
    assert torch.equal(crops.diff(dim=-2), torch.full((40, 3, 3, 4), 10, dtype=torch.int32))
    corners = torch.where(mirrored, crops[:, 0, 0, -1], crops[:, 0, 0, 0])
    assert set(corners.tolist()) == {10 * y + x for y in range(3) for x in range(4)}


def test_images_smaller_than_the_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="7x6 images are smaller"):
        random_crops(torch.zeros(1, 3, 6, 7, dtype=torch.uint8), 8, torch.Generator())


def test_an_empty_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        replace(CONFIG, epochs=0)
