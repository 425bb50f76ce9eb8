import struct

import numpy as np
import pytest
from PIL import Image

from drexperts.runtime.decoding import decode
from drexperts.runtime.decoding.formats import webp as reader
from drexperts.runtime.decoding.stored import NotReadError
from drexperts.runtime.errors import ImageError

RNG = np.random.default_rng(0)
WIDTH, HEIGHT = 13, 11
ALPHA, EXIF, XMP, ANIMATION = 0x10, 0x08, 0x04, 0x02


def chunk(name, body):
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def riff(*chunks):
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def three(value):
    return value.to_bytes(3, "little")


def extended(flags, size=(WIDTH, HEIGHT)):
    return chunk(b"VP8X", bytes([flags, 0, 0, 0]) + three(size[0] - 1) + three(size[1] - 1))


def frame(place, size, *chunks, flags=0):
    body = b"".join(map(three, (place[0] // 2, place[1] // 2, size[0] - 1, size[1] - 1, 100)))
    return chunk(b"ANMF", body + bytes([flags]) + b"".join(chunks))


ANIM = chunk(b"ANIM", b"\x10\x20\x30\xff\0\0")  # a background, which is not to show


def pieces(content):
    return {name: chunk(name, body) for name, body in reader._chunks(content).items()}


def colours(channels=3, shape=(HEIGHT, WIDTH)):
    return RNG.integers(0, 256, (*shape, channels), dtype=np.uint8)


def pixels(content):
    image = decode(content)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def over_white(values):
    colours, alphas = values[:, :, :3].astype(int), values[:, :, 3:].astype(int)
    return (colours * alphas + 255 * (255 - alphas)) / 255


@pytest.fixture
def lossless(encode):
    """A lossless file of these samples."""

    def make(values):
        return encode(Image.fromarray(values), "WEBP", lossless=True, exact=True)

    return make


def test_lossless(lossless):
    values = colours()
    content = lossless(values)
    assert reader.inspect(content).layout == reader._LOSSLESS
    np.testing.assert_array_equal(pixels(content), values)
    np.testing.assert_array_equal(pixels(riff(extended(0), pieces(content)[b"VP8L"])), values)


@pytest.mark.parametrize("flags", [None, 0, ALPHA])
def test_lossless_with_alpha(flags, lossless):
    values = colours(4)
    only = pieces(lossless(values))[b"VP8L"]
    content = riff(only) if flags is None else riff(extended(flags), only)
    assert reader.inspect(content).layout == reader._LOSSLESS_ALPHA
    assert np.abs(pixels(content) - over_white(values)).max() <= 1


def test_lossy(encode):
    colour = (200, 100, 50)
    content = encode(Image.new("RGB", (WIDTH, HEIGHT), colour), "WEBP", quality=100)
    assert reader.inspect(content).layout == reader._LOSSY
    assert np.abs(pixels(content) - colour).max() <= 3
    np.testing.assert_array_equal(
        pixels(riff(extended(0), pieces(content)[b"VP8 "])), pixels(content)
    )


@pytest.mark.parametrize("flags", [0, ALPHA])
def test_lossy_with_alpha(flags, encode):
    values = np.full((HEIGHT, WIDTH, 4), (200, 100, 50, 255), np.uint8)
    values[:, :, 3] = RNG.integers(0, 256, (HEIGHT, WIDTH))
    found = pieces(encode(Image.fromarray(values), "WEBP", quality=100, exact=True))
    content = riff(extended(flags), found[b"ALPH"], found[b"VP8 "])
    assert reader.inspect(content).layout == reader._LOSSY_ALPHA
    assert np.abs(pixels(content) - over_white(values)).max() <= 4


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("place", [(0, 0), (2, 4), (4, 0)])
def test_the_canvas_around_a_small_frame_is_white(place, alpha, lossless):
    values = colours(4 if alpha else 3, (7, 9))
    only = pieces(lossless(values))[b"VP8L"]
    second = frame((0, 0), (9, 7), pieces(lossless(colours(3, (7, 9))))[b"VP8L"])
    for flags in (0, 1, 2, 3):
        first = frame(place, (9, 7), only, flags=flags)
        content = riff(extended(ANIMATION), ANIM, first, second)
        assert reader.inspect(content).layout == reader._SMALL
        expected = np.full((HEIGHT, WIDTH, 3), 255.0)
        box = slice(place[1], place[1] + 7), slice(place[0], place[0] + 9)
        expected[box] = over_white(values) if alpha else values
        assert np.abs(pixels(content) - expected).max() <= alpha


def test_of_an_animation_the_first_frame_is_read(lossless):
    values = colours()
    only = pieces(lossless(values))[b"VP8L"]
    other = pieces(lossless(colours()))[b"VP8L"]
    size = (WIDTH, HEIGHT)
    frames = [frame((0, 0), size, content) for content in (only, other)]
    content = riff(extended(ANIMATION | ALPHA), ANIM, *frames)
    assert reader.inspect(content).layout == reader._LOSSLESS
    np.testing.assert_array_equal(pixels(content), values)


def test_every_layout_is_tested():
    tested = {reader._LOSSLESS, reader._LOSSLESS_ALPHA, reader._LOSSY, reader._LOSSY_ALPHA}
    assert tested | {reader._SMALL} == set(reader.LAYOUTS)


def test_metadata_are_dropped(lossless):
    values = colours()
    only = pieces(lossless(values))[b"VP8L"]
    profile, text = chunk(b"ICCP", RNG.bytes(999)), chunk(b"XMP ", b"<x/>" * 999)
    content = riff(
        extended(0x2C), profile, only, chunk(b"EXIF", b"damaged"), text, chunk(b"?", b"")
    )
    assert reader.inspect(content).data == riff(only)
    np.testing.assert_array_equal(pixels(content), values)


@pytest.mark.parametrize("named", [b"", b"Exif\0\0"])
def test_orientation(named, lossless):
    values = colours()
    tags = struct.pack("<HHHIHH", 1, 0x0112, 3, 1, 6, 0)
    exif = chunk(b"EXIF", named + b"II*\0" + struct.pack("<I", 8) + tags + bytes(4))
    rdf = chunk(b"XMP ", b'<rdf:Description tiff:Orientation="6"/>')
    for metadata in (exif, rdf):
        content = riff(extended(EXIF | XMP), pieces(lossless(values))[b"VP8L"], metadata)
        np.testing.assert_array_equal(pixels(content), np.rot90(values, -1))


def test_truncated(encode):
    for options in ({"lossless": True}, {}):
        content = encode(Image.fromarray(colours(4)), "WEBP", **options)
        for end in range(12, len(content) - 2, 7):
            with pytest.raises(ImageError):
                decode(content[:end])


def test_refused(lossless):
    only = pieces(lossless(colours()))[b"VP8L"]
    far = frame((10, 0), (WIDTH, HEIGHT), only)
    for content, reason in (
        (riff(extended(0)), "without a frame"),
        (riff(extended(ANIMATION), ANIM), "without frames"),
        (riff(extended(ANIMATION), far), "beyond its canvas"),
        (riff(chunk(b"VP8 ", bytes(99))), "damaged"),
        (riff(chunk(b"VP8L", bytes(99))), "damaged"),
        (riff(*[chunk(b"junk", b"")] * 20_000, only), "chunks"),
    ):
        with pytest.raises(NotReadError, match=reason):
            reader.inspect(content)
