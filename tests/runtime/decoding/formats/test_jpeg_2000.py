import io
import struct
import warnings
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from support.decoded import pixels, refused

from drexperts.runtime.decoding.formats import jpeg_2000

RANDOM = np.random.default_rng(0)
SIZE = (37, 45)  # rows and columns


def values(bits, *channels):
    kind = np.uint8 if bits <= 8 else np.uint16
    return RANDOM.integers(0, 1 << bits, (*SIZE, *channels)).astype(kind)


def scaled(samples, bits):
    return samples * (255 / ((1 << bits) - 1))


def grey(samples):
    return np.repeat(samples[..., None], 3, axis=2)


def over_white(samples):
    colour, alpha = samples[..., :-1], samples[..., -1:] / 255
    return colour * alpha + 255 * (1 - alpha)


def encoded(samples, bits=8, **options):
    """Losslessly, by another build of OpenJPEG."""
    how: dict[str, Any] = {"codecformat": "j2k", "reversible": True, "mct": False} | options
    return bytes(imagecodecs.jpeg2k_encode(samples, level=0, bitspersample=bits, **how))


def by_pillow(image, **options):
    stream = io.BytesIO()
    image.save(stream, "JPEG2000", **options)
    return stream.getvalue()


def box(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def enumerated(number):
    return box(b"colr", struct.pack(">BBBI", 1, 0, 0, number))


def with_profile(space):
    return box(b"colr", bytes([2, 0, 0]) + bytes(16) + space + bytes(108))


def channels(*definitions):
    content = b"".join(struct.pack(">HHH", *definition) for definition in definitions)
    return box(b"cdef", struct.pack(">H", len(definitions)) + content)


def jp2(codestream, *boxes):
    """A JP2 file by hand, of some boxes in its header."""
    height, width = SIZE
    size = struct.pack(">IIHBBBB", height, width, codestream[41], 7, 7, 0, 0)
    return b"".join(
        [
            b"\0\0\0\x0cjP  \r\n\x87\n",
            box(b"ftyp", b"jp2 \0\0\0\0jp2 "),
            box(b"jp2h", box(b"ihdr", size) + b"".join(boxes)),
            box(b"jp2c", codestream),
        ]
    )


RGBA_CHANNELS = channels((0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 1, 0))


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("format", ["j2k", "jp2"])
def test_grey_of_every_depth(bits, format):
    samples = values(bits)
    content = encoded(samples, bits, codecformat=format)
    assert abs(pixels(content) - grey(scaled(samples, bits))).max() <= 0.5


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("count", [2, 3, 4])
def test_other_components_of_every_depth(bits, count):
    samples = values(bits, count)
    header = {
        2: (enumerated(17), channels((0, 0, 1), (1, 1, 0))),
        3: (enumerated(16),),
        4: (enumerated(16), RGBA_CHANNELS),
    }
    content = jp2(encoded(samples, bits), *header[count])
    if bits > 8:
        assert f"{count} components of {bits} bits" in refused(content)
        return
    meant = scaled(samples, bits)
    meant = meant if count == 3 else over_white(meant)
    meant = np.broadcast_to(meant, (*SIZE, 3))
    assert abs(pixels(content) - meant).max() <= (0.5 if count == 3 else 1.5)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile_size": (16, 32)},
        {"tile_size": (16, 16), "offset": (7, 9)},
        {"num_resolutions": 1},
        {"progression": "PCRL", "precinct_size": (64, 64), "codeblock_size": (16, 16)},
        {"quality_mode": "rates", "quality_layers": [8, 4, 1]},
        {"irreversible": True, "quality_mode": "dB", "quality_layers": [60]},
        {"mct": 1},
    ],
)
def test_what_pillow_writes(mode, options):
    image = Image.fromarray(values(8, 4)).convert(mode)
    meant = np.asarray(image.convert("RGBA")).astype(float)
    meant = over_white(meant) if mode.endswith("A") else meant[..., :3]
    most = 4 if "irreversible" in options else 1
    assert abs(pixels(by_pillow(image, **options)) - meant).max() <= most


def test_ycc():
    samples = values(8, 3)
    in_ycc = np.asarray(Image.fromarray(samples).convert("YCbCr"))
    content = jp2(encoded(in_ycc), enumerated(18))
    assert abs(pixels(content) - samples).max() <= 3  # twice rounded
    assert "sYCC" in refused(jp2(encoded(values(7, 3), 7), enumerated(18)))


def palette_boxes(colours, depth=7, mapping=((0, 1, 0), (0, 1, 1), (0, 1, 2))):
    content = struct.pack(">HB", len(colours), 3) + bytes([depth] * 3) + colours.tobytes()
    mapped = b"".join(struct.pack(">HBB", *entry) for entry in mapping)
    return box(b"pclr", content), box(b"cmap", mapped)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_palette(bits):
    samples = values(bits)
    colours = RANDOM.integers(0, 256, (1 << bits, 3)).astype(np.uint8)
    content = jp2(encoded(samples, bits), enumerated(16), *palette_boxes(colours))
    assert (pixels(content) == colours[samples]).all()
    few = colours[:1]
    content = jp2(encoded(samples, bits), enumerated(16), *palette_boxes(few))
    assert (pixels(content) == few[0]).all()


@pytest.mark.parametrize("profile", [b"RGB ", b"GRAY"])
def test_a_profile_says_the_kind_of_colours(profile):
    samples = values(8, 3) if profile == b"RGB " else values(8)
    meant = samples if profile == b"RGB " else grey(samples)
    assert (pixels(jp2(encoded(samples), with_profile(profile))) == meant).all()


def test_the_first_specification_that_says_the_colours_decides():
    samples, empty = values(8, 3), with_profile(bytes(4))
    assert (pixels(jp2(encoded(samples), empty, enumerated(16))) == samples).all()
    assert (pixels(jp2(encoded(samples), empty)) == samples).all()
    assert (pixels(jp2(encoded(samples[..., 0]), empty)) == grey(samples[..., 0])).all()
    assert "CMYK" in refused(jp2(encoded(values(8, 4)), with_profile(b"CMYK"), enumerated(16)))


@pytest.mark.parametrize("rest", [b"\0", b"rest", bytes(1000), b"\xff" * 64, b"\xff\xd9"])
def test_what_follows_the_picture_does_not_matter(rest):
    samples = values(8, 3)
    stream = encoded(samples)
    start = stream.index(b"\xff\x90") + 6
    until_the_end = stream[:start] + bytes(4) + stream[start + 4 :]
    for content in (jp2(stream, enumerated(16)), stream, until_the_end):
        assert (pixels(content + rest) == samples).all()


COLOURS = np.zeros((256, 3), np.uint8)


@pytest.mark.parametrize(
    ("count", "boxes", "reason"),
    [
        (4, [enumerated(12)], "CMYK"),
        (3, [enumerated(14)], "L*a*b*"),
        (3, [enumerated(99)], "99"),
        (3, [enumerated(17)], "grey"),
        (1, [enumerated(16)], "RGB"),
        (4, [enumerated(16)], "RGB"),
        (2, [enumerated(17)], "grey"),
        (3, [with_profile(b"Lab ")], "profile"),
        (4, [with_profile(b"CMYK")], "profile"),
        (3, [], "what its colours are"),
        (3, [enumerated(16), channels((0, 0, 3), (1, 0, 2), (2, 0, 1))], "channels"),
        (
            *(4, [enumerated(16), channels((0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 2, 0))]),
            "channels",
        ),
        (1, [enumerated(16), *palette_boxes(COLOURS, depth=9)], "palette"),
        (1, [enumerated(16), *palette_boxes(COLOURS, mapping=((0, 1, 2),))], "palette"),
        (1, [enumerated(16), *palette_boxes(COLOURS[:0])], "palette"),
        (3, [enumerated(16), *palette_boxes(COLOURS)], "RGB"),
    ],
)
def test_refused_by_what_it_is(count, boxes, reason):
    samples = values(8) if count == 1 else values(8, count)
    assert reason in refused(jp2(encoded(samples), *boxes))


@pytest.mark.parametrize("count", [2, 4])
def test_a_plain_codestream_does_not_say_what_an_extra_component_is(count):
    assert "components" in refused(encoded(values(8, count)))


def test_five_components():
    content = bytearray(encoded(values(8, 3)))
    struct.pack_into(">H", content, 40, 5)
    assert "5 components" in refused(bytes(content))


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (42, 7 | 0x80, "signed"),
        (45, 6, "depth"),
        (46, 2, "subsampled"),
        (6, 0x80, "part 2"),
        (6, 0x40, "part 15"),
        (24, 0, "size"),
    ],
)
def test_refused_by_its_codestream(place, value, reason):
    content = bytearray(encoded(values(8, 3)))
    content[place] = value
    if place == 6 and value == 0x40:
        content[51:51] = b"\xff\x50\0\x08" + bytes(6)
    if place == 24:
        content[24:28] = bytes(4)
    assert reason in refused(bytes(content))


def test_high_throughput_is_refused():
    assert "part 15" in refused(bytes(imagecodecs.htj2k_encode(values(8, 3))))


@pytest.mark.parametrize("options", [{}, {"tile_size": (16, 16)}])
@pytest.mark.parametrize("no_jp2", [False, True])
def test_every_cut_is_an_error(options, no_jp2):
    content = by_pillow(Image.fromarray(values(8, 3)), no_jp2=no_jp2, **options)
    for end in range(0, len(content) - 2, 7):
        refused(content[:end])


def test_a_missing_tile_is_an_error():
    content = by_pillow(Image.fromarray(values(8, 3)), no_jp2=True, tile_size=(16, 16))
    places = [place for place in range(len(content)) if content.startswith(b"\xff\x90\0\n", place)]
    refused(content[: places[-2]] + content[places[-1] :])


def test_metadata_around_the_picture_are_not_read():
    samples = values(8, 3)
    resolutions = box(b"res ", box(b"resc", b"\0"))
    content = jp2(encoded(samples), enumerated(16), resolutions) + box(b"uuid", bytes(10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (pixels(content) == samples).all()


def test_every_layout_is_tested():
    contents = [
        encoded(values(8)),
        encoded(values(8, 3)),
        jp2(encoded(values(8, 2)), enumerated(17), channels((0, 0, 1), (1, 1, 0))),
        jp2(encoded(values(8, 4)), enumerated(16), RGBA_CHANNELS),
        jp2(encoded(values(8, 3)), enumerated(18)),
        jp2(encoded(values(8)), enumerated(16), *palette_boxes(COLOURS)),
    ]
    found = {jpeg_2000.inspect(content).layout for content in contents}
    assert found == set(jpeg_2000.LAYOUTS)


def claimed(width, height, tile_width, tile_height, layers=1):
    """A codestream of a few bytes that claims more."""
    content = bytearray(encoded(values(8, 3)))
    struct.pack_into(">IIIIIIII", content, 8, width, height, 0, 0, tile_width, tile_height, 0, 0)
    cod = content.index(b"\xff\x52")
    struct.pack_into(">H", content, cod + 6, layers)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (claimed(60_000, 60_000, 60_000, 60_000), "pixels"),
        (claimed(9_900, 9_900, 9_900, 9_900), "memory"),
        (claimed(9_900, 9_900, 1, 1), "tiles"),
        (claimed(200, 200, 10, 10), "tiles"),
        (claimed(1_000, 1_000, 50, 50, layers=65_535), "layers"),
    ],
)
def test_what_a_small_file_claims_is_bounded(content, reason):
    assert reason in refused(content)
