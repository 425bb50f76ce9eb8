import struct

import numpy as np
import pytest

from drexperts.runtime.decoding import decode
from drexperts.runtime.decoding.formats import bmp as reader
from drexperts.runtime.decoding.stored import NotReadError
from drexperts.runtime.errors import ImageError

RNG = np.random.default_rng(0)
WIDTH, HEIGHT = 13, 11
HEADERS = (40, 52, 56, 64, 108, 124)


def bmp(
    rows,
    bits,
    *,
    size=40,
    compression=0,
    colours=(),
    used=0,
    masks=(),
    top_down=False,
    gap=b"",
    shape=(HEIGHT, WIDTH),
):
    """A BMP of these bytes of pixels.

    colours: a palette of (red, green, blue)
    masks: (red, green, blue, alpha) of BITFIELDS
    gap: what stands between the header and the pixels
    """
    height, width = shape
    fourth = b"" if size == 12 else b"\x55"
    palette = b"".join(bytes([b, g, r]) + fourth for r, g, b in colours)
    if size == 12:
        header = struct.pack("<IHHHH", size, width, height, 1, bits)
    else:
        height = -height if top_down else height
        header = struct.pack(
            "<IiiHHIIiiII", size, width, height, 1, bits, compression, 0, 0, 0, used, 0
        )
        header += b"".join(struct.pack("<I", mask) for mask in masks)[: 12 if size < 56 else 16]
        header = header.ljust(size, b"\0")
    offset = 14 + len(header) + len(palette) + len(gap)
    start = b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset)
    return start + header + palette + gap + rows


def packed(values, bits):
    """Rows of indices or samples, the lowest first, each of a multiple of four bytes."""
    rows = []
    for row in values[::-1]:
        if bits < 8:
            digits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
            content = np.packbits(digits).tobytes()
        else:
            content = row.astype(f"<u{bits // 8}").tobytes()
        rows.append(content + bytes(-len(content) % 4))
    return b"".join(rows)


def indices(bits):
    return RNG.integers(0, 1 << bits, (HEIGHT, WIDTH))


def palette(bits):
    return [tuple(colour) for colour in RNG.integers(0, 256, (1 << bits, 3)).tolist()]


def pixels(content):
    image = decode(content)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# Layouts


@pytest.mark.parametrize("size", [12, *HEADERS])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_palettes(bits, size):
    values, colours = indices(bits), palette(bits)
    content = bmp(packed(values, bits), bits, size=size, colours=colours)
    assert reader.inspect(content).layout == reader._PALETTE
    np.testing.assert_array_equal(pixels(content), np.array(colours)[values])


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize(
    "colours",
    [
        [(0, 0, 0), (255, 255, 255)],
        [(255, 255, 255), (0, 0, 0)],
        [(i, i, i) for i in range(2)],
        [(i, i, i) for i in range(16)],
        [(0, 0, 0)],
    ],
)
def test_small_and_grey_palettes(bits, colours):
    # Pillow takes some of these for images of mode "1" or "L", and reads 4 bits as 8.
    colours = colours[: 1 << bits]
    values = indices(bits) % len(colours)
    content = bmp(packed(values, bits), bits, colours=colours, used=len(colours))
    np.testing.assert_array_equal(pixels(content), np.array(colours)[values])


@pytest.mark.parametrize("bits", [1, 4, 8, 16, 24, 32])
def test_top_down_and_gaps(bits):
    values = indices(bits % 24 or 16) if bits != 24 else RNG.integers(0, 256, (HEIGHT, 3 * WIDTH))
    colours = palette(bits) if bits <= 8 else []
    rows = packed(values, 8 if bits == 24 else bits)
    upside_down = packed(values[::-1], 8 if bits == 24 else bits)
    content = bmp(rows, bits, colours=colours)
    other = bmp(upside_down, bits, colours=colours, top_down=True, gap=b"gap!")
    np.testing.assert_array_equal(pixels(other), pixels(content))


def of_masks(values, masks):
    scaled = [
        np.round(((values & mask) / (mask & -mask)) * 255 / (mask // (mask & -mask)))
        for mask in masks
    ]
    return np.stack(scaled, axis=2)


@pytest.mark.parametrize("size", [40, 52, 56, 108, 124])
@pytest.mark.parametrize(
    "masks",
    [
        (0x7C00, 0x3E0, 0x1F, 0),
        (0xF800, 0x7E0, 0x1F, 0),
        (0x1F, 0x7E0, 0xF800, 0),
        (0xF00, 0xF0, 0xF, 0),
        (0x8000, 0x7F00, 0xFF, 0),
    ],
)
def test_16_bits(masks, size):
    values = RNG.integers(0, 2**16, (HEIGHT, WIDTH))
    gap = b"".join(struct.pack("<I", mask) for mask in masks[:3]) if size == 40 else b""
    content = bmp(packed(values, 16), 16, size=size, compression=3, masks=masks, gap=gap)
    if size == 40:
        content = bmp(packed(values, 16), 16, compression=3, gap=gap)
    assert reader.inspect(content).layout == reader._RGB_16
    np.testing.assert_array_equal(pixels(content), of_masks(values, masks[:3]))


@pytest.mark.parametrize("size", HEADERS)
def test_16_bits_without_masks(size):
    values = RNG.integers(0, 2**16, (HEIGHT, WIDTH))
    content = bmp(packed(values, 16), 16, size=size)
    np.testing.assert_array_equal(pixels(content), of_masks(values, (0x7C00, 0x3E0, 0x1F)))


@pytest.mark.parametrize("size", [12, *HEADERS])
def test_24_bits(size):
    colours = RNG.integers(0, 256, (HEIGHT, WIDTH, 3))
    rows = packed(colours[:, :, ::-1].reshape(HEIGHT, -1), 8)
    content = bmp(rows, 24, size=size)
    assert reader.inspect(content).layout == reader._RGB
    np.testing.assert_array_equal(pixels(content), colours)


@pytest.mark.parametrize("size", HEADERS)
def test_32_bits_have_no_alpha(size):
    values = RNG.integers(0, 2**32, (HEIGHT, WIDTH))
    # Masks count for BITFIELDS only.
    masks = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    content = bmp(packed(values, 32), 32, size=size, masks=masks)
    assert reader.inspect(content).layout == reader._RGB
    np.testing.assert_array_equal(pixels(content), of_masks(values, (0xFF0000, 0xFF00, 0xFF)))


BYTES = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)


@pytest.mark.parametrize("order", [(2, 1, 0), (0, 1, 2), (3, 2, 1), (3, 1, 0), (1, 3, 0)])
@pytest.mark.parametrize("size", [52, 56, 108, 124])
def test_32_bits_with_masks(order, size):
    values = RNG.integers(0, 2**32, (HEIGHT, WIDTH))
    masks = [BYTES[i] for i in order]
    content = bmp(packed(values, 32), 32, size=size, compression=3, masks=(*masks, 0))
    assert reader.inspect(content).layout == reader._RGB
    np.testing.assert_array_equal(pixels(content), of_masks(values, masks))


@pytest.mark.parametrize("order", [(2, 1, 0, 3), (0, 1, 2, 3), (3, 2, 1, 0), (3, 1, 0, 2)])
@pytest.mark.parametrize("size", [56, 108, 124])
def test_alpha(order, size):
    values = RNG.integers(0, 2**32, (HEIGHT, WIDTH))
    masks = [BYTES[i] for i in order]
    content = bmp(packed(values, 32), 32, size=size, compression=3, masks=masks)
    assert reader.inspect(content).layout == reader._RGBA
    colours = of_masks(values, masks)
    alphas = colours[:, :, 3:]
    exact = (colours[:, :, :3] * alphas + 255 * (255 - alphas)) / 255
    assert np.abs(pixels(content) - exact).max() <= 1


def runs(values, bits):
    """Literal runs, repeated ones and row ends in turn, the lowest row first."""
    content = b""
    for row in values[::-1]:
        if bits == 8:
            literal, rest = row[:5], row[5:]
            content += bytes([0, 5, *literal, 0])
            content += b"".join(bytes([1, value]) for value in rest)
        else:
            literal, rest = row[:7], row[7:]
            pairs = [*literal, 0]
            content += bytes(
                [0, 7, *(a << 4 | b for a, b in zip(pairs[::2], pairs[1::2], strict=True))]
            )
            content += bytes([5, rest[0] << 4 | rest[1], len(rest) - 5, rest[5] << 4])
        content += b"\0\0"
    return content + b"\0\1"


@pytest.mark.parametrize("bits", [4, 8])
def test_run_lengths(bits):
    values, colours = indices(bits), palette(bits)
    if bits == 4:  # a run repeats two colours
        values[:, 9] = values[:, 11] = values[:, 7]
        values[:, 10] = values[:, 8]
    content = bmp(runs(values, bits), bits, compression={8: 1, 4: 2}[bits], colours=colours)
    assert reader.inspect(content).layout == reader._RUNS
    np.testing.assert_array_equal(pixels(content), np.array(colours)[values])


def test_every_layout_is_tested():
    tested = {reader._PALETTE, reader._RUNS, reader._RGB_16, reader._RGB, reader._RGBA}
    assert tested == set(reader.LAYOUTS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_pillow_writes_what_is_read(mode, photo, encode):
    image = photo(41, 29).convert(mode)
    if mode == "RGBA":
        image.putalpha(255)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels(encode(image, "BMP")), expected)


# Refused


def test_an_index_beyond_the_palette():
    values, colours = indices(8), palette(8)[:100]
    values[3, 4] = 100
    content = bmp(packed(values, 8), 8, colours=colours, used=100)
    with pytest.raises(ImageError, match="a pixel has colour"):
        decode(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\1", "leave pixels out"),
        (b"\0\0", "leave pixels out"),
        (b"\0\2\1\1", "leave pixels out"),
        (b"\x0e\1", "pass the end of a row"),
        (b"\x0d\1\0\0" * 12, "pass the end of a row"),
        (b"\x0d\1\0\0" * 11, "truncated"),
        (b"\x0d\1\0\0\0\5abc", "truncated"),
    ],
)
def test_run_lengths_that_are_refused(content, reason):
    with pytest.raises(ImageError, match=reason):
        decode(bmp(content, 8, compression=1, colours=palette(8)))


def test_refused():
    whole = bytes(4 * WIDTH * HEIGHT)
    alpha_16 = (0x7C00, 0x3E0, 0x1F, 0x8000)
    for content, reason in (
        (bmp(whole, 24, compression=4), "an embedded JPEG"),
        (bmp(whole, 24, compression=5), "an embedded PNG"),
        (bmp(whole, 24, compression=6), "compression 6"),
        (bmp(whole, 1, size=64, compression=3, colours=palette(1)), "compression -1"),
        (bmp(whole, 8, compression=2, colours=palette(8)), "compression 2"),
        (bmp(whole, 8, compression=1, colours=palette(8), top_down=True), "compression 1"),
        (bmp(whole, 8, gap=b"ab"), "without a palette"),
        (bmp(whole, 2, colours=palette(2)), "of 2 bits"),
        (bmp(3 * whole, 64), "of 64 bits"),
        (bmp(whole, 16, size=56, compression=3, masks=alpha_16), "0x8000"),
        (bmp(whole, 32, size=56, compression=3, masks=(0x3FF, 0xFFC00, 0x3FF00000, 0)), "0x3ff"),
        (bmp(whole, 32, size=56, compression=3, masks=(0, 0, 0, 0)), "0x0"),
        (bmp(whole, 32, size=56, compression=3, masks=(0xFF, 0xFF, 0xFF00, 0)), "0xff"),
        (bmp(whole, 24, shape=(11, -13)), "negative width"),
        (bmp(whole, 24, size=16), "a header of 16 bytes"),
        (bmp(whole[: 10 * 4 * WIDTH], 32), "truncated"),
        (b"BM", "truncated"),
    ):
        with pytest.raises(NotReadError, match=reason):
            reader.inspect(content)


def test_masks_with_holes_are_refused():
    content = bmp(bytes(400), 16, size=52, compression=3, masks=(0xF0F0, 0xF, 0xF00))
    with pytest.raises(ImageError, match="the mask 0xf0f0"):
        decode(content)


def test_an_alpha_of_0_everywhere_means_opaque():
    values = RNG.integers(0, 2**24, (HEIGHT, WIDTH))
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)

    def read():
        return pixels(bmp(packed(values, 32), 32, size=124, compression=3, masks=masks))

    colours = of_masks(values, masks[:3])
    np.testing.assert_array_equal(read(), colours)
    values[0, 0] |= 0xFF000000
    mixed = np.full_like(colours, 255)
    mixed[0, 0] = colours[0, 0]
    np.testing.assert_array_equal(read(), mixed)


def test_a_header_that_forgets_the_palette():
    values, colours = indices(8), palette(8)
    content = bytearray(bmp(packed(values, 8), 8, colours=colours))
    content[10:14] = struct.pack("<I", 54)
    np.testing.assert_array_equal(pixels(bytes(content)), np.array(colours)[values])


def test_sizes_that_the_file_does_not_have():
    content = bmp(bytes(100), 8, compression=1, colours=palette(8), shape=(30000, 30000))
    with pytest.raises(ImageError, match="30000x30000 is more than"):
        decode(content)
