import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.png_files import CHANNELS, SIGNATURE, chunk, png

from drexperts.runtime.decoding import decode
from drexperts.runtime.decoding.formats import png as reader
from drexperts.runtime.decoding.stored import NotReadError
from drexperts.runtime.errors import ImageError

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 11, 13
# Every value of 1, 2 and 4 bits, and both ends of 8 and 16 bits.
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def samples(bits, type):
    shape = (HEIGHT, WIDTH, CHANNELS[type])
    values = RNG.integers(0, 1 << bits, shape)
    values.reshape(-1)[:16] = np.arange(16) % (1 << bits)
    values.reshape(-1)[-2:] = 0, (1 << bits) - 1
    return values


def to_8_bits(values, bits, type):
    """What the table of layouts says: grey of 16 bits is rounded, the rest keeps its high byte."""
    if bits == 16:
        return np.round(values / 257).astype(int) if type == 0 else values >> 8
    return np.round(values * 255 / ((1 << bits) - 1)).astype(int)


def over_white(colours, alphas):
    exact = (colours * alphas + 255 * (255 - alphas)) / 255
    return exact


def pixels(content):
    image = decode(content)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def expected_of(values, bits, type):
    stored = to_8_bits(values, bits, type)
    if type in (4, 6):
        return over_white(stored[:, :, :-1], stored[:, :, -1:])
    return stored


def palette(bits, entries=None):
    colours = RNG.integers(0, 256, (entries or 1 << bits, 3))
    return colours, (b"PLTE", colours.astype(np.uint8).tobytes())


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("type", "bits", "layout"),
    [
        *((0, bits, reader._GREY) for bits in (1, 2, 4, 8)),
        (0, 16, reader._GREY_16),
        (2, 8, reader._RGB),
        (2, 16, reader._RGB_16),
        (4, 8, reader._GREY_ALPHA),
        (4, 16, reader._GREY_ALPHA_16),
        (6, 8, reader._RGBA),
        (6, 16, reader._RGBA_16),
    ],
)
def test_samples(type, bits, layout, interlaced):
    values = samples(bits, type)
    content = png(values, bits, type, interlaced=interlaced)
    assert reader.inspect(content).layout == layout
    expected = np.broadcast_to(expected_of(values, bits, type), (HEIGHT, WIDTH, 3))
    # Compositing may round down or up.
    tolerance = 1 if type in (4, 6) else 0
    assert np.abs(pixels(content) - expected).max() <= tolerance


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes(bits, interlaced):
    values = samples(bits, 3)
    colours, table = palette(bits)
    content = png(values, bits, 3, chunks=[table], interlaced=interlaced)
    assert reader.inspect(content).layout == reader._PALETTE
    np.testing.assert_array_equal(pixels(content), colours[values[:, :, 0]])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_transparent_palette_entries(bits):
    values = samples(bits, 3)
    colours, table = palette(bits)
    # Fewer alphas than entries: the rest is opaque.
    alphas = RNG.integers(0, 256, (1 << bits) - 1)
    alphas[0] = 0
    chunks = [table, (b"tRNS", alphas.astype(np.uint8).tobytes())]
    content = png(values, bits, 3, chunks=chunks)
    assert reader.inspect(content).layout == reader._PALETTE_ALPHA
    exact = over_white(colours, np.append(alphas, 255)[:, None])[values[:, :, 0]]
    assert np.abs(pixels(content) - exact).max() <= 1
    np.testing.assert_array_equal(pixels(content)[values[:, :, 0] == 0], 255)


def test_an_alpha_of_10_at_the_end_is_no_line_break():
    # Pillow's pattern for one transparent entry, "^\xff*\x00\xff*$", also matches before b"\n".
    values = np.array([[[0], [1], [2], [3]]])
    chunks = [(b"PLTE", bytes(12)), (b"tRNS", b"\xff\0\xff\n")]
    content = png(values, 2, 3, chunks=chunks)
    assert pixels(content)[0, :, 0].tolist() == [0, 255, 0, 245]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_grey(bits, interlaced):
    values = samples(bits, 0)
    key = int(values[5, 5, 0])
    # The bits above the depth are to be masked.
    stored = key if bits == 16 else key | 0xAB00 | (0xFF >> bits << bits)
    content = png(
        values, bits, 0, chunks=[(b"tRNS", struct.pack(">H", stored))], interlaced=interlaced
    )
    layout = reader._GREY_16_KEY if bits == 16 else reader._GREY_KEY
    assert reader.inspect(content).layout == layout
    expected = to_8_bits(values, bits, 0)
    expected[values == key] = 255
    np.testing.assert_array_equal(pixels(content), np.repeat(expected, 3, axis=2))


def test_transparent_colour():
    values = samples(8, 2)
    values[3, 4] = values[5, 6] = (1, 2, 3)
    values[7, 7] = (1, 2, 4)
    content = png(values, 8, 2, chunks=[(b"tRNS", b"\x77\1\x77\2\x77\3")])
    assert reader.inspect(content).layout == reader._RGB_KEY
    values[3, 4] = values[5, 6] = 255
    np.testing.assert_array_equal(pixels(content), values)


def test_every_layout_is_tested():
    tested = {
        *(reader._GREY, reader._GREY_16, reader._RGB, reader._RGB_16, reader._GREY_ALPHA),
        *(reader._GREY_ALPHA_16, reader._RGBA, reader._RGBA_16, reader._PALETTE),
        *(reader._PALETTE_ALPHA, reader._GREY_KEY, reader._GREY_16_KEY, reader._RGB_KEY),
    }
    assert tested == set(reader.LAYOUTS)


def test_every_depth_is_tested():
    assert {(type, bits) for type, depths in DEPTHS.items() for bits in depths} == set(
        reader._TYPES
    )


# Refused


def broken(name=b"", checksum=None, body=None):
    """A PNG with one chunk changed."""
    content = png(samples(8, 3), 8, 3, chunks=[palette(8)[1], (b"tRNS", b"\0\1")])
    start = content.index(name)
    length = int.from_bytes(content[start - 4 : start], "big")
    body = content[start + 4 : start + 4 + length] if body is None else body
    return content[: start - 4] + chunk(name, body, checksum) + content[start + 8 + length :]


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_a_wrong_checksum_of_what_makes_the_picture(name):
    with pytest.raises(NotReadError, match=f"checksum of {name.decode()}"):
        reader.inspect(broken(name, checksum=1))


@pytest.mark.parametrize(
    ("type", "bits", "chunks", "reason"),
    [
        (2, 16, [(b"tRNS", bytes(6))], "16-bit RGB with a transparent colour"),
        (3, 8, [], "without a whole palette"),
        (3, 8, [(b"PLTE", b"ab")], "without a whole palette"),
        (3, 8, [(b"PLTE", bytes(3 * 257))], "without a whole palette"),
        (3, 8, [(b"PLTE", b"abc")] * 2, "two chunks PLTE"),
        (0, 8, [(b"tRNS", b"a")], "transparent colour is cut off"),
        (2, 8, [(b"tRNS", b"abcde")], "transparent colour is cut off"),
        (0, 8, [(b"ABCD", b"")], "unknown critical chunk ABCD"),
    ],
)
def test_refused(type, bits, chunks, reason):
    with pytest.raises(ImageError, match=reason):
        decode(png(samples(bits, type), bits, type, chunks=chunks))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (struct.pack(">IIBBBBB", 4, 4, 3, 0, 0, 0, 0), "colour type 0 with 3 bits"),
        (struct.pack(">IIBBBBB", 4, 4, 4, 2, 0, 0, 0), "colour type 2 with 4 bits"),
        (struct.pack(">IIBBBBB", 4, 4, 8, 0, 1, 0, 0), "unknown compression"),
        (struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 1, 0), "unknown compression"),
        (struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 2), "unknown compression"),
        (b"short", "without a header"),
    ],
)
def test_refused_headers(header, reason):
    with pytest.raises(NotReadError, match=reason):
        reader.inspect(broken(b"IHDR", body=header))


def test_apples_own_png():
    content = png(samples(8, 6), 8, 6)
    content = SIGNATURE + chunk(b"CgBI", bytes(4)) + content[len(SIGNATURE) :]
    with pytest.raises(NotReadError, match="begins with the chunk CgBI"):
        reader.inspect(content)


def test_an_index_beyond_the_palette():
    values = np.array([[[0], [1], [2], [1]]])
    _, table = palette(8, entries=3)
    assert pixels(png(values, 8, 3, chunks=[table])).shape == (1, 4, 3)
    values[0, 3] = 3
    with pytest.raises(ImageError, match="a pixel has colour 3"):
        decode(png(values, 8, 3, chunks=[table]))


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_truncated(kept):
    content = png(samples(8, 2), 8, 2)
    with pytest.raises(ImageError):
        decode(content[: int(kept * len(content))])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("bits", "type"), [(1, 0), (8, 0), (8, 2), (16, 6)])
def test_missing_rows(bits, type, interlaced):
    values = samples(bits, type)
    content = png(values, bits, type, interlaced=interlaced)
    start = len(SIGNATURE)
    for rows in (1, 2, 40):
        taller = struct.pack(">IIBBBBB", WIDTH, HEIGHT + rows, bits, type, 0, 0, interlaced)
        with pytest.raises(ImageError, match="rows are missing"):
            decode(content[:start] + chunk(b"IHDR", taller) + content[start + 25 :])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 1), (8, 8), (9, 17)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_black_pictures_are_whole(size, interlaced):
    for bits, type in ((1, 0), (4, 0), (16, 2), (8, 4)):
        values = np.zeros((*size, CHANNELS[type]), int)
        assert decode(png(values, bits, type, interlaced=interlaced)).size == size[::-1]


def test_more_chunks_than_writers_make():
    content = png(samples(8, 2), 8, 2)
    start = len(SIGNATURE) + 25
    hostile = content[:start] + chunk(b"tEXt", b"a\0b") * 200_000 + content[start:]
    with pytest.raises(NotReadError, match="more than 100000 chunks"):
        reader.inspect(hostile)


# What the picture does not need


NOISE = RNG.integers(0, 256, 2**21, dtype=np.uint8).tobytes()


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"iCCP", b"big\0\0" + zlib.compress(NOISE)),
        (b"iCCP", b"bomb\0\0" + zlib.compress(bytes(2**24))),
        (b"iCCP", b""),
        (b"tEXt", b"parameters\0" + NOISE),
        (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(2**24))),
        (b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(NOISE)),
        (b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(2**24))),
        (b"gAMA", b"ab"),
        (b"pHYs", b"abc"),
        (b"cHRM", b"abc"),
        (b"sRGB", b""),
        (b"acTL", b"abc"),
        (b"fcTL", b"abc"),
        (b"eXIf", b"MM\0*"),
    ],
)
@pytest.mark.parametrize("place", ["chunks", "after"])
def test_metadata_cost_no_picture(name, body, place):
    values = samples(8, 2)
    content = png(values, 8, 2, **{place: [(name, body)]})
    np.testing.assert_array_equal(pixels(content), values)
    assert reader.inspect(content).data == reader.inspect(png(values, 8, 2)).data


@pytest.mark.parametrize("name", [b"tEXt", b"iCCP", b"gAMA", b"eXIf"])
def test_wrong_checksums_of_metadata_cost_no_picture(name):
    values = samples(8, 2)
    content = png(values, 8, 2, chunks=[(name, b"abcdefgh")])
    damaged = content.replace(chunk(name, b"abcdefgh"), chunk(name, b"abcdefgh", checksum=1))
    assert damaged != content
    np.testing.assert_array_equal(pixels(damaged), values)


def test_a_missing_end_costs_no_picture():
    values = samples(8, 2)
    content = png(values, 8, 2, after=[(b"tEXt", b"a\0" + bytes(99))])
    np.testing.assert_array_equal(pixels(content[:-60]), values)
    np.testing.assert_array_equal(pixels(content + bytes(1000)), values)


def test_of_an_animation_the_default_image_is_read(encode):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime")]
    for default in (False, True):
        content = encode(
            frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default
        )
        assert b"fcTL" in content
        np.testing.assert_array_equal(pixels(content), np.full((6, 8, 3), (255, 0, 0)))


# Orientation


def exif(orientation):
    tags = struct.pack(">HHHIHH", 1, 0x0112, 3, 1, orientation, 0)
    return b"MM\0*" + struct.pack(">I", 8) + tags + bytes(4)


def as_imagemagick(content):
    digits = content.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    return f"\nexif\n{len(content):8}\n{lines}\n".encode()


RAW = b"Raw profile type exif\0"
XMP = b"XML:com.adobe.xmp\0"
RDF = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("place", ["chunks", "after"])
@pytest.mark.parametrize(
    "metadata",
    [
        [(b"eXIf", exif(6))],
        [(b"eXIf", b"Exif\0\0" + exif(6))],
        [(b"zTXt", RAW + b"\0" + zlib.compress(as_imagemagick(b"Exif\0\0" + exif(6))))],
        [(b"tEXt", RAW + as_imagemagick(exif(6)))],
        [(b"iTXt", XMP + b"\0\0\0\0" + RDF)],
        [(b"iTXt", XMP + b"\1\0\0\0" + zlib.compress(RDF))],
        [(b"iTXt", XMP + b"\0\0\0\0" + RDF.replace(b"6", b"3")), (b"eXIf", exif(6))],
    ],
)
def test_orientation(metadata, place):
    values = samples(8, 2)
    content = png(values, 8, 2, **{place: metadata})
    np.testing.assert_array_equal(pixels(content), np.rot90(values, -1))
    # As Pillow says it.
    image = Image.open(io.BytesIO(content))
    image.load()
    assert image.getexif()[0x0112] == 6


def test_orientations_that_unfold_are_bounded():
    bombs = [(b"zTXt", XMP + b"\0" + zlib.compress(bytes(2**26)))] * 500
    content = png(samples(8, 2), 8, 2, chunks=bombs)
    # A second if all were unfolded as far as they are searched, a minute if they were as a whole.
    assert reader.inspect(content).orientation == 1
