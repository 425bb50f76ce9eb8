import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import heif_files
from support.decoded import pixels, refused

from drexperts.runtime.decoding.formats import heif
from drexperts.runtime.decoding.headers.heif_items import read_items
from drexperts.runtime.installing import install_command

pytestmark = pytest.mark.skipif(not heif.available(), reason="needs the extra heif")

# Written by pillow-heif 1.8.1 with x265 at quality 95, from what PICTURE and ALPHA say.
FIXTURES = Path(__file__).parents[3] / "fixtures" / "heic"
ACROSS, DOWN = np.meshgrid(np.arange(64), np.arange(64))
PICTURE = np.stack([ACROSS * 4, DOWN * 4, 255 - ACROSS * 2 - DOWN * 2], 2)
ALPHA = ACROSS[..., None] * 4
GREY = np.repeat(ACROSS[..., None] * 4, 3, axis=2)
OVER_WHITE = PICTURE * (ALPHA / 255) + 255 - ALPHA
MEANT = {
    "gradient": PICTURE,
    "gradient-444": PICTURE,
    "gradient-10-bit": PICTURE,
    "gradient-grey": GREY,
    "gradient-alpha": OVER_WHITE,
}


def fixture(name):
    return (FIXTURES / f"{name}.heic").read_bytes()


@pytest.mark.parametrize("name", MEANT)
def test_known_pixels(name):
    assert abs(pixels(fixture(name)) - MEANT[name]).mean() < 2


def alpha_of(content):
    """The coded alpha of a file, as an item of its own."""
    items = read_items(content)
    alpha, _ = items.alpha()
    assert alpha
    return alpha.kind, list(alpha.properties), items.content(alpha)


def with_alpha(name, premultiplied=False, more=(), more_of_alpha=()):
    links = [(b"auxl", 2, (1,))] + [(b"prem", 1, (2,))] * premultiplied
    items = {1: heif_files.parts(fixture(name)), 2: alpha_of(fixture("gradient-alpha"))}
    items[1][1].extend(more)
    items[2][1].extend(more_of_alpha)
    return heif_files.container(b"heic", items, links)


def test_every_layout_is_tested():
    contents = [*(fixture(name) for name in MEANT), with_alpha("gradient-10-bit")]
    assert abs(pixels(contents[-1]) - OVER_WHITE).mean() < 2
    assert {heif.inspect(content).layout for content in contents} == set(heif.LAYOUTS)


def test_premultiplied_alpha():
    """The picture's colours are taken for premultiplied ones, where that is possible."""
    read = pixels(with_alpha("gradient", premultiplied=True))
    possible = (PICTURE <= ALPHA).all(axis=2)
    assert abs(read - (PICTURE + 255 - ALPHA))[possible].mean() < 3


@pytest.mark.parametrize("angle", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("orientation", [1, 6])
def test_properties_turn_the_picture_once_and_exif_does_not(angle, axis, orientation):
    kind, properties, coded = heif_files.parts(fixture("gradient"))
    properties += [(b"irot", bytes([angle]))] if angle is not None else []
    properties += [(b"imir", bytes([axis]))] if axis is not None else []
    exif = Image.Exif()
    exif[0x0112] = orientation
    items = {
        1: (kind, properties, coded),
        2: (b"Exif", [], bytes(4) + exif.tobytes()),
    }
    content = heif_files.container(b"heic", items, [(b"cdsc", 2, (1,))])
    turned = np.rot90(PICTURE, angle or 0)
    meant = {None: turned, 0: turned[::-1], 1: turned[:, ::-1]}[axis]
    assert abs(pixels(content) - meant).mean() < 2


TURNED, MIRRORED = (b"irot", b"\1"), (b"imir", b"\1")


@pytest.mark.parametrize("name", MEANT)
@pytest.mark.parametrize(
    ("width", "height", "left", "top"),
    [(64, 64, 0, 0), (48, 40, 0, 0), (47, 39, 0, 0), (47, 39, 5, 3), (1, 1, 63, 63)],
)
def test_crop(name, width, height, left, top):
    """In the order of the properties, and of odd sizes, too."""
    kind, properties, coded = heif_files.parts(fixture(name))
    crop = heif_files.clap_property(width, height, left, top)
    whole = heif_files.container(b"heic", {1: (kind, properties, coded)})

    def read(*transforms):
        return pixels(heif_files.container(b"heic", {1: (kind, [*properties, *transforms], coded)}))

    box = slice(top, top + height), slice(left, left + width)
    cropped = pixels(whole)[box]
    assert (read(crop) == cropped).all()
    assert (read(crop, TURNED, MIRRORED) == np.rot90(cropped)[:, ::-1]).all()
    assert (read(crop, MIRRORED, TURNED) == np.rot90(cropped[:, ::-1])).all()
    assert (read(TURNED, crop) == np.rot90(pixels(whole))[box]).all()


def test_crop_of_a_picture_of_tiles():
    crop = heif_files.clap_property(100, 99, 11, 13, whole=(120, 128))
    whole = pixels(of_tiles())
    assert (pixels(of_tiles(more=[crop])) == whole[13:112, 11:111]).all()


def test_crop_of_a_picture_with_alpha():
    crop = heif_files.clap_property(40, 30, 5, 6)
    whole = pixels(with_alpha("gradient"))
    cropped = pixels(with_alpha("gradient", more=[crop], more_of_alpha=[crop]))
    assert (cropped == whole[6:36, 5:45]).all()
    assert "otherwise" in refused(with_alpha("gradient", more=[crop]))
    assert "otherwise" in refused(with_alpha("gradient", more_of_alpha=[TURNED]))


@pytest.mark.parametrize(
    "crop",
    [
        (b"clap", bytes(32)),
        heif_files.clap_property(65, 64, 0, 0),
        heif_files.clap_property(64, 64, 1, 0),
        heif_files.clap_property(10, 10, -1, 0),
        heif_files.clap_property(0, 10, 0, 0),
        (b"clap", struct.pack(">8I", 63, 1, 64, 1, 0, 1, 0, 1)),
        (b"clap", struct.pack(">8I", 63, 2, 64, 1, 1, 4, 0, 1)),
    ],
)
def test_an_impossible_crop(crop):
    assert "crop" in refused(changed(crop))


def test_many_transforms():
    assert "several" in refused(changed(*[TURNED] * 9))


@pytest.mark.parametrize("rest", [b"\0", b"rest of a file", bytes(1000), b"\xff" * 64])
def test_what_follows_the_picture_does_not_matter(rest):
    for content in (fixture("gradient"), of_tiles()):
        assert (pixels(content + rest) == pixels(content)).all()


def of_tiles(width=120, height=128, angle=0, more=()):
    tile = heif_files.parts(fixture("gradient"))
    kind, properties, content = heif_files.grid(2, 2, width, height)
    items = {number: tile for number in (2, 3, 4, 5)}
    items[1] = (kind, [*properties, (b"irot", bytes([angle])), *more], content)
    return heif_files.container(b"heic", items, [(b"dimg", 1, (2, 3, 4, 5))])


@pytest.mark.parametrize("angle", range(4))
def test_a_picture_of_tiles(angle):
    whole = np.tile(PICTURE, (2, 2, 1))[:, :120]
    read, meant = pixels(of_tiles(angle=angle)), np.rot90(whole, angle)
    assert read.shape == meant.shape
    assert abs(read - meant).mean() < 3
    assert "make it up" in refused(of_tiles(width=200))


def changed(*more, content=None, size=None):
    kind, properties, coded = heif_files.parts(fixture("gradient"))
    properties = [
        heif_files.size_property(*size) if size and name == b"ispe" else (name, body)
        for name, body in properties
    ]
    item = (kind, [*properties, *more], coded if content is None else content(coded))
    return heif_files.container(b"heic", {1: item})


def test_refused_by_what_it_is():
    assert "several" in refused(changed(content=lambda coded: coded + coded))
    empty_units = b"\0\0\0\2\x4e\1" * 20_000
    assert "units" in refused(changed(content=lambda coded: coded + empty_units))
    assert "truncated" in refused(changed(content=lambda coded: coded[:-1]))
    assert "said to be" in refused(changed(size=(64, 63)))
    _, properties, coded = heif_files.parts(fixture("gradient"))
    other = heif_files.container(b"heic", {1: (b"jpeg", properties, coded)})
    assert "jpeg" in refused(other)


def test_every_cut_is_an_error():
    content = fixture("gradient-alpha")
    for end in range(0, len(content) - 1, 11):
        refused(content[:end])


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert install_command("heif") in refused(fixture("gradient"))


def test_the_decoder_has_a_version():
    assert "libheif" in (heif.decoder() or "")
