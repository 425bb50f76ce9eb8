"""The whole model: its two forms, its switches, its frozen prior."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import drexperts.model
from drexperts.model.backbones import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ControllerInput,
    PromptEncoder,
    constant_prompts,
)
from drexperts.model.config import PRESETS, DRExpertsConfig
from drexperts.model.dr_experts import DRExperts, new_model

TOLERANCE = 1e-10


def images(batch: int = 2, size: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)


def test_the_package_exports_its_names_without_importing_torch():
    code = "import sys; sys.modules['torch'] = None; from drexperts.model import DRExpertsConfig"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in ("Checkpoint", "DRExperts", "convert_daclip", "load_checkpoint", "new_model"):
        assert getattr(drexperts.model, name).__name__ == name


@pytest.mark.parametrize("preset", PRESETS)
def test_both_forms_agree_in_values_and_gradients(preset, tiny, random_model):
    model: DRExperts = random_model(tiny(preset)).double()
    model.requires_grad_(True)
    found = []
    for form in (model.forward, model.forward_dense):
        given = images().requires_grad_()
        prediction = form(given)
        total = prediction.score.sum() + prediction.weights.sin().sum()
        total = total + (prediction.maps * prediction.maps.detach()).sum()
        leaves = [given, *model.parameters()]
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        filled = [
            torch.zeros_like(p) if g is None else g for p, g in zip(leaves, gradients, strict=True)
        ]
        found.append([*prediction, *filled])
    for reduced, literal in zip(*found, strict=True):
        torch.testing.assert_close(reduced, literal, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("bias", ["inside", "outside"])
def test_score_bias(bias, tiny, random_model):
    model = random_model(tiny(score_bias=bias))
    before = model(images().float())
    model.score.bias.data += 1.0
    after = model(images().float())
    expected = torch.ones(2) if bias == "outside" else before.weights.sum(1)
    torch.testing.assert_close(after.score - before.score, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("norm", ["once", "twice"])
def test_controller_input(norm, antialias, tiny):
    module = ControllerInput(tiny(clip_norm=norm, clip_antialias=antialias)).double()
    pixels = torch.rand(2, 3, 64, 64, dtype=torch.float64)

    def normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    given = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)
    source = pixels if norm == "once" else given
    small = F.interpolate(source, (48, 48), mode="bilinear", antialias=antialias)
    torch.testing.assert_close(module(given), normalise(small, CLIP_MEAN, CLIP_STD))


def test_prior_is_frozen_and_everything_else_is_not(tiny):
    for name, parameter in new_model(tiny("official")).named_parameters():
        assert parameter.requires_grad != name.startswith(("controller.", "prompts.")), name


def test_prompts_lose_nothing_on_the_way_to_float64(tiny, random_model):
    model = random_model(tiny())
    exact = model.prompts.prompts.clone()
    assert exact.dtype == torch.float64
    assert torch.equal(model.double().prompts.prompts, exact)


def test_prompt_encoder_becomes_a_constant():
    from open_clip.transformer import TextTransformer

    torch.manual_seed(0)
    encoder = PromptEncoder(TextTransformer(width=32, heads=2, layers=2, output_dim=24)).eval()
    like = torch.zeros(0)
    constant = constant_prompts(encoder)(like)
    assert constant.shape == (10, 24)
    torch.testing.assert_close(constant, encoder(like))
    torch.testing.assert_close(constant.norm(dim=-1), torch.ones(10))


def test_full_size_parameter_count():
    """The released model's 25,925,255 trainable parameters without those that reach no score.

    Its `backbone.head` is frozen, so neither count has it.
    """
    with torch.device("meta"):
        model = new_model(DRExpertsConfig.official())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    dead = (512 * 384 + 384) + (576 + 1)  # L1, L2
    assert trainable == 25_925_255 - dead


def test_224_px_and_base_build_and_run():
    config = DRExpertsConfig.paper("base", 224)
    encoder, controller = replace(config.encoder, depth=1), replace(config.controller, depth=1)
    model = new_model(config.with_sizes(encoder, controller))
    prediction = model(torch.randn(1, 3, 224, 224))
    assert prediction.score.shape == (1,)
    assert prediction.weights.shape == (1, 10)
    assert prediction.maps.shape == (1, 10, 14, 14)
