"""The pictures an engine is verified on."""

import numpy as np
import pytest
from PIL import Image

from drexperts.data.distortions import SYNTHETIC_TYPES
from drexperts.export.proof.photographs import (
    NAMES,
    distorted_crops,
    photograph,
    verification_images,
)
from drexperts.runtime.preprocess import Preprocessing

SPEC = Preprocessing(crop=64, short_side_min=64, short_side_max=128, crops_per_side=2)


def test_verification_images():
    images = verification_images()
    assert len({image.tobytes() for image in images}) == len(images) == 8 * len(NAMES)
    assert images[: len(NAMES)] == [photograph(name) for name in NAMES]


@pytest.mark.slow
def test_all_levels_of_a_distortion_are_on_one_crop():
    images = [photograph(name) for name in NAMES[:5]]
    crops = distorted_crops(images, SPEC)
    assert len(crops) == 5 * len(SYNTHETIC_TYPES) - 1  # JPEG 2000 gets no smaller
    blurs = [np.asarray(crop, float) for crop in crops[:5]]
    detail = [np.abs(np.diff(blur, axis=0)).mean() for blur in blurs]
    assert detail == sorted(detail, reverse=True)
    assert np.abs(blurs[0].mean() - blurs[4].mean()) < 2
    assert distorted_crops(images, SPEC) == crops


@pytest.mark.slow
def test_grey_photographs_are_taken_where_there_are_no_others():
    grey, coloured = photograph("camera.png"), photograph("coffee.png")
    assert distorted_crops([grey, coloured], SPEC) == distorted_crops([coloured], SPEC)
    crops = distorted_crops([grey], SPEC)
    assert len({crop.tobytes() for crop in crops}) == len(crops) < 125


def test_one_flat_picture_gives_few_crops():
    assert 1 <= len(distorted_crops([Image.new("RGB", (200, 150), (90, 90, 90))], SPEC)) < 125
