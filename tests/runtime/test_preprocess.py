import io
import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import ConfigError
from drexperts.runtime.preprocess import (
    Preprocessing,
    crop_positions,
    crops_from_image,
    with_crops_per_side,
)

SPEC = Preprocessing(crop=384, short_side_min=384, short_side_max=768, crops_per_side=3)


# The contract and the crop grid


@pytest.mark.parametrize(
    "values", [(0, 1, 1, 1), (33, 32, 64, 1), (32, 64, 32, 1), (32, 32, 4097, 1), (32, 32, 64, 0)]
)
def test_impossible_contracts(values):
    with pytest.raises(ConfigError):
        Preprocessing(*values)


def test_another_grid_is_all_that_changes():
    assert with_crops_per_side(SPEC, None) is SPEC
    for number in (1, 3, 64):
        assert with_crops_per_side(SPEC, number) == Preprocessing(384, 384, 768, number)


@pytest.mark.parametrize("number", [0, -1, 65, 2.0, "2", True, np.int64(2)])
def test_grids_out_of_range(number):
    with pytest.raises(ConfigError, match="crops_per_side must be a whole number from 1 to 64"):
        with_crops_per_side(SPEC, number)


def test_crop_positions():
    assert crop_positions(384, 384, 3) == [0]
    assert crop_positions(385, 384, 3) == [0, 1]
    assert crop_positions(1024, 384, 3) == [0, 320, 640]
    assert crop_positions(1024, 384, 1) == [320]
    assert crop_positions(11, 4, 3) == [0, 4, 7]  # 3.5 goes up
    assert crop_positions(5000, 32, 4) == [0, 1656, 3312, 4968]


def test_crop_positions_cover_the_axis():
    for side in range(32, 200):
        starts = crop_positions(side, 32, 64)
        assert starts[0] == 0
        assert starts[-1] == side - 32
        assert all(0 < b - a <= 32 for a, b in itertools.pairwise(starts))


def test_crops_are_native_pixels_row_by_row(photo):
    image = photo(1024, 768)
    crops = crops_from_image(image, SPEC)
    assert crops.size == (1024, 768)
    assert crops.boxes[:, :2].tolist() == [[x, y] for y in (0, 384) for x in (0, 320, 640)]
    assert crops.pixels.dtype == np.uint8
    assert crops.pixels.flags.c_contiguous
    assert crops.pixels.shape == (6, 3, 384, 384)
    for crop, (left, top, right, bottom) in zip(crops.pixels, crops.boxes, strict=True):
        expected = np.asarray(image)[top:bottom, left:right].transpose(2, 0, 1)
        np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((500, 400), (500, 400)),
        ((384, 384), (384, 384)),
        ((300, 200), (576, 384)),
        ((1600, 1200), (1024, 768)),
        ((1200, 1601), (768, 1025)),
        ((1, 1), (384, 384)),
        ((1, 5000), (384, 12288)),
        ((5000, 1), (12288, 384)),
        ((20000, 400), (12288, 400)),
    ],
)
def test_resized_sizes(size, resized):
    crops = crops_from_image(Image.new("RGB", size, (10, 20, 30)), SPEC)
    assert crops.size == resized
    assert 1 <= len(crops.pixels) <= 9
    assert (crops.boxes >= 0).all()
    assert (crops.boxes[:, 2:] <= crops.size).all()
    np.testing.assert_array_equal(np.unique(crops.pixels), [10, 20, 30])


def test_extreme_ratio_keeps_the_centre():
    strip = np.zeros((5000, 1), np.uint8)
    strip[2484:2516] = 200  # the 32 central pixels
    crops = crops_from_image(decode(strip), SPEC)
    assert (crops.pixels == 200).all()


def test_reducing_is_antialiased():
    checkers = (np.indices((1536, 1536)).sum(axis=0) % 2 * 255).astype(np.uint8)
    crops = crops_from_image(decode(checkers), SPEC)
    assert crops.size == (768, 768)
    inner = crops.pixels[0][:, 8:, 8:].astype(int)
    assert np.abs(inner - 127.5).max() <= 2


def test_40_megapixels(photo, encode):
    image = photo(920, 680).resize((7360, 5440), Image.Resampling.NEAREST)
    crops = crops_from_image(decode(encode(image, "JPEG")), SPEC)
    assert crops.size == (1039, 768)
    assert crops.pixels.shape == (6, 3, 384, 384)


def test_same_bytes_give_the_same_crops_in_any_thread(photo, encode):
    content = encode(photo(1300, 900), "JPEG")
    expected = crops_from_image(decode(content), SPEC).pixels
    results = []

    def work():
        results.append(crops_from_image(decode(io.BytesIO(content).getvalue()), SPEC).pixels)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, expected)
