import base64
import io
import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from support import jpeg_files
from support.arithmetic_jpegs import ARITHMETIC
from support.jpeg_files import EOI, JFIF, SOI, adobe, jpeg, rgb_from_ycbcr, segment

from drexperts.runtime.decoding import decode
from drexperts.runtime.decoding.formats import jpeg as reader
from drexperts.runtime.decoding.stored import NotReadError
from drexperts.runtime.errors import ImageError

RNG = np.random.default_rng(0)
APP0 = segment(0xE0, JFIF)
YCC = [(1, 1, 1), (2, 1, 1), (3, 1, 1)]
RGB = [(ord(name), 1, 1) for name in "RGB"]
FOUR = [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1)]


def blocks(count, shape=(3, 4)):
    return [RNG.integers(0, 256, shape) for _ in range(count)]


def pixels(content):
    image = decode(content)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def check(content, layout, expected, tolerance=1):
    """expected: a colour for each block of 8x8 pixels"""
    assert reader.inspect(content).layout == layout
    found = pixels(content)
    full = np.repeat(np.repeat(expected, 8, axis=0), 8, axis=1)[: found.shape[0], : found.shape[1]]
    assert np.abs(found - full).max() <= tolerance


# Layouts


@pytest.mark.parametrize("sampling", [(1, 1), (2, 2)])
@pytest.mark.parametrize("size", [(32, 24), (29, 17)])
def test_grey(size, sampling):
    (values,) = blocks(1)
    content = jpeg(size, [(1, *sampling)], [values])
    check(content, reader._GREY, np.repeat(values[:, :, None], 3, axis=2), tolerance=0)


@pytest.mark.parametrize(
    ("segments", "components"),
    [
        (APP0, YCC),
        (b"", YCC),
        (adobe(1), YCC),
        (b"", [(0, 1, 1), (1, 1, 1), (2, 1, 1)]),
        # JFIF decides before Adobe and before names.
        (APP0 + adobe(0), YCC),
        (APP0, RGB),
    ],
)
def test_ycbcr(segments, components):
    values = blocks(3)
    content = jpeg((32, 24), components, values, segments=segments)
    check(content, reader._YCBCR, rgb_from_ycbcr(*values))


@pytest.mark.parametrize(("segments", "components"), [(adobe(0), YCC), (b"", RGB)])
def test_rgb(segments, components):
    values = blocks(3)
    content = jpeg((32, 24), components, values, segments=segments)
    check(content, reader._RGB, np.stack(values, axis=2), tolerance=0)


@pytest.mark.parametrize("sampling", [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_subsampling(sampling):
    across, down = sampling
    luma = RNG.integers(0, 256, (4, 4))
    chroma = [np.full((4 // down, 4 // across), value) for value in (90, 160)]
    components = [(1, across, down), (2, 1, 1), (3, 1, 1)]
    content = jpeg((32, 32), components, [luma, *chroma], segments=APP0)
    check(content, reader._YCBCR, rgb_from_ycbcr(luma, 90 + 0 * luma, 160 + 0 * luma))


def test_cmyk_of_adobe_is_inverted():
    values = blocks(4)
    content = jpeg((32, 24), FOUR, values, segments=adobe(0))
    cyan, magenta, yellow, black = values  # 255 is no ink
    expected = np.stack([cyan, magenta, yellow], axis=2) * black[:, :, None] / 255
    check(content, reader._CMYK, expected, tolerance=1.5)


def test_ycck_of_adobe_is_inverted():
    values = blocks(4)
    content = jpeg((32, 24), FOUR, values, segments=adobe(2))
    inks = 255 - rgb_from_ycbcr(*values[:3])
    check(content, reader._YCCK, inks * values[3][:, :, None] / 255, tolerance=2)


def test_every_layout_is_tested():
    tested = {reader._GREY, reader._YCBCR, reader._RGB, reader._CMYK, reader._YCCK}
    assert tested == set(reader.LAYOUTS)


@pytest.mark.parametrize("marker", [0xC0, 0xC1])
def test_restart_markers(marker):
    values = blocks(3)
    content = jpeg((32, 24), YCC, values, segments=APP0, restart=1, marker=marker)
    assert all(bytes([0xFF, 0xD0 + i]) in content for i in range(8))
    check(content, reader._YCBCR, rgb_from_ycbcr(*values))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_progressive_files_have_the_same_pixels(subsampling, photo, encode):
    image = photo(61, 47)
    options = {"quality": 90, "subsampling": subsampling}
    progressive = encode(image, "JPEG", progressive=True, **options)
    assert len(reader._read(progressive).scans) == 10
    expected = pixels(encode(image, "JPEG", **options))
    np.testing.assert_array_equal(pixels(progressive), expected)


def test_components_in_scans_of_their_own():
    values = blocks(3)
    scans = [
        jpeg_files.scan_header([name]) + jpeg_files.scan([YCC[0]], [component])
        for (name, *_), component in zip(YCC, values, strict=True)
    ]
    start = SOI + APP0 + jpeg_files.tables() + jpeg_files.frame((32, 24), YCC)
    check(start + b"".join(scans) + EOI, reader._YCBCR, rgb_from_ycbcr(*values))
    with pytest.raises(NotReadError, match="no scan has component 3"):
        reader.inspect(start + b"".join(scans[:2]) + EOI)


@pytest.mark.parametrize("format", ["JPEG", "MPO"])
def test_photographs_have_the_pixels_of_simplejpeg(format, photo, encode):
    simplejpeg = pytest.importorskip("simplejpeg")
    options = {"save_all": True, "append_images": [photo(61, 47)]} if format == "MPO" else {}
    content = encode(photo(61, 47), format, quality=90, **options)
    expected = simplejpeg.decode_jpeg(content)
    np.testing.assert_array_equal(pixels(content), expected)


ACROSS, DOWN = np.meshgrid(np.arange(16), np.arange(16))
GRADIENT = np.stack([ACROSS * 17, DOWN * 17, 255 - ACROSS * 8 - DOWN * 8], 2)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_coding(name):
    content = base64.b64decode(ARITHMETIC[name])
    try:
        Image.open(io.BytesIO(content)).load()
    except OSError:
        pytest.skip("Pillow's libjpeg has no arithmetic coding")
    expected = np.repeat(GRADIENT[..., :1], 3, axis=2) if name == "grey" else GRADIENT
    assert abs(pixels(content) - expected).mean() < 1.5
    for end in range(2, len(content), 11):
        with pytest.raises(ImageError):
            decode(content[:end])


def arithmetic(size, data):
    """A grey picture of any data, all of which means something."""
    header = SOI + segment(0xDB, b"\0" + b"\1" * 64) + jpeg_files.frame(size, [(1, 1, 1)], 0xC9)
    return header + jpeg_files.scan_header([1]) + data + EOI


def test_arithmetic_coding_of_more_than_pillow_reads_at_a_time():
    data = RNG.integers(0, 255, 300_000, np.uint8).tobytes()
    content = arithmetic((1000, 1000), data)
    try:
        expected = imagecodecs.jpeg8_decode(content)
    except imagecodecs.Jpeg8Error:
        pytest.skip("imagecodecs' libjpeg has no arithmetic coding")
    assert (pixels(content) == expected[..., None]).all()


def test_arithmetic_coding_that_takes_long():
    with pytest.raises(NotReadError, match="scans pass over"):
        reader.inspect(arithmetic((30_000, 30_000), b""))
    with pytest.raises(NotReadError, match="takes too long"):
        reader.inspect(arithmetic((8, 8), bytes(2**26)))


# Refused


@pytest.mark.parametrize(
    ("marker", "reason"),
    [
        (0xC3, "lossless"),
        (0xC5, "hierarchical"),
        (0xCB, "lossless JPEG with arithmetic"),
        (0xCE, "hierarchical"),
        (0xF7, "JPEG-LS"),
    ],
)
def test_other_codings_are_refused(marker, reason):
    with pytest.raises(ImageError, match=reason):
        decode(jpeg((32, 24), YCC, blocks(3), segments=APP0, marker=marker))


@pytest.mark.parametrize(
    ("components", "segments", "reason"),
    [
        (FOUR, b"", "without an Adobe segment"),
        (FOUR, APP0, "without an Adobe segment"),
        (FOUR, adobe(1), "4 components and Adobe's transform 1"),
        (YCC, adobe(2), "3 components and Adobe's transform 2"),
        (YCC[:2], APP0, "2 components"),
        ([(1, 5, 1)], b"", "invalid subsampling"),
        ([(1, 0, 1)], b"", "invalid subsampling"),
    ],
)
def test_other_components_are_refused(components, segments, reason):
    values = blocks(len(components), (5, 5))
    with pytest.raises(ImageError, match=reason):
        decode(jpeg((32, 24), components, values, segments=segments))


def test_other_frames_are_refused():
    rest = jpeg_files.scan_header([1]) + b"\0" + EOI
    start = SOI + jpeg_files.tables()
    grey = [(1, 1, 1)]
    for frames, reason in (
        (jpeg_files.frame((8, 8), grey, bits=12), "12 bits"),
        (jpeg_files.frame((8, 0), grey), "DNL"),
        (jpeg_files.frame((8, 8), grey) * 2, "two frames"),
        (segment(0xC0, b"\x08\0\x08"), "cut off"),
    ):
        with pytest.raises(NotReadError, match=reason):
            reader.inspect(start + frames + rest)


def test_truncated_files(photo, encode):
    for progressive in (False, True):
        content = encode(photo(61, 47), "JPEG", progressive=progressive)
        for end in (*range(2, len(content), 97), len(content) - 1):
            with pytest.raises(ImageError):
                decode(content[:end])


# Files that would take long


def scans_over(size, scans):
    """A small file of many progressive scans without data, each of which refines all samples."""
    start = SOI + segment(0xDB, b"\0" + b"\1" * 64) + jpeg_files.frame(size, [(1, 1, 1)], 0xC2)
    codes = [
        segment(0xC4, bytes([kind, 1, *[0] * 15, value])) for kind, value in ((0, 0), (16, 224))
    ]
    units = size[0] * size[1] // 64
    first = jpeg_files.scan_header([1], 0, 0) + bytes(units // 8 + 1)
    runs = -(-units // 2**14)
    refining = jpeg_files.scan_header([1], 1, 63, 0x10) + bytes(runs * 15 // 8 + 2)
    return start + b"".join(codes) + first + refining * scans + EOI


def test_scans_are_bounded_by_the_samples_they_pass_over():
    assert decode(scans_over((64, 64), 500)).size == (64, 64)
    content = scans_over((8192, 8192), 60)
    assert len(content) < 200_000
    with pytest.raises(ImageError, match="takes too long"):
        decode(content)


@pytest.mark.parametrize(
    "hostile",
    [
        SOI + b"\xff" * 30_000_000,
        SOI + bytes(30_000_000),
        SOI + b"\xff\xfe\0\2" * 7_000_000,
        SOI + b"\xff\0" * 15_000_000,
        SOI + segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 500,
        SOI + segment(0xE1, b"Exif\0\0") * 20_000,
        SOI + segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * 20 + EOI,
    ],
)
def test_segments_of_no_picture(hostile):
    with pytest.raises(NotReadError):
        reader.inspect(hostile)


def test_fill_bytes_cost_no_picture():
    (values,) = blocks(1)
    content = jpeg((32, 24), [(1, 1, 1)], [values], segments=b"\xff" * 30_000_000 + APP0)
    check(content, reader._GREY, np.repeat(values[:, :, None], 3, axis=2), tolerance=0)


# What the picture does not need


@pytest.mark.parametrize(
    "metadata",
    [
        segment(0xEE, b"Adobe"),
        segment(0xEE, b"Adobe\0\x64\0\0"),
        segment(0xE0, b"JFIF\0"),
        segment(0xE0, b"JFIF\0\1\1"),
        segment(0xE0, b"JFXX\0\x10" + SOI + EOI),
        segment(0xE1, b""),
        segment(0xE1, b"Exif\0\0"),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)) * 30,
        segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        segment(0xED, b"Photoshop 3.0\08BIM\4\x04\0\0\xff\xff\xff\xff"),
        segment(0xFE, b"a comment"),
        segment(0xFE, b""),
        b"\xff\x01",
        b"garbage \xff\0 between",
    ],
)
def test_metadata_cost_no_picture(metadata):
    values = blocks(3)
    whole = jpeg((32, 24), YCC, values, segments=APP0)
    content = jpeg((32, 24), YCC, values, segments=APP0 + metadata)
    assert reader.inspect(content).data == reader.inspect(whole).data
    check(content, reader._YCBCR, rgb_from_ycbcr(*values))


def test_short_markers_decide_nothing():
    values = blocks(3)
    content = jpeg((32, 24), YCC, values, segments=segment(0xEE, b"Adobe\0\x64\0\0\0\0"))
    check(content, reader._YCBCR, rgb_from_ycbcr(*values))


def test_what_follows_the_picture_is_dropped(photo, encode):
    content = encode(photo(61, 47), "JPEG")
    stored = reader.inspect(content + bytes(10_000))
    assert stored.data == reader.inspect(content).data
    assert len(stored.data) <= len(content)


def test_a_thumbnail_is_not_the_picture(photo, encode):
    thumbnail = encode(photo(16, 12), "JPEG")
    content = encode(photo(61, 47), "JPEG")
    inserted = content[:2] + segment(0xE1, b"Exif\0\0" + thumbnail) + content[2:]
    np.testing.assert_array_equal(pixels(inserted), pixels(content))


# Orientation


def exif(orientation):
    tags = struct.pack("<HHHIHH", 1, 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + tags + bytes(4)


RDF = b"http://ns.adobe.com/xap/1.0/\0<rdf:Description><tiff:Orientation>%d</tiff:Orientation>"


@pytest.mark.parametrize(
    "metadata",
    [
        segment(0xE1, exif(6)),
        segment(0xE1, RDF % 6),
        segment(0xE1, RDF % 3) + segment(0xE1, exif(6)),
        segment(0xE1, exif(6)[:20]) + segment(0xE1, b"Exif\0\0" + exif(6)[20:]),
        segment(0xE1, RDF % 3) + segment(0xE1, RDF % 6),
    ],
)
def test_orientation(metadata):
    (values,) = blocks(1)
    content = jpeg((32, 24), [(1, 1, 1)], [values], segments=metadata)
    turned = np.rot90(values, -1)
    check(content, reader._GREY, np.repeat(turned[:, :, None], 3, axis=2), tolerance=0)
    assert Image.open(io.BytesIO(content)).getexif()[0x0112] == 6
