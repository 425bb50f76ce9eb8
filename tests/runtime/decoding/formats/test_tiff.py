import contextlib
import io
import itertools
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.decoded import pixels, refused

from drexperts.runtime.decoding.formats import tiff
from drexperts.runtime.decoding.stored import NotReadError

RANDOM = np.random.default_rng(0)
WIDTH, HEIGHT = 45, 37
MASK = {1: 1, 2: 3, 4: 15, 8: 255, 16: 65535}


def values(bits, *channels):
    kind = np.uint8 if bits <= 8 else np.uint16
    return RANDOM.integers(0, 1 << bits, (HEIGHT, WIDTH, *channels)).astype(kind)


def grey(scaled):
    return np.repeat(scaled[..., None], 3, axis=2)


def over_white(scaled, premultiplied):
    colour, alpha = scaled[..., :-1], scaled[..., -1:] / 255
    return (colour if premultiplied else colour * alpha) + 255 * (1 - alpha)


def from_cmyk(scaled):
    return (255 - scaled[..., :3]) * (255 - scaled[..., 3:]) / 255


def packed(samples, bits):
    """Rows of samples as bytes; each row begins a byte."""
    if bits >= 8:
        return samples.tobytes()
    shifts = np.arange(bits)[::-1].astype(np.uint8)
    spread = samples[..., None] >> shifts & 1
    return np.packbits(spread.reshape(len(samples), -1), axis=1).tobytes()


def written(tags, segments=(), order="<", big=False):
    """A TIFF by hand: tags are {number: (type, values)}, and where the strips are is added."""
    body = b""
    places = []
    start = 16 if big else 8
    for segment in segments:
        places.append(start + len(body))
        body += segment
    tags = dict(tags)
    if segments:
        offsets, sizes = (324, 325) if 322 in tags else (273, 279)
        tags.setdefault(offsets, (4, places))
        tags.setdefault(sizes, (4, [len(segment) for segment in segments]))
    at = start + len(body)
    number, width, count = ("Q", 8, "Q") if big else ("I", 4, "H")
    size = struct.calcsize("<" + count) + len(tags) * (20 if big else 12) + width
    entries, outside = b"", b""
    for tag, (kind, content) in sorted(tags.items()):
        letter = {1: "B", 3: "H", 4: "I", 5: "I", 7: "B", 11: "f", 16: "Q"}[kind]
        value = struct.pack(f"{order}{len(content)}{letter}", *content)
        if len(value) > width:
            where = at + size + len(outside)
            outside += value
            value = struct.pack(order + number, where)
        many = len(content) // 2 if kind == 5 else len(content)
        entries += struct.pack(order + "HH" + number, tag, kind, many) + value.ljust(width, b"\0")
    name = b"II" if order == "<" else b"MM"
    header = name + (
        struct.pack(order + "HHHQ", 43, 8, 0, at) if big else struct.pack(order + "HI", 42, at)
    )
    end = struct.pack(order + number, 0)
    return header + body + struct.pack(order + count, len(tags)) + entries + end + outside


def tags_of(photometric, bits, samples=1, **changes):
    tags = {256: (3, [WIDTH]), 257: (3, [HEIGHT]), 258: (3, [bits] * samples), 259: (3, [1])}
    tags |= {262: (3, [photometric]), 277: (3, [samples]), 278: (4, [HEIGHT])}
    for name, change in changes.items():
        tags[int(name.removeprefix("tag"))] = change
    return {tag: content for tag, content in tags.items() if content}


# What tifffile writes: samples, its options, what they mean in 0..255, and the largest difference.
KINDS: dict[str, tuple[Any, dict[str, Any], Any, float]] = {}
for bits in (1, 2, 4, 8, 16):
    samples = values(bits)
    meant = samples * (255 / MASK[bits])
    options: dict[str, Any] = {"bitspersample": bits}
    KINDS[f"grey {bits}"] = samples, options | {"photometric": "minisblack"}, grey(meant), 0.5
    KINDS[f"white is zero {bits}"] = (
        *(samples, options | {"photometric": "miniswhite"}, grey(255 - meant), 0.5),
    )
for name, most, scale in (("16-bit", 65535, 257), ("8-bit", 255, 1)):
    samples, colours = values(8), RANDOM.integers(0, most + 1, (3, 256)).astype(np.uint16)
    options = {"photometric": "palette", "colormap": colours}
    KINDS[f"palette of {name} colours"] = samples, options, (colours.T / scale)[samples], 0.5
for bits, (channels, extra) in itertools.product(
    (8, 16), ((3, None), (4, "unassalpha"), (4, "assocalpha"), (4, "unspecified"))
):
    samples = values(bits, channels)
    if extra == "assocalpha":
        samples[..., :3] = np.minimum(samples[..., :3], samples[..., 3:])
    meant = samples * (255 / MASK[bits])
    has_alpha = extra in ("unassalpha", "assocalpha")
    meant = over_white(meant, extra == "assocalpha") if has_alpha else meant[..., :3]
    options = {"photometric": "rgb", "extrasamples": [extra] if extra else []}
    most = (1 if bits == 8 else 3) if has_alpha else bits // 16
    KINDS[f"RGB {bits} {extra}"] = samples, options | {"planarconfig": "contig"}, meant, most
    planes = np.ascontiguousarray(np.moveaxis(samples, 2, 0))
    separate = options | {"planarconfig": "separate"}
    KINDS[f"RGB {bits} {extra}, planes"] = planes, separate, meant, most
for extra in ("unassalpha", "assocalpha"):
    samples = values(8, 2)
    if extra == "assocalpha":
        samples[..., 0] = samples.min(axis=2)
    options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [extra]}
    meant = np.repeat(over_white(samples * 1.0, extra == "assocalpha"), 3, axis=2)
    KINDS[f"grey {extra}"] = samples, options, meant, 1
for bits in (8, 16):
    samples = values(bits, 4)
    options = {"photometric": "separated", "planarconfig": "contig"}
    meant = from_cmyk(samples * (255 / MASK[bits]))
    KINDS[f"CMYK {bits}"] = samples, options, meant, bits // 8
    planes = np.ascontiguousarray(np.moveaxis(samples, 2, 0))
    KINDS[f"CMYK {bits}, planes"] = (
        *(planes, options | {"planarconfig": "separate"}, meant, bits // 8),
    )

# Not read in planes, and so refused in every order, compression and tiling.
REFUSED_KINDS = {
    f"{kind}, planes"
    for kind in (
        *("RGB 8 unassalpha", "RGB 8 assocalpha", "RGB 8 unspecified", "CMYK 16"),
        *(f"RGB 16 {extra}" for extra in (None, "unassalpha", "assocalpha", "unspecified")),
    )
}
COMPRESSIONS = (None, "lzw", "deflate", "adobe_deflate", "packbits", "zstd", "lzma")
GEOMETRIES: tuple[dict[str, Any], ...] = ({}, {"rowsperstrip": 7}, {"tile": (16, 32)})


def of_tifffile(samples, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, samples, **options)
    return stream.getvalue()


def variants(samples, options):
    """A file in every byte order, size of offsets, tiling, compression and predictor."""
    whole = options.get("bitspersample", 8) >= 8  # tifffile writes others uncompressed only
    for order, big, geometry, compression, predictor in itertools.product(
        "<>", (False, True), GEOMETRIES, COMPRESSIONS, (False, True)
    ):
        if (whole and (compression or not predictor)) or not (compression or predictor or geometry):
            how = {"byteorder": order, "bigtiff": big, "compression": compression, **geometry}
            yield (
                of_tifffile(samples, predictor=predictor, **how, **options),
                predictor and compression == "packbits",
            )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_an_independent_writer_are_right_or_refused(kind):
    samples, options, meant, most = KINDS[kind]
    for content, has_odd_predictor in variants(samples, options):
        if kind in REFUSED_KINDS or has_odd_predictor:
            refused(content)
        else:
            assert abs(pixels(content) - meant).max() < most + 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_of_each_kind(kind):
    samples, options, meant, most = KINDS[kind]
    content = of_tifffile(samples, **options)
    if kind in REFUSED_KINDS:
        assert "in planes" in refused(content)
    else:
        assert abs(pixels(content) - meant).max() < most + 0.01


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "u4", "f2", "f4", "f8", "c8"])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_samples_without_a_defined_white_are_refused(kind, channels):
    samples = np.ones((HEIGHT, WIDTH, *channels), kind)
    photometric = "rgb" if channels else "minisblack"
    assert "samples" in refused(of_tifffile(samples, photometric=photometric))


@pytest.mark.parametrize("bits", [3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15])
def test_other_depths_are_refused_by_name(bits):
    content = of_tifffile(
        values(8 if bits < 8 else 16), photometric="minisblack", bitspersample=bits
    )
    assert f"a TIFF of {bits}-bit grey samples" in refused(content)


def tiles(samples, width, height):
    padded = np.pad(samples, ((0, -HEIGHT % height), (0, -WIDTH % width)), mode="edge")
    for top, left in itertools.product(range(0, HEIGHT, height), range(0, WIDTH, width)):
        yield padded[top : top + height, left : left + width]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("photometric", [0, 1, 3])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("big", [False, True])
def test_few_bits_by_hand(bits, photometric, order, deflated, tiled, big):
    samples = values(bits)
    scaled = samples.astype(int) * 255 // MASK[bits]
    tags = tags_of(photometric, bits, tag259=(3, [8 if deflated else 1]))
    expected = grey(255 - scaled if photometric == 0 else scaled)
    if photometric == 3:
        colours = RANDOM.integers(0, 256, (1 << bits, 3))
        tags[320] = 3, (colours.T * 257).ravel().tolist()
        expected = colours[samples]
    parts = [samples[:20], samples[20:]]
    tags[278] = 4, [20]
    if tiled:
        del tags[278]
        tags |= {322: (3, [32]), 323: (3, [16])}
        parts = list(tiles(samples, 32, 16))
    segments = [packed(part, bits) for part in parts]
    if deflated:
        segments = [zlib.compress(segment) for segment in segments]
    assert (pixels(written(tags, segments, order, big)) == expected).all()


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
@pytest.mark.parametrize("fill_order", [1, 2])
def test_bilevel_with_the_compressions_of_fax(compression, fill_order):
    image = Image.fromarray(values(1) * 255).convert("1")
    stream = io.BytesIO()
    image.save(stream, "TIFF", compression=compression, strip_size=1 << 20)
    with tifffile.TiffFile(io.BytesIO(stream.getvalue())) as file:
        page = file.pages[0]
        start, size = page.dataoffsets[0], page.databytecounts[0]
        content = stream.getvalue()[start : start + size]
        photometric, number = int(page.photometric), int(page.compression)
    if fill_order == 2:
        content = content.translate(bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256)))
    tags = tags_of(photometric, 1, tag259=(3, [number]), tag266=(3, [fill_order]))
    assert (pixels(written(tags, [content])) == np.asarray(image.convert("RGB"))).all()


def test_reversed_bits_of_bilevel_samples():
    samples = values(1)
    reverse = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    content = packed(samples, 1).translate(reverse)
    expected = grey(samples * 255)
    assert (pixels(written(tags_of(1, 1, tag266=(3, [2])), [content])) == expected).all()
    samples = values(8)
    tags = tags_of(1, 8, tag266=(3, [2]))
    assert "reverse" in refused(written(tags, [samples.tobytes()]))


def smooth():
    across, down = np.meshgrid(np.arange(64), np.arange(48))
    return np.stack([across * 4, down * 5, 255 - across * 2 - down], 2).astype(np.uint8)


@pytest.mark.parametrize("geometry", [{}, {"rowsperstrip": 16}, {"tile": (16, 32)}])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("compression", "arguments", "photometric"),
    [
        ("jpeg", {"level": 98}, "rgb"),
        ("jpeg", {"level": 98, "outcolorspace": "rgb"}, "rgb"),
    ],
)
def test_lossy_compressions(compression, arguments, photometric, geometry, order):
    how = {"compression": compression, "compressionargs": arguments, "byteorder": order}
    content = of_tifffile(smooth(), photometric=photometric, **how, **geometry)
    assert abs(pixels(content) - smooth()).mean() < 3


def test_jpeg_in_grey_and_cmyk():
    for samples, photometric, meant in (
        (smooth()[..., 0], "minisblack", grey(smooth()[..., 0].astype(int))),
        (
            *(np.dstack([smooth(), smooth()[..., :1]]), "separated"),
            from_cmyk(np.dstack([smooth(), smooth()[..., :1]]) * 1.0),
        ),
    ):
        content = of_tifffile(
            samples, photometric=photometric, compression="jpeg", compressionargs={"level": 98}
        )
        assert abs(pixels(content) - meant).mean() < 3


def test_every_layout_is_tested():
    contents = [of_tifffile(samples, **options) for samples, options, *_ in KINDS.values()]
    contents.append(of_tifffile(smooth(), photometric="rgb", compression="jpeg"))
    found = set()
    for content in contents:
        with contextlib.suppress(NotReadError):
            found.add(tiff.inspect(content).layout)
    assert found == set(tiff.LAYOUTS)


RGB = smooth()


def rgb_file(**changes):
    """A file of one RGB strip, with other tags."""
    tags = tags_of(2, 8, 3, tag256=(3, [64]), tag257=(3, [48]), tag278=(3, [48]))
    tags |= {int(name.removeprefix("tag")): change for name, change in changes.items()}
    return written({tag: content for tag, content in tags.items() if content}, [RGB.tobytes()])


@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_is_applied_once(orientation):
    turned = {
        **{2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1)},
        **{6: np.rot90(RGB, -1), 7: np.rot90(RGB, 2).swapaxes(0, 1), 8: np.rot90(RGB)},
    }
    content = rgb_file(tag274=(3, [orientation]))
    assert (pixels(content) == turned.get(orientation, RGB)).all()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tag254": (4, [1])}, "reduced"),
        ({"tag50706": (1, [1, 4, 0, 0])}, "raw file"),
        ({"tag262": (3, [32803])}, "raw file"),
        ({"tag262": (3, [34892])}, "raw file"),
        ({"tag262": (3, [6])}, "YCbCr"),
        ({"tag262": (3, [8])}, "L*a*b*"),
        ({"tag262": (3, [1])}, "what they are"),
        ({"tag262": None}, "262"),
        ({"tag256": None}, "256"),
        ({"tag256": (3, [0])}, "invalid size"),
        ({"tag256": (3, [65])}, "truncated"),
        ({"tag257": (4, [2**32 - 1])}, "strips or tiles"),
        ({"tag258": (3, [8, 8, 4])}, "differ"),
        ({"tag258": (3, [4, 4, 4])}, "4-bit RGB"),
        ({"tag259": (3, [6])}, "old-style JPEG"),
        ({"tag259": (3, [34887])}, "LERC"),
        ({"tag259": (3, [5]), "tag317": (3, [3])}, "predictor 3"),
        ({"tag273": (4, [8, 8])}, "where"),
        ({"tag273": (4, [2**31])}, "beyond"),
        ({"tag273": (16, [2**63])}, "beyond"),
        ({"tag278": (3, [0])}, "invalid size"),
        ({"tag279": (4, [100])}, "too short"),
        ({"tag259": (3, [5]), "tag279": (4, [2**31])}, "beyond"),
        ({"tag322": (3, [64]), "tag323": (3, [47])}, "invalid size"),
        ({"tag338": (3, [0])}, "what they are"),
        ({"tag339": (3, [2, 2, 2])}, "signed"),
        ({"tag339": (3, [1, 1, 3])}, "floating-point"),
        ({"tag256": (11, [64.0])}, "type"),
        ({"tag32997": (3, [2])}, "volume"),
    ],
)
def test_refused_by_what_it_is(changes, reason):
    assert reason in refused(rgb_file(**changes))


def test_the_rest_of_the_metadata_is_not_read():
    content = rgb_file(
        tag270=(1, [0] * 10), tag282=(11, [1.0]), tag700=(7, [60] * 100), tag34675=(3, [1])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (pixels(content) == RGB).all()


def test_sizes_of_uncompressed_strips_may_be_missing():
    assert (pixels(rgb_file(tag279=None)) == RGB).all()


def test_four_samples_of_which_the_fourth_is_not_named():
    tags = tags_of(2, 8, 4)
    assert "what they are" in refused(written(tags, [values(8, 4).tobytes()]))


def test_a_palette_is_whole():
    tags = tags_of(3, 8, tag320=(3, [0] * 767))
    assert "palette" in refused(written(tags, [values(8).tobytes()]))


@pytest.mark.parametrize("count", [2, 3000])
def test_strips_that_share_their_bytes_are_refused(count):
    strip = zlib.compress(bytes(64 * 3))
    tags = tags_of(2, 8, 3, tag256=(3, [64]), tag257=(3, [count]), tag278=(3, [1]))
    tags[259] = 3, [8]
    tags |= {273: (4, [8] * count), 279: (4, [len(strip) * 60] * count)}
    assert "overlap" in refused(written(tags, [strip * 60]))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_every_cut_is_an_error_or_the_whole_picture(order, big):
    tags = tags_of(2, 8, 3, tag256=(3, [64]), tag257=(3, [48]), tag278=(3, [48]))
    whole = written(tags, [RGB.tobytes()], order, big)
    for end in [*range(200), *range(9000, len(whole) - 20)]:
        refused(whole[:end])


def test_a_truncated_compressed_strip_is_an_error():
    strip = zlib.compress(RGB.tobytes())[:-500]
    tags = tags_of(2, 8, 3, tag256=(3, [64]), tag257=(3, [48]), tag278=(3, [48]))
    tags[259] = 3, [8]
    refused(written(tags, [strip]))


def test_the_first_of_several_pages_is_read():
    content = of_tifffile(np.stack([RGB, RGB[::-1]]), photometric="rgb")
    assert (pixels(content) == RGB).all()


def test_a_directory_that_follows_itself_is_read_once():
    content = bytearray(rgb_file())
    start = struct.unpack_from("<I", content, 4)[0]
    count = struct.unpack_from("<H", content, start)[0]
    struct.pack_into("<I", content, start + 2 + 12 * count, start)
    assert (pixels(bytes(content)) == RGB).all()


def test_jpeg_that_contradicts_the_directory_is_refused():
    content = of_tifffile(RGB, photometric="rgb", compression="jpeg")
    ycbcr = struct.pack("<HHIHH", 262, 3, 1, 6, 0)
    assert ycbcr in content
    assert "otherwise" in refused(content.replace(ycbcr, struct.pack("<HHIHH", 262, 3, 1, 2, 0)))


def test_ycbcr_of_other_matrices_is_refused():
    content = of_tifffile(
        RGB,
        photometric="rgb",
        compression="jpeg",
        extratags=[(529, 5, 3, (2126, 10000, 7152, 10000, 722, 10000), True)],
    )
    assert "JFIF" in refused(content)
