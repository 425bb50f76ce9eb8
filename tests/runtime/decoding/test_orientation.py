import io
import struct

import numpy as np
import pytest
from PIL import Image

from drexperts.runtime.decoding.orientation import orientation_from, upright


def exif(orientation, order="<", kind=3, before=0):
    """EXIF of some other tags and the orientation."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    other = b"".join(struct.pack(order + "HHII", tag + 1, 4, 1, 7) for tag in range(before))
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *([orientation, 0][: 5 - kind]))
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    return head + struct.pack(order + "H", before + 1) + other + entry + bytes(4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("named", [b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"])
def test_exif(orientation, order, kind, named):
    assert orientation_from(named + exif(orientation, order, kind, before=3), None) == orientation


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_other_values_turn_nothing(orientation):
    assert orientation_from(exif(orientation), b"tiff:Orientation>6<") == 1


def test_cut_off():
    content = exif(6, before=2)
    for end in range(len(content) - 6):
        assert orientation_from(content[:end], None) == 1
    assert orientation_from(b"II*\0\xff\xff\xff\xff", None) == 1


def test_xmp_stands_in_for_exif():
    for xmp in (b' tiff:Orientation="8" ', b"<tiff:Orientation>8</tiff:Orientation>"):
        assert orientation_from(None, xmp) == 8
        assert orientation_from(exif(3), xmp) == 3
    assert orientation_from(b"damaged", b'tiff:Orientation="x"') == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pillow_turns_the_same_way(orientation, photo, encode):
    from PIL import ImageOps

    tag = Image.Exif()
    tag[0x0112] = orientation
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(photo(7, 5), "PNG", exif=tag))))
    np.testing.assert_array_equal(upright(photo(7, 5), orientation), expected)
