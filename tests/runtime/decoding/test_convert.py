"""Conversion in tiles gives the pixels of conversion at once."""

import itertools

import numpy as np
import pytest
from PIL import Image

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.stored import NotReadError

SIZES = [(1, 1), (7, 5), (1, 23), (23, 1), (64, 3), (13, 11)]
MODES = [
    "RGBA",
    "LA",
    "PA",
    "RGBa",
    "La",
    "I;16",
    "I",
    "1",
    "L",
    "P",
    "RGB",
    "RGBX",
    "CMYK",
    "YCbCr",
]


def image_of(mode, size, seed=0):
    rng = np.random.default_rng(seed)
    width, height = size
    if mode in ("I;16", "I"):
        samples = rng.integers(0, 65536, (height, width)).astype(
            np.uint16 if ";" in mode else np.int32
        )
        return Image.fromarray(samples)
    if mode == "P":
        image = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)).convert("P")
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return image
    if mode == "PA":
        return image_of("LA", size, seed).convert("PA")
    bands = len(Image.new(mode, (1, 1)).getbands())
    if mode == "1":
        return Image.fromarray(rng.random((height, width)) < 0.5)
    return Image.frombytes(
        mode, size, rng.integers(0, 256, width * height * bands, dtype=np.uint8).tobytes()
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tile", [1, 5, 8, 64])
def test_tiles_make_no_difference(mode, tile, monkeypatch):
    for seed, size in enumerate(SIZES):
        image = image_of(mode, size, seed)
        monkeypatch.setattr(convert, "_TILE", 2**20)
        whole = np.asarray(convert.to_rgb(image))
        monkeypatch.setattr(convert, "_TILE", tile)
        tiled = convert.to_rgb(image)
        assert (tiled.mode, tiled.size) == ("RGB", size)
        np.testing.assert_array_equal(np.asarray(tiled), whole)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1", "I;16"])
def test_tiles_keep_the_transparent_value(mode, monkeypatch):
    image = image_of(mode, (13, 11))
    pixel = image.getpixel((4, 6))
    image.info["transparency"] = pixel if mode != "P" else bytes(range(256))
    whole = np.asarray(convert.to_rgb(image))
    assert mode == "P" or (whole[6, 4] == 255).all()
    monkeypatch.setattr(convert, "_TILE", 5)
    np.testing.assert_array_equal(np.asarray(convert.to_rgb(image)), whole)


def test_a_sample_out_of_range_is_refused_in_any_tile(monkeypatch):
    image = image_of("I", (13, 11))
    image.putpixel((12, 10), 65536)
    monkeypatch.setattr(convert, "_TILE", 8)
    with pytest.raises(NotReadError, match="outside"):
        convert.to_rgb(image)


@pytest.mark.parametrize(("size", "tile"), itertools.product(SIZES, (1, 3, 8, 1000)))
def test_tiles_cover_each_pixel_once_and_are_small(size, tile, monkeypatch):
    monkeypatch.setattr(convert, "_TILE", tile)
    count = np.zeros(size[::-1], int)
    for left, top, right, bottom in convert._tiles(*size):
        assert (right - left) * (bottom - top) <= tile
        count[top:bottom, left:right] += 1
    assert (count == 1).all()
