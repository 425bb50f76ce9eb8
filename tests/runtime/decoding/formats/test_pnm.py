import tracemalloc

import numpy as np
import pytest
from PIL import Image

from drexperts.runtime.decoding import decode
from drexperts.runtime.decoding.formats import pnm as reader
from drexperts.runtime.decoding.stored import NotReadError
from drexperts.runtime.errors import ImageError

RNG = np.random.default_rng(0)
WIDTH, HEIGHT = 13, 11
MAXIMA = (1, 2, 15, 100, 254, 255, 256, 1023, 4095, 65534, 65535)


def pixels(content):
    image = decode(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def samples(maximum, channels):
    values = RNG.integers(0, maximum + 1, (HEIGHT, WIDTH, channels))
    values.reshape(-1)[:2] = 0, maximum
    return values


def pnm(type, values, maximum=255, between=b" ", before=b"\n"):
    numbers = [WIDTH, HEIGHT, *([maximum] if type in (2, 3, 5, 6) else [])]
    header = b"P%d" % type + before + before.join(b"%d" % number for number in numbers) + b"\n"
    if type <= 3:
        return header + between.join(b"%d" % value for value in values.ravel()) + b"\n"
    if type == 4:
        return header + np.packbits(values[:, :, 0].astype(np.uint8), axis=1).tobytes()
    return header + values.astype(">u1" if maximum < 256 else ">u2").tobytes()


def scaled(values, maximum):
    rounded = np.floor(values * 255 / maximum + 0.5)
    return np.broadcast_to(rounded, (HEIGHT, WIDTH, 3))


@pytest.mark.parametrize("maximum", MAXIMA)
@pytest.mark.parametrize(
    ("type", "layout"),
    [(2, reader._GREY), (5, reader._GREY), (3, reader._RGB), (6, reader._RGB)],
)
def test_maxima(type, layout, maximum):
    values = samples(maximum, 3 if layout == reader._RGB else 1)
    content = pnm(type, values, maximum)
    assert reader.inspect(content).layout == layout
    np.testing.assert_array_equal(pixels(content), scaled(values, maximum))


@pytest.mark.parametrize(("type", "between"), [(1, b" "), (1, b""), (1, b"\n"), (4, b"")])
def test_bilevel(type, between):
    values = samples(1, 1)
    content = pnm(type, values, between=between)
    assert reader.inspect(content).layout == reader._BILEVEL
    np.testing.assert_array_equal(pixels(content), scaled(1 - values, 1))


def test_every_layout_is_tested():
    assert {reader._BILEVEL, reader._GREY, reader._RGB} == set(reader.LAYOUTS)


@pytest.mark.parametrize("type", range(1, 7))
@pytest.mark.parametrize("before", [b" ", b"\r\n", b"\t\n ", b"\n# a comment 7 8 9\n", b" #\r#\n"])
def test_headers(type, before):
    values = samples(1, 3 if type in (3, 6) else 1)
    assert (pixels(pnm(type, values, 1, before=before)) == pixels(pnm(type, values, 1))).all()


@pytest.mark.parametrize("type", [1, 2, 3])
def test_comments_among_plain_samples(type):
    values = samples(1, 3 if type == 3 else 1)
    content = pnm(type, values, 1, between=b" # comment 5 6\n ")
    assert (pixels(content) == pixels(pnm(type, values, 1))).all()


@pytest.mark.parametrize("type", [2, 3])
@pytest.mark.parametrize("missing", [1, 2, 7, 30])
@pytest.mark.parametrize("end", [b"", b" ", b"\n", b" x", b"\0", b" e1", b" -", b" #", b" -5 5"])
def test_missing_numbers(type, missing, end):
    """NumPy leaves them uninitialized, which often is 0: seen by what is left in memory."""
    values = samples(255, 3 if type == 3 else 1)
    content = pnm(type, values, 255)
    cut = content.rsplit(None, missing)[0]
    for left in (0, 7):
        for _ in range(3):
            np.full(values.size, left)  # freed at once, to be found again
            with pytest.raises(ImageError, match="truncated"):
                decode(cut + end)


@pytest.mark.parametrize("type", [2, 3])
@pytest.mark.parametrize("rest", [b" x", b"\n\0\xff", b" -1", b" 99999 7", b"\nP2 1 1 1 1"])
def test_what_follows_the_numbers_is_not_read(type, rest):
    content = pnm(type, samples(255, 3 if type == 3 else 1), 255)
    assert (pixels(content + rest) == pixels(content)).all()


@pytest.mark.parametrize("end", [b"\n", b"\r"])
@pytest.mark.parametrize("type", [1, 2])
def test_many_comments_take_little_memory(type, end):
    values = samples(1, 1)
    content = pnm(type, values, 1, between=b" #" + end)
    digit = content.rindex(b" #")
    many = content[:digit] + (b"#" + end) * 300_000 + content[digit:]
    tracemalloc.start()
    try:
        assert (pixels(many) == pixels(content)).all()
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_pillow_writes_what_is_read(mode, photo, encode):
    image = photo(41, 29).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels(encode(image, "PPM")), expected)


def test_pillow_writes_16_bits(encode):
    values = samples(65535, 1)
    content = encode(Image.fromarray(values[:, :, 0].astype(np.uint16)), "PPM")
    np.testing.assert_array_equal(pixels(content), scaled(values, 65535))


@pytest.mark.parametrize("type", [4, 5, 6])
def test_what_follows_is_not_read(type):
    values = samples(255 if type > 4 else 1, 3 if type == 6 else 1)
    content = pnm(type, values)
    np.testing.assert_array_equal(pixels(content + content), pixels(content))


@pytest.mark.parametrize("type", range(1, 7))
def test_truncated(type):
    values = samples(255 if type not in (1, 4) else 1, 3 if type in (3, 6) else 1)
    content = pnm(type, values)
    for end in (2, 5, 9, len(content) - 40, len(content) - 6):
        with pytest.raises(ImageError):
            decode(content[:end])


def test_refused():
    for content, reason in (
        (b"P5 2 2 0\nabcd", "the maximum 0"),
        (b"P5 2 2 65536\n" + bytes(8), "the maximum 65536"),
        (b"P5 2 2 99999999999\nabcd", "without a whole header"),
        (b"P5 -2 2 255\nabcd", "without a whole header"),
        (b"P5" + b" " * 30_000_000, "without a whole header"),
        (b"P5\n#" + b"\n#" * 10_000_000, "without a whole header"),
        (b"P5 30000 30000 255\n" + bytes(99), "truncated"),
    ):
        with pytest.raises(NotReadError, match=reason):
            reader.inspect(content)


@pytest.mark.parametrize(
    "content",
    [
        b"P5 2 2 100\nabc\x65",
        b"P5 2 1 1000\n\0\1\3\xe9",
        b"P2 2 2 100\n1 2 3 101",
        b"P2 2 2 100\n1 2 3 -1",
        b"P2 2 2 100\n1 2 3 x",
        b"P2 2 2 100\n1 1.5 3 4 ",
        b"P2 2 2 100\n1 2 3 99999999999999999999999999",
        b"P1 2 2\n0 1 0 2",
        b"P1 2 2\n0 1 0 #1\n",
    ],
)
def test_samples_that_are_none(content):
    with pytest.raises(ImageError):
        decode(content)
