"""Each fold: a module and its folded self agree in float64."""

from typing import Any

import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from timm.layers import LayerScale
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from drexperts.export.graph import fold
from drexperts.model.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ControllerInput,
    PromptEncoder,
    constant_prompts,
)
from drexperts.model.experts import EXPERTS, AbsorbedQuery, ExpertLinear

close = torch.testing.assert_close


def moved(module: nn.Module) -> Any:
    """In float64, evaluation mode, every parameter away from its initial value."""
    torch.manual_seed(0)
    module = module.double().eval()
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


def tokens(width: int = 24) -> Tensor:
    return torch.randn(2, 7, width, dtype=torch.float64)


def test_layer_scale():
    block = moved(Block(24, 3, qkv_bias=True, init_values=1.0))
    folded = fold.fold_layer_scale(block)
    x = tokens()
    close(folded(x), block(x))
    assert not any(isinstance(m, LayerScale) for m in folded.modules())
    assert isinstance(block.ls1, LayerScale)  # the given module is left as it was


def test_timm_block():
    block = moved(Block(24, 3, qkv_bias=True))
    folded, x = fold.fold_timm_block(block), tokens()
    close(folded(x.flatten(0, 1), len(x)), block(x).flatten(0, 1))
    assert folded.key.bias is None


def test_open_clip_block():
    block = moved(ResidualAttentionBlock(24, 3))
    folded, x = fold.fold_open_clip_block(block), tokens()
    close(folded(x.flatten(0, 1), len(x)), block(x).flatten(0, 1))
    assert folded.key.bias is None


@pytest.mark.parametrize("bias", [True, False])
def test_the_patch_embedding_includes_the_normalisation(bias):
    conv = moved(nn.Conv2d(3, 8, 4, 4, bias=bias))
    mean, std = (255 * torch.tensor(v) for v in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = torch.randint(0, 256, (2, 3, 8, 12)).double()
    normalised = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    close(fold.fold_patches(conv, mean, std)(pixels), conv(normalised))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("norm", ["once", "twice"])
def test_controller_input_is_a_matrix_resize_and_statistics(norm, antialias, tiny):
    module = ControllerInput(tiny(clip_norm=norm, clip_antialias=antialias)).double()
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).double()
    images = (pixels / 255 - module.imagenet_mean) / module.imagenet_std
    mean, std = (v.view(3, 1, 1) for v in fold.controller_statistics(module))
    folded = fold.fold_resize(module, 64)
    close((folded(pixels) - mean) / std, module(images))


@pytest.mark.parametrize("antialias", [True, False])
def test_resize_384_to_224(antialias):
    from drexperts.model.backbones import resize
    from drexperts.model.config import DRExpertsConfig

    module = ControllerInput(DRExpertsConfig(clip_antialias=antialias))
    folded = fold.fold_resize(module, 384)
    pixels = torch.rand(1, 3, 384, 384, dtype=torch.float64)
    close(folded(pixels), resize(pixels, 224, antialias))
    assert isinstance(fold.fold_resize(module, 224), nn.Identity)


def test_zero_linear():
    zero, project = moved(nn.Linear(6, 6)), moved(nn.Linear(6, 4))
    x = torch.randn(3, 6, dtype=torch.float64)
    close(fold.fold_zero_linear(zero, project)(x), project(zero(x)))


@pytest.mark.parametrize("experts", [1, EXPERTS])
def test_query(experts):
    query = moved(AbsorbedQuery(ExpertLinear(experts, 6, 4), ExpertLinear(experts, 5, 4), 0.3))
    x = torch.randn(2, EXPERTS, 6, dtype=torch.float64)
    folded = fold.fold_query(query)
    close(folded(x), query(x))
    assert folded.weight.shape == (experts, 5, 6)


def test_prompts():
    encoder = moved(PromptEncoder(TextTransformer(width=32, heads=2, layers=2, output_dim=24)))
    like = torch.zeros(0, dtype=torch.float64)
    close(constant_prompts(encoder)(like), encoder(like))


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_all_folds_together(preset, tiny, random_model):
    """Folded in float64, so the only difference is one rounding to float32."""
    model = random_model(tiny(preset))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold.inference_model(model)
    pixels = torch.randint(0, 256, (3, 3, 64, 64)).double()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    got = folded.double()(pixels)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    expected = model.double()((pixels / 255 - mean) / std)
    for a, b in zip(got, expected, strict=True):
        close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", ["pooled", "tokens"])
@pytest.mark.parametrize("keys", ["hidden", "embedding"])
def test_folds_hold_for_mixed_switches(source, keys, tiny, random_model):
    model = random_model(tiny(distortion_source=source, distortion_keys=keys))
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).float()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = model((pixels / 255 - mean) / std)
    for a, b in zip(fold.inference_model(model)(pixels), expected, strict=True):
        close(a, b, rtol=2e-3, atol=2e-4)
