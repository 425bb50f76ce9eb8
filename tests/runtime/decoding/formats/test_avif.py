import io
import warnings
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from support import heif_files
from support.decoded import pixels, refused

from drexperts.runtime.decoding import decode
from drexperts.runtime.decoding.formats import avif

ACROSS, DOWN = np.meshgrid(np.arange(64), np.arange(48))
PICTURE = np.stack([ACROSS * 4, DOWN * 5, 255 - ACROSS * 2 - DOWN], 2).astype(np.uint8)
ALPHA = (255 - ACROSS * 3).astype(np.uint8)


def by_pillow(samples, **options):
    stream = io.BytesIO()
    Image.fromarray(samples).save(stream, "AVIF", quality=95, **options)
    return stream.getvalue()


def by_imagecodecs(samples, bits, format):
    most = (1 << bits) - 1
    scaled = (samples.astype(np.uint32) * most // 255).astype(np.uint8 if bits == 8 else np.uint16)
    pixelformat = getattr(imagecodecs.AVIF.PIXEL_FORMAT, format)
    return bytes(
        imagecodecs.avif_encode(scaled, level=95, bitspersample=bits, pixelformat=pixelformat)
    )


def grey(samples):
    return np.repeat(samples[..., None], 3, axis=2)


def over_white(colour, alpha):
    return colour * (alpha[..., None] / 255) + 255 - alpha[..., None]


KINDS = {
    "grey": (PICTURE[..., 0], "YUV400", grey(PICTURE[..., 0])),
    "4:2:0": (PICTURE, "YUV420", PICTURE),
    "4:2:2": (PICTURE, "YUV422", PICTURE),
    "4:4:4": (PICTURE, "YUV444", PICTURE),
    "alpha": (np.dstack([PICTURE, ALPHA]), "YUV444", over_white(PICTURE, ALPHA)),
    "grey alpha": (
        np.dstack([grey(PICTURE[..., 0]), ALPHA]),
        "YUV400",
        over_white(grey(PICTURE[..., 0]), ALPHA),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 10, 12])
def test_every_depth_and_subsampling(kind, bits):
    samples, format, meant = KINDS[kind]
    assert abs(pixels(by_imagecodecs(samples, bits, format)) - meant).mean() < 1.5


@pytest.mark.parametrize("range_", ["full", "limited"])
@pytest.mark.parametrize("subsampling", ["4:0:0", "4:2:0", "4:4:4"])
def test_what_pillow_writes(range_, subsampling):
    samples = PICTURE[..., 0] if subsampling == "4:0:0" else PICTURE
    meant = grey(samples) if subsampling == "4:0:0" else samples
    content = by_pillow(samples, subsampling=subsampling, range=range_)
    assert abs(pixels(content) - meant).mean() < 2


def test_every_layout_is_tested():
    contents = [by_imagecodecs(*KINDS[kind][:1], 8, KINDS[kind][1]) for kind in KINDS]
    contents += [by_imagecodecs(*KINDS[kind][:1], 10, KINDS[kind][1]) for kind in KINDS]
    assert {avif.inspect(content).layout for content in contents} == set(avif.LAYOUTS)


def with_properties(*more, content=None):
    kind, properties, coded = heif_files.parts(content or by_pillow(PICTURE))
    return heif_files.container(b"avif", {1: (kind, [*properties, *more], coded)})


def turned(angle, axis):
    """By the standard: first turned to the left, then mirrored: 0 up and down, 1 left and right."""
    picture = np.rot90(PICTURE, angle or 0)
    return {None: picture, 0: picture[::-1], 1: picture[:, ::-1]}[axis]


@pytest.mark.parametrize("angle", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("orientation", [1, 6])
def test_properties_turn_the_picture_once_and_exif_does_not(angle, axis, orientation):
    more = [(b"irot", bytes([angle]))] if angle is not None else []
    more += [(b"imir", bytes([axis]))] if axis is not None else []
    kind, properties, coded = heif_files.parts(by_pillow(PICTURE))
    exif = Image.Exif()
    exif[0x0112] = orientation
    items = {
        1: (kind, [*properties, *more], coded),
        2: (b"Exif", [], bytes(4) + exif.tobytes()[6:]),
    }
    content = heif_files.container(b"avif", items, [(b"cdsc", 2, (1,))])
    meant = turned(angle, axis)
    read = pixels(content)
    assert read.shape == meant.shape
    assert abs(read - meant).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_that_pillow_writes(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert avif.inspect(by_pillow(PICTURE, exif=exif)).orientation == orientation


def of_tiles(size=(128, 96), rows=2, columns=2):
    tile = heif_files.parts(by_pillow(np.vstack([PICTURE, PICTURE])[:64]))
    items = {number: tile for number in range(2, 2 + rows * columns)}
    items[1] = heif_files.grid(rows, columns, *size)
    return heif_files.container(b"avif", items, [(b"dimg", 1, tuple(sorted(items))[1:])])


def test_a_picture_of_tiles():
    tile = np.vstack([PICTURE, PICTURE])[:64]
    whole = np.vstack([np.hstack([tile, tile])] * 2)[:96]
    assert abs(pixels(of_tiles()) - whole).mean() < 4
    assert "make it up" in refused(of_tiles(size=(129, 96)))
    assert "make it up" in refused(of_tiles(rows=3).replace(b"\0\0\2\1\0\x80", b"\0\0\1\1\0\x80"))


def test_the_still_picture_beside_a_sequence():
    others = [Image.fromarray(np.ascontiguousarray(PICTURE[::-1]))]
    content = by_pillow(PICTURE, save_all=True, append_images=others)
    assert content[8:12] == b"avis"
    assert abs(pixels(content) - PICTURE).mean() < 2


def test_premultiplied_alpha():
    colour, alpha = (
        heif_files.parts(by_pillow(samples))
        for samples in ((PICTURE * (ALPHA[..., None] / 255)).astype(np.uint8), ALPHA)
    )
    kind = (b"auxC", bytes(4) + b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
    grey_alpha = heif_files.parts(by_pillow(ALPHA, subsampling="4:0:0"))
    items = {1: colour, 2: (alpha[0], [*grey_alpha[1], kind], grey_alpha[2])}
    links = [(b"auxl", 2, (1,)), (b"prem", 1, (2,))]
    content = heif_files.container(b"avif", items, links)
    assert abs(pixels(content) - over_white(PICTURE, ALPHA)).mean() < 2


def test_a_picture_to_be_cropped_is_refused():
    part = heif_files.clap_property(32, 32, 0, 0, whole=(64, 48))
    assert "cropped" in refused(with_properties(part))
    whole = heif_files.clap_property(64, 48, 0, 0, whole=(64, 48))
    assert abs(pixels(with_properties(whole)) - PICTURE).mean() < 2


@pytest.mark.parametrize("rest", [b"\0", b"rest of a file", bytes(1000), b"\xff" * 64])
def test_what_follows_the_picture_does_not_matter(rest):
    for content in (by_pillow(PICTURE), of_tiles()):
        assert (pixels(content + rest) == pixels(content)).all()


def test_tiles_may_share_their_content():
    """As in a grid of avifenc's whose tiles are alike."""
    tile = heif_files.parts(by_pillow(PICTURE[:, ::-1].repeat(2, 0).repeat(2, 1)))
    items = {number: tile for number in range(2, 11)}
    items[1] = heif_files.grid(3, 3, 3 * 128, 3 * 96)
    links = [(b"dimg", 1, tuple(range(2, 11)))]
    content = heif_files.container(b"avif", items, links, shared=True)
    assert len(content) < 3 * len(tile[2])
    assert (pixels(content) == pixels(heif_files.container(b"avif", items, links))).all()


def test_content_that_is_shared_too_often():
    many: dict[int, Any] = {number: (b"mime", [], b"") for number in range(2, 1000)}
    items = {1: heif_files.parts(by_pillow(PICTURE)), **many}
    items |= {number: (b"mime", [], bytes(100_000)) for number in many}
    content = heif_files.container(b"avif", items, shared=True)
    assert len(content) < 200_000
    assert "overlap" in refused(content)


def test_a_frame_of_another_size_than_said_is_refused():
    """libavif would scale it, and would hold it at the frame's size before."""
    kind, _, coded = heif_files.parts(by_pillow(PICTURE))
    properties = heif_files.parts(by_pillow(PICTURE[:40, :40]))[1]
    content = heif_files.container(b"avif", {1: (kind, properties, coded)})
    assert "64x48" in refused(content)


def test_several_frames_in_one_picture_are_refused():
    kind, properties, coded = heif_files.parts(by_pillow(PICTURE))
    delimiter = b"\x12\0"
    sequence = coded.removeprefix(delimiter)
    frame = sequence[2 + sequence[1] :]
    padding = b"\x7a\0" * 20_000
    assert "units" in refused(
        heif_files.container(b"avif", {1: (kind, properties, coded + padding)})
    )
    for content in (coded + frame, coded + sequence):
        items = {1: (kind, properties, content)}
        assert "several" in refused(heif_files.container(b"avif", items))


@pytest.mark.slow
def test_a_large_frame_in_a_small_file():
    content = by_pillow(np.zeros((9_000, 9_500, 3), np.uint8), speed=10)
    assert len(content) < 10_000
    assert "memory" in refused(content)


def test_every_cut_is_an_error():
    content = by_pillow(np.dstack([PICTURE, ALPHA]))
    for end in range(0, len(content) - 1, 11):
        refused(content[:end])


def test_warnings_do_not_matter():
    exif = Image.Exif()
    exif[0x0112] = 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(by_pillow(PICTURE, exif=exif, xmp=b"<x"))
