"""The released settings of each data set."""

import pytest

from drexperts.data import layouts
from drexperts.data.recipes import RECIPES, preprocessing, stretched

# As in the released configurations: the batch of all GPUs, train and test crops, Resize's (height,
# width), test flips, encoder.
RELEASED = {
    "livec": (16 * 4, 10, 20, None, False, "small"),
    "koniq10k": (39 * 4, 3, 15, (512, 384), True, "small"),
    "spaq": (24 * 4, 2, 15, (512, 384), True, "small"),
    "livefb": (24 * 8, 2, 5, (512, 384), False, "small"),
    "bid": (8 * 4, 10, 15, (512, 512), True, "small"),
    "live": (8 * 4, 8, 15, None, True, "small"),
    "csiq": (4 * 4, 4, 15, None, True, "small"),
    "tid2013": (4 * 4, 1, 10, None, True, "base"),
    "kadid10k": (20 * 4, 2, 15, None, True, "base"),
}


def test_every_data_set_has_a_recipe() -> None:
    assert RECIPES.keys() == {*layouts.NAMES, "folder"}
    assert RELEASED.keys() == set(layouts.NAMES)


@pytest.mark.parametrize("name", RELEASED)
def test_recipes_are_the_released_ones(name: str) -> None:
    one = RECIPES[name]
    crops = (one.train_crops, one.test_crops)
    found = (one.batch, *crops, one.stretched, one.test_flips, one.size)
    assert found == RELEASED[name]


@pytest.mark.parametrize("crop", [384, 224, 64])
@pytest.mark.parametrize("name", RECIPES)
def test_the_grid_scales_with_the_crop(name: str, crop: int) -> None:
    spec = preprocessing(RECIPES[name], crop)
    assert (spec.crop, spec.short_side_min, spec.crops_per_side) == (crop, crop, 3)
    factor = {"koniq10k": 1, "spaq": 1, "livefb": 1, "bid": 4 / 3}.get(name, 2)
    assert spec.short_side_max == round(factor * crop)


def test_the_grid_keeps_the_shorter_side_of_stretched_images() -> None:
    for name in ("koniq10k", "spaq", "livefb", "bid"):
        size = RECIPES[name].stretched
        assert size is not None
        assert preprocessing(RECIPES[name], 384).short_side_max == min(size)


def test_stretched_sizes_scale_with_the_crop() -> None:
    assert stretched(RECIPES["koniq10k"], 384) == (512, 384)  # a portrait
    assert stretched(RECIPES["koniq10k"], 48) == (64, 48)
    assert stretched(RECIPES["bid"], 224) == (299, 299)
    assert stretched(RECIPES["livec"], 224) is None
