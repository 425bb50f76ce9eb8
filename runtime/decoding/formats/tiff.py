"""TIFF and BigTIFF: the first picture of a file.

Pillow and libtiff get the file with a new directory, of those tags that its samples need.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.formats import tiff_samples
from drexperts.runtime.decoding.formats.tiff_samples import (
    BLACK_IS_ZERO,
    GREY_16,
    JPEG,
    NONE,
    PALETTE,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    Samples,
    check_compression,
    check_no_raw_file,
    read_samples,
)
from drexperts.runtime.decoding.headers.tiff_directory import (
    Tag,
    Tags,
    first_directory,
    one,
    with_tags,
)
from drexperts.runtime.decoding.memory import bytes_held
from drexperts.runtime.decoding.stored import NotReadError, Stored

LAYOUTS = tiff_samples.LAYOUTS

_AS_THEY_ARE = (
    Tag.WIDTH,
    Tag.HEIGHT,
    Tag.COMPRESSION,
    Tag.PHOTOMETRIC,
    Tag.FILL_ORDER,
    Tag.SAMPLES,
    Tag.T4_OPTIONS,
    Tag.T6_OPTIONS,
    Tag.PREDICTOR,
    Tag.TILE_WIDTH,
    Tag.TILE_HEIGHT,
    Tag.EXTRA_SAMPLES,
    Tag.JPEG_TABLES,
    Tag.SUBSAMPLING,
)
# Bytes that libjpeg holds per sample of a progressive strip or tile; other decoders hold one.
_IN_LIBJPEG = 4
# Bytes that Pillow and libtiff hold per strip or tile.
_PER_SEGMENT = 1024


@dataclass(frozen=True)
class _Segments:
    """The strips or tiles of a picture; the last strip may be lower than the others."""

    tiled: bool
    width: int
    height: int
    offsets: NDArray[np.integer]
    sizes: NDArray[np.integer]


def inspect(data: bytes) -> Stored:
    order, tags = first_directory(data)
    check_no_raw_file(tags)
    samples = read_samples(tags)
    check_compression(tags, samples)
    segments = _segments(tags, samples, len(data))
    if samples.compression == JPEG:
        _check_jpeg(data, int(segments.offsets[0]), samples)
    orientation = one(tags, Tag.ORIENTATION, 1)
    return Stored(
        layout=samples.layout,
        width=samples.width,
        height=samples.height,
        data=with_tags(data, order, _kept(tags, samples, segments)),
        open=_Tiff,
        modes=frozenset(samples.modes),
        to_rgb=_rgb_from_inverted if _is_inverted(tags, samples) else convert.to_rgb,
        memory=_memory(samples, segments, orientation, _is_inverted(tags, samples)),
        orientation=orientation if 1 <= orientation <= 8 else 1,
    )


class _Tiff(TiffImageFile):
    """Pillow's reader without its own limit of pixels, of which it warns, or which it enforces."""

    def load_prepare(self) -> None:
        ImageFile.ImageFile.load_prepare(self)


def _segments(tags: Tags, samples: Samples, length: int) -> _Segments:
    """Where the strips or tiles are, all of them and within a file of this length."""
    tiled = Tag.TILE_WIDTH in tags
    if tiled:
        width, height = one(tags, Tag.TILE_WIDTH), one(tags, Tag.TILE_HEIGHT)
        offsets, sizes = tags.get(Tag.TILE_OFFSETS), tags.get(Tag.TILE_SIZES)
    else:
        width = samples.width
        height = min(one(tags, Tag.ROWS_PER_STRIP, samples.height), samples.height)
        offsets, sizes = tags.get(Tag.STRIP_OFFSETS), tags.get(Tag.STRIP_SIZES)
    if not width or not height or (tiled and (width % 16 or height % 16)):
        raise NotReadError(f"a TIFF whose strips or tiles have the invalid size {width}x{height}")
    expected = -(-samples.width // width) * -(-samples.height // height) * samples.planes
    if offsets is None or offsets.size != expected:
        raise NotReadError(f"a TIFF that does not say where its {expected} strips or tiles are")
    needed = _decompressed(samples, tiled, width, height, expected)
    if samples.compression == NONE:
        if sizes is not None and (sizes.size != expected or (sizes < needed).any()):
            raise NotReadError("a TIFF that is truncated: its strips or tiles are too short")
        sizes = needed
    if sizes is None or sizes.size != expected:
        raise NotReadError("a TIFF that does not say how long its strips or tiles are")
    _check_places(offsets, sizes, length)
    return _Segments(tiled, width, height, offsets, sizes)


def _decompressed(
    samples: Samples, tiled: bool, width: int, height: int, count: int
) -> NDArray[np.integer]:
    """The bytes of each strip or tile."""
    row = -(-width * samples.bits * samples.per_pixel // samples.planes // 8)
    sizes = np.full(count, row * height)
    if not tiled and samples.height % height:
        per_plane = count // samples.planes
        sizes[per_plane - 1 :: per_plane] = row * (samples.height % height)
    return sizes


def _check_places(offsets: NDArray[np.integer], sizes: NDArray[np.integer], length: int) -> None:
    if (sizes < 1).any() or (sizes > length).any() or (offsets > length - sizes.astype(int)).any():
        raise NotReadError("a TIFF that is truncated: strips or tiles lie beyond its end")
    if sizes.sum() > length:  # each could be the whole file, and take as long
        raise NotReadError("a TIFF whose strips or tiles overlap")


def _check_jpeg(data: bytes, start: int, samples: Samples) -> None:
    """libtiff converts as the directory says, so that the JPEG itself must agree."""
    first = data[start : start + 256]
    adobe = first.find(b"Adobe")
    transforms = first[adobe + 11 : adobe + 12] if adobe >= 0 else b""
    is_ycbcr = {b"": b"JFIF\0" in first, b"\0": False}.get(transforms, True)
    if (is_ycbcr and samples.layout is RGB) or (transforms == b"\0" and samples.layout is YCBCR):
        raise NotReadError(f"{samples.name} in a JPEG that says otherwise")


def _kept(tags: Tags, samples: Samples, segments: _Segments) -> Tags:
    """The tags that Pillow and libtiff need, without choice or default."""
    kept: Tags = {tag: tags[tag] for tag in _AS_THEY_ARE if tag in tags}
    if segments.tiled:
        kept |= {Tag.TILE_OFFSETS: segments.offsets, Tag.TILE_SIZES: segments.sizes}
    else:
        kept |= {Tag.STRIP_OFFSETS: segments.offsets, Tag.STRIP_SIZES: segments.sizes}
        kept[Tag.ROWS_PER_STRIP] = np.array([segments.height])
    kept[Tag.BITS] = np.full(samples.per_pixel, samples.bits)
    kept[Tag.PLANAR] = np.array([2 if samples.planes > 1 else 1])
    if _is_inverted(tags, samples):
        kept[Tag.PHOTOMETRIC] = np.array([BLACK_IS_ZERO])
    if samples.layout is PALETTE:
        kept[Tag.COLOUR_MAP] = _palette(tags, samples.bits)
    return kept


def _palette(tags: Tags, bits: int) -> NDArray[np.integer]:
    """The colours, for Pillow, which takes the high byte of each.

    TIFF stores 16 bits. Many writers stored 8; as in libtiff's tools, these are recognised by the
    lack of any value above 255.
    """
    colours = tags.get(Tag.COLOUR_MAP)
    if colours is None or colours.size != 3 << bits:
        raise NotReadError(f"a TIFF without a palette of {1 << bits} colours")
    values = colours.astype(int)
    return (values if values.max() < 256 else (values + 128) // 257) * 257


def _is_inverted(tags: Tags, samples: Samples) -> bool:
    """Whether white is zero in 16 bits, of which Pillow knows nothing."""
    return samples.layout is GREY_16 and one(tags, Tag.PHOTOMETRIC) == WHITE_IS_ZERO


def _rgb_from_inverted(image: Image.Image) -> Image.Image:
    return ImageOps.invert(convert.rgb_from_16_bit_grey(image))


def _memory(samples: Samples, segments: _Segments, orientation: int, inverted: bool) -> int:
    pixels = samples.width * samples.height
    mode = {"La": "LA"}.get(samples.modes[0], samples.modes[0])
    samples_at_once = segments.width * segments.height * samples.per_pixel // samples.planes
    per_sample = _IN_LIBJPEG if samples.compression == JPEG else max(samples.bits // 8, 1)
    tables = _PER_SEGMENT * segments.offsets.size
    beside = samples_at_once * per_sample + tables
    kept = tables + 4 * pixels * inverted
    return bytes_held(mode, pixels, orientation, beside=beside, kept=kept)
