"""Variants of the model: what reaches their scores, what is trained, and what they compute."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from drexperts.model.ablations import VARIANTS, ablated
from drexperts.model.config import DRExpertsConfig
from drexperts.runtime.errors import ConfigError

PRIOR = ("controller.", "prompts.")
# These add one number to a whole row of logits, which cancels in the softmax.
CANCELLING = {
    "saliency.distortion.key.bias",
    "saliency.semantic.key.bias",
    "saliency.keys.norm.bias",
}
GROUPS = {
    "only_dis": (0,),
    "only_sem": (1,),
    "only_bri": (2,),
    "no_dis": (1, 2),
    "no_sem": (0, 2),
    "no_bri": (0, 1),
}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def variant(
    tiny: Callable[..., DRExpertsConfig], random_model: Callable[..., Any]
) -> Callable[..., Any]:
    def make(name: str, preset: str = "paper") -> Any:
        torch.manual_seed(7)
        return ablated(random_model(tiny(preset)), name).double()

    return make


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_reaches_the_score_is_trained_and_nothing_else(name, preset, variant, images):
    model = variant(name, preset)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(not parameter_name.startswith(PRIOR))
    scores, weights, maps = model(images)
    assert scores.shape == (3,)
    assert weights.shape == (3, 10)
    assert maps.shape == (3, 10, 4, 4)
    scores.square().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    largest = max(float(g.abs().max()) for g in gradients.values())
    reaching = {n for n, g in gradients.items() if g.abs().max() > 1e-12 * largest}
    assert reaching == trained - CANCELLING
    assert not [name for name in trained if name.startswith(PRIOR)]


def test_full_is_the_model_itself(tiny, random_model):
    model = random_model(tiny())
    assert ablated(model, "full") is model


def test_the_encoder_alone_is_its_cls_token(variant, images):
    full, alone = variant("full"), variant("encoder")
    expected = full.score(full.encoder(images)[:, 0])[:, 0]
    torch.testing.assert_close(alone(images).score, expected)
    assert {name.partition(".")[0] for name in alone.state_dict()} == {"encoder", "score"}


def test_the_prior_alone_sees_an_image_through_ten_dot_products(variant, images):
    full, alone = variant("full"), variant("daclip")
    embedding = full.controller(full.controller_input(images)).embedding[:, 0]
    cosines = F.cosine_similarity(embedding[:, None], full.prompts(embedding)[None], dim=-1)
    expected = alone.score(F.gelu(alone.hidden(100 * cosines)))[:, 0]
    torch.testing.assert_close(alone(images).score, expected)
    assert "encoder" not in {name.partition(".")[0] for name in alone.state_dict()}


def test_unweighted_experts_all_count_the_same(variant, images):
    full, unweighted = variant("full"), variant("dsdm")
    prior = full.controller(full.controller_input(images))
    features, _ = full.saliency(full.encoder(images), prior, full.prompts(prior.embedding))
    scores = [
        full.score(full.weighting.ffn(full.weighting.norm(features[:, i]))) for i in range(10)
    ]
    expected = torch.stack(scores).mean(0)[:, 0]
    torch.testing.assert_close(unweighted(images).score, expected)
    assert not [name for name in unweighted.state_dict() if "generator" in name]


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("name", GROUPS)
def test_a_left_out_group_is_as_one_whose_columns_are_zero(name, preset, variant, images):
    full, some = variant("full", preset), variant(name, preset)
    first = full.weighting.generator[0].weight
    with torch.no_grad():
        for part in {0, 1, 2} - set(GROUPS[name]):
            first.chunk(3, dim=-1)[part].zero_()
    expected, got = full(images), some(images)
    torch.testing.assert_close(got, expected)
    assert expected.score.std() > 0


def test_semantics_alone_weigh_all_experts_the_same(variant, images):
    weights = variant("only_sem")(images).weights
    torch.testing.assert_close(weights, weights[:, :1].expand(-1, 10))


def test_unknown_variants_are_refused_with_the_known_ones(tiny, random_model):
    with pytest.raises(ConfigError, match=r"ddwm.*full, encoder"):
        ablated(random_model(tiny()), "ddwm")
