"""How images of each data set are cropped, batched and resized for training and test."""

from dataclasses import dataclass
from typing import Literal

from drexperts.runtime.preprocess import Preprocessing

# `grid`: the runtime's fixed crops, which a bundle will also use.
# `released`: the authors' random crops and stretched sizes, repeatable by seed.
Protocol = Literal["grid", "released"]

_RELEASED_CROP = 384  # the crop the released sizes are for


@dataclass(frozen=True)
class Recipe:
    """The values for one data set, from the released configurations.

    batch: crops per step of the optimiser, over all GPUs
    train_crops: random crops per image and epoch
    test_crops: random crops whose scores are averaged with the protocol `released`
    stretched: (height, width) to which every image is resized with the protocol `released`,
        whatever its shape. The order is torchvision's, so a landscape becomes a portrait; None does
        not resize
    short_side: the largest shorter side of an image with the protocol `grid`, in crops
    test_flips: whether test crops are mirrored at random with the protocol `released`
    size: the size of the encoder
    """

    batch: int
    train_crops: int
    test_crops: int
    stretched: tuple[int, int] | None
    short_side: float
    test_flips: bool
    size: Literal["small", "base"] = "small"


RECIPES = {
    "livec": Recipe(64, 10, 20, None, 2.0, False),
    "koniq10k": Recipe(156, 3, 15, (512, 384), 1.0, True),
    "spaq": Recipe(96, 2, 15, (512, 384), 1.0, True),
    "livefb": Recipe(192, 2, 5, (512, 384), 1.0, False),
    "bid": Recipe(32, 10, 15, (512, 512), 4 / 3, True),
    "live": Recipe(32, 8, 15, None, 2.0, True),
    "csiq": Recipe(16, 4, 15, None, 2.0, True),
    "tid2013": Recipe(16, 1, 10, None, 2.0, True, "base"),
    "kadid10k": Recipe(80, 2, 15, None, 2.0, True, "base"),
    "folder": Recipe(32, 4, 15, None, 2.0, False),
}


def preprocessing(recipe: Recipe, crop: int) -> Preprocessing:
    """The crop grid for a data set's images, which its model keeps in production."""
    return Preprocessing(crop, crop, round(recipe.short_side * crop), crops_per_side=3)


def stretched(recipe: Recipe, crop: int) -> tuple[int, int] | None:
    """(height, width) for the protocol `released` and crops of this size; None: not resized."""
    if recipe.stretched is None:
        return None
    height, width = (round(side * crop / _RELEASED_CROP) for side in recipe.stretched)
    return height, width
