"""Which photographs the parts of an export get: none is in two, and its versions stay together."""

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from drexperts.export.proof import division
from drexperts.export.proof.division import (
    digest_of,
    digest_of_all,
    divided,
    in_turn,
    photographs_of,
)
from drexperts.export.proof.photographs import NAMES, VERSIONS, photograph
from drexperts.runtime.errors import UserError

PARTS = ("search", "calibration")


def named(count: int, versions: int = 1) -> Any:
    """Stand-ins for photographs and their versions, such as "3.0"."""
    return [[f"{i}.{version}" for version in range(versions)] for i in range(count)]


def test_photographs_are_dealt_out_in_turn():
    parts = divided(named(10, 2), *PARTS)
    assert list(parts) == ["proof", "search", "calibration"]
    assert parts["proof"] == ["0.0", "3.0", "6.0", "9.0", "0.1", "3.1", "6.1", "9.1"]
    assert parts["search"] == ["1.0", "4.0", "7.0", "1.1", "4.1", "7.1"]
    assert parts["calibration"] == ["2.0", "5.0", "8.0", "2.1", "5.1", "8.1"]
    assert divided(named(10, 2), *PARTS) == parts


def test_parts_that_have_enough_leave_the_rest_to_the_proof(monkeypatch):
    monkeypatch.setattr(division, "ENOUGH", {"calibration": 4, "search": 7})
    photographs: Any = named(40, 3)
    parts: Any = divided(photographs, *PARTS)
    sizes = {name: len(part) for name, part in parts.items()}
    assert sizes == {"proof": 120 - 9 - 9, "search": 9, "calibration": 9}
    owners = [{picture.split(".")[0] for picture in part} for part in parts.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 40
    everything: Any = in_turn(photographs)
    assert sorted(everything) == sorted(itertools.chain(*parts.values()))


def test_each_part_has_three_photographs_however_many_versions_they_have():
    parts: Any = divided(named(81, 300), *PARTS)
    owners = {name: {each.split(".")[0] for each in part} for name, part in parts.items()}
    assert {name: len(each) for name, each in owners.items()} == {
        "proof": 75,
        "search": 3,
        "calibration": 3,
    }


@pytest.mark.parametrize(("others", "least"), [(("search",), 6), (PARTS, 9)])
def test_too_few_photographs_are_refused(others, least):
    with pytest.raises(UserError, match=f"{least - 1} photographs"):
        divided(named(least - 1, 50), *others)
    assert {len(part) for part in divided(named(least), *others).values()} == {3}


def test_the_proof_alone_has_all_however_few():
    assert divided(named(2)) == {"proof": ["0.0", "1.0"]}


def test_the_default_photographs_keep_their_versions():
    photographs = photographs_of(None)
    assert len(photographs) == len(NAMES)
    assert {len(each) for each in photographs} == {1 + len(VERSIONS)}
    assert [each[0] for each in photographs] == [photograph(name) for name in NAMES]
    divisions: Any = (divided(photographs, *PARTS), divided(photographs, "calibration"))
    for parts in divisions:
        digests = [set(map(digest_of, part)) for part in parts.values()]
        assert sum(map(len, digests)) == len(set.union(*digests)) == 8 * len(NAMES)
        # Colour distortions need coloured photographs.
        assert all(coloured(image) for part in parts.values() for image in part[:2])


def coloured(image: Image.Image) -> bool:
    pixels = np.asarray(image)
    return bool((pixels != pixels[..., :1]).any())


def test_versions_in_a_folder_are_found_by_what_they_show(tmp_path):
    names = ("coffee.png", "rocket.jpg", "camera.png")
    for i, name in enumerate(names):
        image = photograph(name)
        image.save(tmp_path / f"a{i}.png")
        image.filter(ImageFilter.GaussianBlur(4)).save(tmp_path / f"b{i}.png")
        image.resize((200, 150)).save(tmp_path / f"c{2 - i}.jpg", quality=10)
    found: Any = photographs_of(tmp_path)
    assert [[path.name for path in each] for each in found] == [
        [f"a{i}.png", f"b{i}.png", f"c{2 - i}.jpg"] for i in range(3)
    ]


def test_flat_pictures_are_one_photograph():
    flat = [Image.new("RGB", (80, 60), (grey, grey, grey)) for grey in (0, 90, 255)]
    assert photographs_of([*flat, photograph("camera.png")])[0] == flat


def test_digests_are_of_size_and_pixels(tmp_path):
    image = photograph("coffee.png").crop((0, 0, 40, 20))
    image.save(tmp_path / "a.png")
    expected = hashlib.sha256(b"(40, 20)" + image.tobytes()).hexdigest()[:12]
    assert digest_of(image) == digest_of(tmp_path / "a.png") == expected
    assert digest_of(image.rotate(180)) != expected
    assert digest_of_all(["b", "a"]) == f"sha256:{hashlib.sha256(b'ba').hexdigest()}"
