"""The two attentions against the model's maps, and the picture that compares them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ImageDraw import ImageDraw as Draw
from torch import Tensor

from drexperts.evaluation.attention_maps import attentions, comparison
from drexperts.model.backbones import normalised
from drexperts.model.checkpoint import Checkpoint, default_preprocessing
from drexperts.model.config import DISTORTIONS, ControllerConfig
from drexperts.runtime.explain import PAPER
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import crops_from_image

SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)


@pytest.fixture(scope="module")
def checkpoint(tiny: Callable[..., Any], random_model: Callable[..., Any]) -> Checkpoint:
    config = tiny("official")
    return Checkpoint(random_model(config), SCALE, default_preprocessing(config))


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("alpha", ["per_expert", "shared"])
def test_maps_are_the_difference_of_both_attentions(
    preset: str, alpha: str, tiny: Callable[..., Any], random_model: Callable[..., Any]
) -> None:
    model = random_model(tiny(preset, alpha=alpha)).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        tokens = model.encoder(images)
        prior = model.controller(model.controller_input(images))
        given = (tokens, prior, model.prompts(prior.embedding))
        distortion, semantic = model.saliency.attentions(*given)
        maps = model.saliency(*given)[1]
    assert distortion.shape == semantic.shape == maps.shape == (2, 10, 17)
    for attention in (distortion, semantic):
        assert attention.min() >= 0
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 10, dtype=torch.float64))
    refined = distortion - model.saliency.alpha[:, None] * semantic
    torch.testing.assert_close(refined, maps, rtol=1e-12, atol=1e-12)
    assert distortion.var(-1).min() > 1e-9
    assert semantic.var(-1).min() > 1e-9


def test_numbers_are_the_models(checkpoint: Checkpoint, photo: Callable[..., Image.Image]) -> None:
    image = photo(150, 70)  # six crops: more than a batch of them
    found = attentions(checkpoint, image)
    crops = crops_from_image(image, checkpoint.preprocessing)
    with torch.no_grad():
        expected = checkpoint.model(normalised(torch.from_numpy(crops.pixels)))
    assert found.crops == len(crops.pixels) == 6
    assert found.value == pytest.approx(expected.score.mean().item(), rel=1e-5)
    assert found.std == pytest.approx(expected.score.std(correction=0).item(), rel=1e-3)
    assert found.weights == pytest.approx(
        dict(zip(DISTORTIONS, expected.weights.mean(0).tolist(), strict=True)), rel=1e-4
    )
    first, second, refined = (maps.values for maps in found.maps)
    np.testing.assert_allclose(refined, expected.maps.numpy(), atol=1e-4)
    alpha = np.array(list(found.alpha.values()), np.float32)[:, None, None]
    np.testing.assert_allclose(first - alpha * second, refined, atol=1e-5)
    assert (found.maps[0].size, found.tokens) == ((150, 70), 17)


def ink_near_the_edges(picture: Image.Image) -> int:
    """Pixels within the outer 20 that are not paper."""
    pixels = np.asarray(picture)
    changed = (pixels != PAPER).any(-1)
    changed[20:-20, 20:-20] = False
    return int(changed.sum())


@pytest.mark.parametrize(
    ("size", "scale"),
    [
        ((90, 60), None),
        ((40, 90), ScoreScale(0, 1, higher_is_better=False)),
        ((7, 9), SCALE),
        ((2000, 40), SCALE),
        ((40, 2000), None),
    ],
)
def test_every_shape_of_photograph(
    checkpoint: Checkpoint,
    photo: Callable[..., Image.Image],
    size: tuple[int, int],
    scale: ScoreScale | None,
) -> None:
    long = "a/very long nąme 照片 " * 20 + ".jpg"
    picture = comparison(checkpoint._replace(scale=scale), photo(*size), long)
    assert picture.mode == "RGB"
    assert picture.width == 1324
    assert 400 < picture.height < 1400
    assert ink_near_the_edges(picture) == 0


def test_panels_show_their_attention(
    checkpoint: Checkpoint, photo: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An even p1 is all orange; a p2 of one patch is orange there; refined is blue there."""
    grey = photo(64, 64).convert("L").convert("RGB")
    saliency = checkpoint.model.saliency
    even = torch.full((1, 10, 17), 1 / 17)
    corner = torch.zeros(1, 10, 17)
    corner[:, :, 1] = 1

    def looked(*_: Tensor) -> tuple[Tensor, Tensor]:
        return even, corner

    monkeypatch.setattr(saliency, "attentions", looked)
    forward = saliency.forward
    monkeypatch.setattr(saliency, "forward", lambda *given: (forward(*given)[0], even - corner))
    picture = np.asarray(comparison(checkpoint, grey, "grey"), np.int16)
    top, side = 32 + 48 + 58 + 30, 300
    for row in range(3):
        panels = [
            picture[(y := top + row * 376) : y + side, (x := 32 + 320 * place) : x + side]
            for place in (1, 2, 3)
        ]
        warm = [panel[..., 0] - panel[..., 2] for panel in panels]
        assert warm[0].min() > 60
        assert warm[1][:50, :50].min() > 60
        assert abs(warm[1][150:, 150:]).max() == 0
        assert warm[2][:50, :50].max() < -60
        assert warm[2][150:, 150:].min() > 0
    photograph = picture[top : top + side, 32 : 32 + side]
    assert np.ptp(photograph, axis=-1).max() == 0


def test_the_title_is_there(checkpoint: Checkpoint, photo: Callable[..., Image.Image]) -> None:
    titled, blank = (
        np.asarray(comparison(checkpoint, photo(64, 64), title)) for title in ("a photograph", "")
    )
    changed = np.argwhere((titled != blank).any(-1))
    assert len(changed) > 100
    assert changed[:, 0].max() < 32 + 48


@pytest.mark.parametrize("daclip", [False, True])
def test_the_attention_has_the_name_of_its_prior(
    daclip: bool,
    checkpoint: Checkpoint,
    photo: Callable[..., Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[str] = []

    class Recorder(Draw):
        def text(self, xy: Any, text: Any, *arguments: Any, **options: Any) -> None:
            drawn.append(text)
            super().text(xy, text, *arguments, **options)

    monkeypatch.setattr("PIL.ImageDraw.Draw", Recorder)
    monkeypatch.setattr(ControllerConfig, "is_daclip", daclip)
    comparison(checkpoint, photo(64, 64), "a photograph")
    prior = checkpoint.model.config.controller
    assert ("DA-CLIP attention" in drawn) == daclip
    assert ("Prior's attention" in drawn) == (not daclip)
    # Whole: an ellipsis would hide what the names mean.
    assert {f"Prior: {prior.name}", f"Names: {prior.words}"} <= set(drawn)
