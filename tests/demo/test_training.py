"""The demo's data and its training, shortened."""

import hashlib
from itertools import pairwise

import pytest
import torch
from PIL import Image

from drexperts.data import distortions as synthetic
from drexperts.demo import training as demo
from drexperts.model.backbones import normalised
from drexperts.model.config import DISTORTIONS
from drexperts.runtime.preprocess import crops_from_image
from drexperts.training.from_nothing import PROMPT_OF
from drexperts.training.trainer import Step


@pytest.fixture(scope="module")
def photos() -> dict[str, Image.Image]:
    return demo.photographs()


@pytest.fixture(scope="module")
def labels(photos: dict[str, Image.Image]) -> demo.Labels:
    return demo.computed_labels([photos[name] for name in demo.TRAIN])


def test_contents_are_disjoint_and_all_there(photos: dict[str, Image.Image]) -> None:
    assert not demo.TRAIN.keys() & demo.HELD_OUT.keys()
    assert photos.keys() == demo.TRAIN.keys() | demo.HELD_OUT.keys()
    hashes = {hashlib.sha256(photo.tobytes()).digest() for photo in photos.values()}
    assert len(hashes) == len(photos)
    assert all(photo.mode == "RGB" and min(photo.size) > 100 for photo in photos.values())


def test_distortions_grow_with_their_level_and_have_a_prompt() -> None:
    assert all(synthetic.SYNTHETIC_TYPES[name].monotone for name in demo.KINDS)
    assert set(demo.KINDS) <= PROMPT_OF.keys()


def test_labels_fall_with_the_level(labels: demo.Labels) -> None:
    for name in demo.KINDS:
        falling = [labels[name, level] for level in range(6)]
        assert falling[0] == 100
        assert all(weaker > stronger > 0 for weaker, stronger in pairwise(falling))


def test_the_training_set_holds_every_distortion(
    photos: dict[str, Image.Image], labels: demo.Labels
) -> None:
    one, again = (demo.training_set([photos["coins"]], labels, crops=1, seed=3) for _ in range(2))
    assert one.pixels.dtype == torch.uint8
    assert len(one.pixels) == len(one.labels) == len(one.prompts) == len(labels)
    assert min(one.pixels.shape[2:]) >= demo.SIDE
    assert sorted(one.labels.tolist()) == pytest.approx(sorted(labels.values()))
    named = {DISTORTIONS[i] for i in one.prompts.tolist() if i >= 0}
    assert named == {PROMPT_OF[kind] for kind in demo.KINDS}
    assert torch.equal(one.pixels, again.pixels)


def test_held_out_images_fit_the_preprocessing(
    photos: dict[str, Image.Image], labels: demo.Labels
) -> None:
    images = demo.held_out({"cat": photos["cat"]}, labels, seed=0)
    assert len(images) == 1 + 5 * len(demo.KINDS)
    for image in images:
        assert image.label == labels.get((image.distortion, image.level), 100)
        assert crops_from_image(image.image, demo.PREPROCESSING).size == image.image.size


def test_a_new_model_starts_at_the_mean_label(
    photos: dict[str, Image.Image], labels: demo.Labels
) -> None:
    known = demo.training_set([photos["coins"], photos["rocket"]], labels, crops=2, seed=0)
    model = demo.start_model(known, seed=0)
    with torch.no_grad():
        scores = model(normalised(known.pixels[:, :, : demo.SIDE, : demo.SIDE])).score
    assert (scores - known.labels.mean() / 100).abs().max() < 0.5


@pytest.mark.slow
def test_a_shortened_training_runs() -> None:
    told: list[tuple[str, Step]] = []
    trained = demo.train_demo(lambda *step: told.append(step), epochs=1, crops=2)
    assert list(dict.fromkeys(stage for stage, _ in told)) == ["prior", "model"]
    assert len(told) == len(trained.prior_losses) + len(trained.losses)
    assert sum(trained.prior_losses[-5:]) < sum(trained.prior_losses[:5])
    assert {image.content for image in trained.held_out} == set(demo.HELD_OUT)
    crops = crops_from_image(trained.held_out[0].image, demo.PREPROCESSING).pixels
    with torch.no_grad():
        scores = trained.model(normalised(torch.from_numpy(crops))).score
    assert not trained.model.training
    assert not any(p.requires_grad for p in trained.model.controller.parameters())
    # On the scale of the labels already, if not yet near them.
    assert 40 < scores.mean() < 140
