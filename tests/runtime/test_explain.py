import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from drexperts import runtime
from drexperts.runtime.errors import UserError
from drexperts.runtime.explain import explanation, file_name, stitched_map, strongest
from drexperts.runtime.score import DistortionMaps


@pytest.fixture(scope="module")
def scorer(toy_bundle):
    return runtime.load(toy_bundle, threads=1)


def maps_of(values, boxes, size):
    return DistortionMaps(np.array(values, np.float32), np.array(boxes, np.int64), size)


def coloured(picture, box):
    """How many pixels of a part of the picture are not grey."""
    pixels = np.asarray(picture.crop(box), np.int16)
    return int((np.ptp(pixels, axis=2) > 40).sum())


def test_strongest_goes_by_magnitude():
    weights = {"a": 0.5, "b": -2.0, "c": 0.0, "d": 1.0}
    assert strongest(weights, 3) == ["b", "d", "a"]
    assert strongest({"a": 1.0, "b": -1.0}, 3) == ["a", "b"]


def test_a_constant_map_is_stitched_to_its_box():
    maps = maps_of([[np.full((4, 4), 7), np.full((4, 4), -3)]], [(0, 0, 32, 32)], (32, 32))
    np.testing.assert_array_equal(stitched_map(maps, 0), np.full((32, 32), 7, np.float32))
    np.testing.assert_array_equal(stitched_map(maps, 1), np.full((32, 32), -3, np.float32))
    assert stitched_map(maps, 0).dtype == np.float32


def test_overlaps_are_averaged_and_gaps_are_nan():
    values = [[np.full((2, 2), 1.0)], [np.full((2, 2), 3.0)]]
    maps = maps_of(values, [(0, 0, 8, 8), (4, 2, 12, 10)], (14, 10))
    stitched = stitched_map(maps, 0)
    assert stitched.shape == (10, 14)
    expected = np.full((10, 14), np.nan, np.float32)
    expected[:8, :8] = 1
    expected[2:10, 4:12] = 3
    expected[2:8, 4:8] = 2
    np.testing.assert_array_equal(stitched, expected)


def test_a_map_is_enlarged_bilinearly_between_cell_centres():
    maps = maps_of([[[[0.0, 4.0], [0.0, 4.0]]]], [(0, 0, 8, 8)], (8, 8))
    # Centres at 1.5 and 5.5; constant beyond them.
    expected = [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4]
    np.testing.assert_allclose(stitched_map(maps, 0), np.tile(expected, (8, 1)), atol=1e-6)


@pytest.mark.parametrize("size", [(90, 60), (40, 90), (32, 32), (7, 9), (3000, 20), (20, 3000)])
def test_every_shape_of_image(scorer, photo, size):
    image = photo(*size)
    picture = explanation(image, scorer.score(image, maps=True))
    assert picture.mode == "RGB"
    assert 1000 < picture.width < 2000
    assert 450 < picture.height < 1000
    assert np.asarray(picture).std() > 10


def test_panels_are_the_photograph_and_its_strongest_maps(scorer, photo):
    image = photo(80, 80).convert("L").convert("RGB")
    score = scorer.score(image, maps=True)
    flat = np.zeros_like(score.maps.values)
    flat[:, 9] = 1.0
    maps = dataclasses.replace(score.maps, values=flat)
    picture = explanation(image, dataclasses.replace(score, maps=maps))
    panels = [(32 + i * 420, 32, 432 + i * 420, 432) for i in range(4)]
    counts = [coloured(picture, panel) for panel in panels]
    # The photograph is grey; expert 9 is the strongest and looks everywhere, the next two nowhere.
    assert counts == [0, 400 * 400, 0, 0]


def test_the_sign_of_a_weight_shows(scorer, photo):
    image = photo(64, 64).convert("L").convert("RGB")
    score = scorer.score(image, maps=True)
    no_maps = dataclasses.replace(score.maps, values=np.zeros_like(score.maps.values))
    pictures = []
    for sign in (1, -1):
        weights = {name: sign * (i + 1.0) for i, name in enumerate(score.distortions)}
        changed = dataclasses.replace(score, distortions=weights, maps=no_maps)
        pictures.append(np.asarray(explanation(image, changed), np.int16)[520:, :840])
    red_over_blue = [np.sign((p[..., 0] - p[..., 2]).sum()) for p in pictures]
    assert red_over_blue == [1, -1]


@pytest.mark.parametrize("value", [-1e6, 0.0, 130.0, 1e6])
def test_weights_and_values_beyond_all_bounds(scorer, photo, value):
    image = photo(40, 40)
    score = scorer.score(image, maps=True)
    for weight in (0.0, 1e30, -1e-30):
        weights = dict.fromkeys(score.distortions, weight)
        changed = dataclasses.replace(score, value=value, std=abs(value), distortions=weights)
        assert explanation(image, changed).width > 1000


def test_a_source_of_any_length_and_script(scorer, photo):
    score = scorer.score(photo(40, 40), maps=True)
    long = dataclasses.replace(score, source="/a/" + "długa nazwa 照片 " * 30 + "\udcff\n.jpg")
    assert explanation(photo(40, 40), long).size == explanation(photo(40, 40), score).size


def test_a_score_without_maps(scorer, photo, tmp_path):
    with pytest.raises(UserError, match="score it with maps"):
        explanation(photo(40, 40), scorer.score(photo(40, 40)))
    (unreadable,) = scorer.score([b""], maps=True)
    with pytest.raises(UserError, match="score it with maps"):
        explanation(photo(40, 40), unreadable)


def test_file_names_are_unique_and_stable(tmp_path, monkeypatch):
    assert file_name("a/x.jpg") != file_name("b/x.jpg")
    assert file_name("a/x.jpg") != file_name("a/x.png")
    assert file_name("a/x.jpg") == file_name("./a/../a/x.jpg")
    assert file_name("a/x.jpg").startswith("x.jpg-")
    for name in ("照" * 80 + ".jpg", "x" * 250 + ".jpg", os.fsdecode(b"\xff.jpg"), "a\nb.jpg"):
        saved = tmp_path / file_name(name)
        Image.new("RGB", (1, 1)).save(saved)
        assert saved.name.endswith(".png")
