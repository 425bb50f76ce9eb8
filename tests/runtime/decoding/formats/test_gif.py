import struct

import numpy as np
import pytest
from PIL import Image

from drexperts.runtime.decoding import decode
from drexperts.runtime.decoding.formats import gif as reader
from drexperts.runtime.decoding.stored import NotReadError
from drexperts.runtime.errors import ImageError

RNG = np.random.default_rng(0)
WIDTH, HEIGHT = 13, 11
NETSCAPE = b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"


def colours(bits):
    return RNG.integers(0, 256, (1 << bits, 3))


def table(colours):
    return colours.astype(np.uint8).tobytes()


def blocks(content):
    parts = [content[i : i + 255] for i in range(0, len(content), 255)]
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def lzw(indices, bits):
    """Codes of one width: the table is cleared before it grows."""
    bits = max(2, bits)
    clear, width, run = 1 << bits, bits + 1, (1 << bits) - 2
    flat = indices.ravel().tolist()
    codes = [c for i in range(0, len(flat), run) for c in (clear, *flat[i : i + run])]
    digits = "".join(f"{code:0{width}b}"[::-1] for code in (*codes, clear + 1))
    digits += "0" * (-len(digits) % 8)
    content = bytes(int(digits[i : i + 8][::-1], 2) for i in range(0, len(digits), 8))
    return bytes([bits]) + blocks(content)


def control(transparent=None, disposal=0):
    flags = disposal << 2 | (transparent is not None)
    return b"!\xf9\4" + bytes([flags, 0, 0, transparent or 0, 0])


def image(indices, bits, *, palette=b"", place=(0, 0), interlaced=False):
    height, width = indices.shape
    if interlaced:
        order = [*range(0, height, 8), *range(4, height, 8), *range(2, height, 4)]
        indices = indices[[*order, *range(1, height, 2)]]
    flags = (0x40 if interlaced else 0) | (0x80 | (bits - 1) if palette else 0)
    return b"," + struct.pack("<HHHHB", *place, width, height, flags) + palette + lzw(indices, bits)


def gif(*parts, palette=b"", size=(WIDTH, HEIGHT), background=0):
    flags = 0x80 | (len(palette) // 3).bit_length() - 2 if palette else 0
    screen = struct.pack("<HHBBB", *size, flags, background, 0)
    return b"GIF89a" + screen + palette + b"".join(parts) + b";"


def indices(bits, shape=(HEIGHT, WIDTH)):
    return RNG.integers(0, 1 << bits, shape)


def pixels(content):
    picture = decode(content)
    assert picture.mode == "RGB"
    return np.asarray(picture)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_palettes(bits, local, interlaced):
    values, palette = indices(bits), colours(bits)
    own = {"palette": table(palette)} if local else {}
    shared = table(colours(bits) if local else palette)
    content = gif(image(values, bits, interlaced=interlaced, **own), palette=shared)
    assert reader.inspect(content).layout == reader._OPAQUE
    np.testing.assert_array_equal(pixels(content), palette[values])


def test_a_palette_of_the_indices_themselves():
    values = indices(8)
    ramp = np.repeat(np.arange(256)[:, None], 3, axis=1)
    content = gif(image(values, 8), palette=table(ramp))
    np.testing.assert_array_equal(pixels(content), ramp[values])


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_transparent_entry_is_white(bits):
    values, palette = indices(bits), colours(bits)
    content = gif(control(1), image(values, bits), palette=table(palette))
    assert reader.inspect(content).layout == reader._TRANSPARENT
    palette[1] = 255
    np.testing.assert_array_equal(pixels(content), palette[values])


def test_a_transparent_entry_beyond_the_palette():
    values, palette = RNG.integers(0, 4, (HEIGHT, WIDTH)), colours(2)
    expected = palette[values]
    values[4, 5] = 9
    expected[4, 5] = 255
    content = gif(control(9), image(values, 4), palette=table(palette))
    np.testing.assert_array_equal(pixels(content), expected)


def test_the_last_control_before_the_image_counts():
    values, palette = indices(4), colours(4)
    content = gif(control(1), control(), image(values, 4), palette=table(palette))
    np.testing.assert_array_equal(pixels(content), palette[values])


@pytest.mark.parametrize("transparent", [None, 3])
@pytest.mark.parametrize("place", [(0, 0), (2, 3), (5, 6)])
def test_the_canvas_around_a_small_frame_is_white(place, transparent):
    values, palette = indices(4, (5, 8)), colours(4)
    content = gif(
        control(transparent),
        image(values, 4, place=place),
        palette=table(palette),
        background=7,
    )
    assert reader.inspect(content).layout == reader._SMALL
    expected = np.full((HEIGHT, WIDTH, 3), 255)
    if transparent is not None:
        palette[transparent] = 255
    expected[place[1] : place[1] + 5, place[0] : place[0] + 8] = palette[values]
    np.testing.assert_array_equal(pixels(content), expected)


def test_a_frame_beyond_the_canvas_makes_it_larger():
    values, palette = indices(4), colours(4)
    content = gif(image(values, 4), palette=table(palette), size=(1, 1))
    np.testing.assert_array_equal(pixels(content), palette[values])


def test_every_layout_is_tested():
    assert {reader._OPAQUE, reader._TRANSPARENT, reader._SMALL} == set(reader.LAYOUTS)


def test_what_is_not_the_first_frame_is_dropped():
    values, palette = indices(4), table(colours(4))
    alone = gif(control(), image(values, 4), palette=palette)
    comment = b"!\xfe" + blocks(RNG.bytes(300_000))
    xmp = b"!\xff\x0bXMP DataXMP" + blocks(b"<x/>" * 1000)
    content = gif(
        *(NETSCAPE, comment, xmp, control(), image(values, 4), comment),
        *(control(2), image(indices(4), 4)) * 20,
        palette=palette,
    )
    assert reader.inspect(content).data == reader.inspect(alone).data
    np.testing.assert_array_equal(pixels(content), pixels(alone))


def test_pillow_writes_what_is_read(photo, encode):
    picture = photo(40, 30).quantize(200)
    frames = [picture.rotate(90 * i) for i in range(3)]
    content = encode(picture, "GIF", save_all=True, append_images=frames[1:], comment=b"a" * 999)
    np.testing.assert_array_equal(pixels(content), np.asarray(picture.convert("RGB")))


# Refused


def test_an_index_beyond_the_palette():
    values = np.full((HEIGHT, WIDTH), 3)
    content = gif(image(values, 4), palette=table(colours(2)))
    assert decode(content).size == (WIDTH, HEIGHT)
    values[4, 5] = 4
    with pytest.raises(ImageError, match="a pixel has colour 4"):
        decode(gif(image(values, 4), palette=table(colours(2))))


def test_refused():
    values, palette = indices(4), table(colours(4))
    small = np.zeros((0, 0), int)
    for content, reason in (
        (gif(image(values, 4)), "without a palette"),
        (gif(palette=palette), "without an image"),
        (gif(image(small, 4), palette=palette), "no pixels"),
        (gif(image(values, 9), palette=palette), "9 bits"),
        (gif(b"!\xfe" + b"\1a" * 3_000_000, palette=palette), "blocks"),
    ):
        with pytest.raises(NotReadError, match=reason):
            reader.inspect(content)


def test_truncated_files():
    content = gif(NETSCAPE, control(1), image(indices(8), 8), palette=table(colours(8)))
    for end in range(6, len(content) - 1):
        with pytest.raises(ImageError):
            decode(content[:end])


def test_pixels_that_end_early():
    values, palette = indices(8), table(colours(8))
    content = gif(image(values, 8), palette=palette)
    taller = gif(image(np.vstack([values, values]), 8), palette=palette, size=(WIDTH, 2 * HEIGHT))
    start = 13 + len(palette) + 10
    with pytest.raises(ImageError):
        decode(taller[:start] + content[start:])


def test_the_applications_way_to_load_changes_no_pixels(monkeypatch):
    from PIL import GifImagePlugin

    values, palette = indices(4), colours(4)
    content = gif(control(1), image(values, 4), palette=table(palette))
    expected = pixels(content)
    for strategy in GifImagePlugin.LoadingStrategy:
        monkeypatch.setattr(GifImagePlugin, "LOADING_STRATEGY", strategy)
        try:
            found = pixels(content)
        except ImageError:
            continue
        np.testing.assert_array_equal(found, expected)


def test_frames_of_one_colour(encode):
    content = encode(Image.new("P", (4, 3)), "GIF")
    assert decode(content).size == (4, 3)
