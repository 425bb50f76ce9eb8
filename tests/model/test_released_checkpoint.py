"""The authors' checkpoints: the same score for all weights, and errors that name keys."""

from functools import cache
from typing import Any

import open_clip
import pytest
import torch
from support import released
from torch import Tensor

from drexperts.model.config import DISTORTIONS
from drexperts.model.released_checkpoint import model_from_upstream
from drexperts.runtime.errors import WeightsError

WORDS = open_clip.get_tokenizer("ViT-B-32")(list(DISTORTIONS))
# Two heads in each tower, 64 px images, a controller on 2x2 patches of 64 px images.
PRIOR: dict[str, Any] = {
    "controller": (192, 2, 2),
    "embedding": 64,
    "text": (128, 2),
}


@cache
def _random_state(seed: int, spread: float) -> dict[str, Tensor]:
    return released.random_state(released.released_shapes(128, 2, 4, **PRIOR), seed, spread)


def small_state(seed: int = 0, spread: float = 0.3) -> dict[str, Tensor]:
    return dict(_random_state(seed, spread))


def small_score(state: dict[str, Tensor], images: Tensor) -> Tensor:
    return released.released_score(state, images, WORDS, (2, 2, 2), (2, 3, 2), 64)


def test_layout_has_the_published_number_of_keys():
    assert len(released.released_shapes()) == 870
    assert len(released.daclip_shapes()) == 631


@pytest.mark.parametrize(("seed", "spread"), [(0, 0.3), (1, 0.8), (2, 0.05)])
@pytest.mark.slow
def test_score_in_float64(seed, spread):
    state = small_state(seed, spread)
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    expected = small_score({k: v.double() for k, v in state.items()}, images)
    for given in (state, {k: v.double() for k, v in state.items()}):
        with torch.inference_mode():
            model = model_from_upstream(given).double()
            scores = model(images).score, model.forward_dense(images).score
        for score in scores:
            assert ((score - expected) / expected).abs().max() <= 1e-12


@pytest.mark.parametrize(("seed", "spread"), [(0, 0.3), (1, 0.8)])
def test_score_in_float32(seed, spread):
    state = small_state(seed, spread)
    images = torch.randn(3, 3, 64, 64)
    expected = small_score(state, images)
    with torch.inference_mode():
        score = model_from_upstream(state)(images).score
    # Relative to the largest score: a score may be small by cancellation, its rounding is not.
    assert (score - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_full_size_in_float32():
    """The real sizes and layout, once: 870 keys, 384 px."""
    state = released.random_state(released.released_shapes())
    images = torch.randn(1, 3, 384, 384)
    with torch.inference_mode():
        expected = released.released_score(state, images, WORDS, (12, 12, 12), (6, 12, 8))
        model = model_from_upstream(state)
        score = model(images).score
    assert model.config == type(model.config).official()
    assert ((score - expected) / expected).abs().max() <= 1e-5


def test_checkpoint_with_its_wrapping():
    state = small_state()
    wrapped = {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 8, "max_plcc": 0.9}
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        plain, unwrapped = model_from_upstream(state)(images), model_from_upstream(wrapped)(images)
    assert torch.equal(plain.score, unwrapped.score)


@pytest.mark.parametrize(
    "key",
    [
        "score.weight",
        "linears.7.bias",
        "diff_attention.alpha",
        "backbone.blocks.1.gamma_2",
        "backbone.pos_embed",
        "backbone.patch_embed.proj.weight",
        "head.visual_control.transformer.zero_modules.1.weight",
        "head.visual_control.proj",
        "head.clip.token_embedding.weight",
        "head.clip.transformer.resblocks.0.ln_1.weight",
        "lamda_init",
        "L2.weight",
    ],
)
@pytest.mark.parametrize("fault", ["missing", "misshapen"])
def test_a_faulty_key_is_named(key, fault):
    state = small_state()
    if fault == "missing":
        del state[key]
    else:
        state[key] = torch.zeros(*state[key].shape, 3)
    with pytest.raises(WeightsError) as caught:
        model_from_upstream(state)
    assert key in str(caught.value)


def test_an_unexpected_key_is_named():
    with pytest.raises(WeightsError, match=r"diff_attention_list\.0\.alpha"):
        model_from_upstream(small_state() | {"diff_attention_list.0.alpha": torch.zeros(())})


@pytest.mark.parametrize(
    ("state", "key"),
    [({"weights": [1, 2, 3]}, "weights"), ({}, r"backbone\.patch_embed\.proj\.weight")],
)
def test_a_mapping_other_than_a_state_dict(state, key):
    with pytest.raises(WeightsError, match=key):
        model_from_upstream(state)
