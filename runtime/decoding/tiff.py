"""TIFF and BigTIFF: the first picture of a file.

Pillow and libtiff get the file with a new directory, of those tags that its samples need.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.memory import bytes_held
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored
from drexperts.runtime.decoding.tiff_directory import Tag, Tags, first_directory, one, with_tags

_BILEVEL = Layout("TIFF", "grey, 1 bit, 0 is black or white", "expanded to RGB")
_GREY = Layout("TIFF", "grey, 2, 4 or 8 bits, 0 is black or white", "expanded to RGB")
_GREY_16 = Layout("TIFF", "grey, 16 bits, 0 is black or white", "divided by 257 and rounded")
_GREY_ALPHA = Layout("TIFF", "grey with alpha, 8 bits", "composited over white")
_PALETTE = Layout(
    "TIFF",
    "palette, 1, 2, 4 or 8 bits",
    "expanded to RGB; its colours are of 16 bits, divided by 257 and rounded, or of 8 bits if none "
    "exceeds 255",
)
_RGB = Layout("TIFF", "RGB, 8 bits, interleaved or in planes", "as stored")
_RGB_ALPHA = Layout("TIFF", "RGB with alpha, 8 bits", "composited over white")
_RGB_EXTRA = Layout("TIFF", "RGB with an unspecified sample, 8 bits", "the fourth is ignored")
_RGB_16 = Layout("TIFF", "RGB, 16 bits, interleaved", "the high byte of each sample")
_RGB_ALPHA_16 = Layout(
    "TIFF", "RGB with alpha, 16 bits", "the high byte of each sample, composited over white"
)
_RGB_EXTRA_16 = Layout(
    "TIFF",
    "RGB with an unspecified sample, 16 bits",
    "the high byte of each sample; the fourth is ignored",
)
_CMYK = Layout("TIFF", "CMYK, 8 bits", "Pillow's conversion to RGB")
_CMYK_16 = Layout("TIFF", "CMYK, 16 bits", "the high byte, then Pillow's conversion to RGB")
_YCBCR = Layout("TIFF", "YCbCr in JPEG", "libjpeg's conversion to RGB")
LAYOUTS = (
    _BILEVEL,
    _GREY,
    _GREY_16,
    _GREY_ALPHA,
    _PALETTE,
    _RGB,
    _RGB_ALPHA,
    _RGB_EXTRA,
    _RGB_16,
    _RGB_ALPHA_16,
    _RGB_EXTRA_16,
    _CMYK,
    _CMYK_16,
    _YCBCR,
)

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB_COLOURS, _PALETTE_COLOURS, _CMYK_COLOURS = 0, 1, 2, 3, 5
_YCBCR_COLOURS = 6
_PHOTOMETRIC = {
    0: "grey",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "transparency mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32844: "LogL",
    32845: "LogLuv",
}
_SIGNS = {2: "signed ", 3: "floating-point ", 5: "complex integer ", 6: "complex "}
_RAW = {32803, 34892}  # a colour filter array, and linear raw
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # samples that are no extra ones
_ASSOCIATED, _UNASSOCIATED = 1, 2  # kinds of alpha; 0 is unspecified

# By photometric interpretation, bits and extra samples: the layout, and Pillow's modes.
_ROWS: dict[tuple[int, int, tuple[int, ...]], tuple[Layout, tuple[str, ...]]] = {
    **{(zero, 1, ()): (_BILEVEL, ("1",)) for zero in (0, 1)},
    **{(zero, bits, ()): (_GREY, ("L",)) for zero in (0, 1) for bits in (2, 4, 8)},
    **{(zero, 16, ()): (_GREY_16, ("I;16", "I;16B")) for zero in (0, 1)},
    (1, 8, (_ASSOCIATED,)): (_GREY_ALPHA, ("La",)),
    (1, 8, (_UNASSOCIATED,)): (_GREY_ALPHA, ("LA",)),
    **{(3, bits, ()): (_PALETTE, ("P",)) for bits in (1, 2, 4, 8)},
    (2, 8, ()): (_RGB, ("RGB",)),
    (2, 8, (0,)): (_RGB_EXTRA, ("RGB",)),
    (2, 8, (_ASSOCIATED,)): (_RGB_ALPHA, ("RGBA",)),
    (2, 8, (_UNASSOCIATED,)): (_RGB_ALPHA, ("RGBA",)),
    (2, 16, ()): (_RGB_16, ("RGB",)),
    (2, 16, (0,)): (_RGB_EXTRA_16, ("RGB",)),
    (2, 16, (_ASSOCIATED,)): (_RGB_ALPHA_16, ("RGBA",)),
    (2, 16, (_UNASSOCIATED,)): (_RGB_ALPHA_16, ("RGBA",)),
    (5, 8, ()): (_CMYK, ("CMYK",)),
    (5, 16, ()): (_CMYK_16, ("CMYK",)),
    (6, 8, ()): (_YCBCR, ("RGB",)),
}

_NONE, _LZW, _JPEG, _PACKBITS = 1, 5, 7, 32773
_CCITT = {2, 3, 4}
_WITH_PREDICTOR = {_LZW, 8, 32946, 34925, 50000}  # LZW, deflate (two numbers), LZMA, Zstandard
_LOSSLESS = _WITH_PREDICTOR | {_NONE, _PACKBITS}
_IN_JPEG = {_GREY, _RGB, _YCBCR, _CMYK}
_IN_PLANES = {_RGB, _CMYK}
_COMPRESSIONS = {
    2: "CCITT RLE",
    3: "CCITT T.4",
    4: "CCITT T.6",
    5: "LZW",
    6: "old-style JPEG",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32809: "ThunderScan",
    32946: "deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34676: "SGILog",
    34677: "SGILog24",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_OF_JFIF = {
    Tag.YCBCR_COEFFICIENTS: (0.299, 0.587, 0.114),
    Tag.REFERENCE_BLACK_WHITE: (0, 255, 128, 255, 128, 255),
}
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
class _Samples:
    """What the directory says of the samples.

    name: what they are, for messages
    planes: 1 if the samples of a pixel stand together
    modes: what Pillow may make of them
    """

    name: str
    width: int
    height: int
    per_pixel: int
    bits: int
    planes: int
    compression: int
    layout: Layout
    modes: tuple[str, ...]


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
    _check_no_raw_file(tags)
    samples = _samples(tags)
    _check_compression(tags, samples)
    segments = _segments(tags, samples, len(data))
    if samples.compression == _JPEG:
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


def _check_no_raw_file(tags: Tags) -> None:
    """A camera's raw file is a TIFF, too; its first picture is a small one, for a preview."""
    if Tag.DNG_VERSION in tags or one(tags, Tag.PHOTOMETRIC, 0) in _RAW:
        raise NotReadError("a camera's raw file (DNG): develop it first")
    if one(tags, Tag.SUBFILE, 0) & 1:
        raise NotReadError(
            "a TIFF whose first picture is a reduced one, as in a camera's raw file: develop it, "
            "or save the picture by itself"
        )


def _samples(tags: Tags) -> _Samples:
    photometric, bits, extra = one(tags, Tag.PHOTOMETRIC), _bits(tags), _extra(tags)
    name = f"a TIFF of {bits}-bit {_sign(tags)}{_colours(photometric)} samples"
    if _sign(tags) or (photometric, bits, extra) not in _ROWS:
        with_extra = f" with {len(extra)} extra ones" if extra else ""
        raise NotReadError(f"{name}{with_extra}: convert it to 8-bit grey or RGB")
    layout, modes = _ROWS[photometric, bits, extra]
    per_pixel = one(tags, Tag.SAMPLES, 1)
    planes = per_pixel if one(tags, Tag.PLANAR, 1) != 1 else 1
    if planes > 1 and layout not in _IN_PLANES:
        raise NotReadError(f"{name} in planes: interleave them")
    if one(tags, Tag.DEPTH, 1) != 1 or one(tags, Tag.INDEXED, 0) or one(tags, Tag.INKS, 1) != 1:
        raise NotReadError(f"{name} that are a volume, indexed, or of other inks than CMYK")
    if one(tags, Tag.FILL_ORDER, 1) != 1 and layout is not _BILEVEL:
        raise NotReadError(f"{name} whose bits are in reverse order")
    return _Samples(
        name=name,
        width=one(tags, Tag.WIDTH),
        height=one(tags, Tag.HEIGHT),
        per_pixel=per_pixel,
        bits=bits,
        planes=planes,
        compression=one(tags, Tag.COMPRESSION, 1),
        layout=layout,
        modes=modes,
    )


def _bits(tags: Tags) -> int:
    bits = tags.get(Tag.BITS, np.array([1]))
    if bits.size not in (1, one(tags, Tag.SAMPLES, 1)) or (bits != bits[0]).any():
        raise NotReadError("a TIFF whose samples differ in their number of bits")
    return int(bits[0])


def _sign(tags: Tags) -> str:
    """What the samples are other than unsigned integers, or nothing."""
    others = set(tags.get(Tag.SAMPLE_FORMAT, np.array([1])).tolist()) - {1}
    return _SIGNS.get(max(others), "untyped ") if others else ""


def _colours(photometric: int) -> str:
    return _PHOTOMETRIC.get(photometric, f"photometric-{photometric}")


def _extra(tags: Tags) -> tuple[int, ...]:
    """What each sample beside the colours is. Raises NotReadError if the file does not say it."""
    photometric, samples = one(tags, Tag.PHOTOMETRIC), one(tags, Tag.SAMPLES, 1)
    extra = tuple(tags.get(Tag.EXTRA_SAMPLES, np.array([], int))[:8].tolist())
    said = _COLOURS.get(photometric, samples) + len(extra)
    if samples != said:
        raise NotReadError(
            f"a TIFF of {samples} samples per pixel that says of {said} what they are: save it as "
            f"{_colours(photometric)} without others"
        )
    return extra


def _check_compression(tags: Tags, samples: _Samples) -> None:
    compression, layout = samples.compression, samples.layout
    compressed = _COMPRESSIONS.get(compression, f"of number {compression}")
    name = f"{samples.name} with the compression {compressed}"
    if not _is_read(compression, layout):
        raise NotReadError(f"{name}: save it without compression")
    predictor = one(tags, Tag.PREDICTOR, 1)
    if predictor != 1 and not (
        predictor == 2 and compression in _WITH_PREDICTOR and samples.bits >= 8
    ):
        raise NotReadError(f"{name} and the predictor {predictor}")
    if layout is _YCBCR:
        _check_conversion(tags)


def _is_read(compression: int, layout: Layout) -> bool:
    if compression == _JPEG:
        return layout in _IN_JPEG
    if compression in _CCITT:
        return layout is _BILEVEL
    return compression in _LOSSLESS and layout is not _YCBCR


def _check_conversion(tags: Tags) -> None:
    """libjpeg converts by JFIF's rules, whatever these tags say."""
    for tag, usual in _OF_JFIF.items():
        if tag in tags:
            numerators, denominators = tags[tag][0::2], tags[tag][1::2]
            if numerators.size != len(usual) or not np.allclose(
                numerators, np.multiply(usual, denominators), rtol=1e-3
            ):
                raise NotReadError("a TIFF of YCbCr samples other than those of JFIF")


def _segments(tags: Tags, samples: _Samples, length: int) -> _Segments:
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
    if samples.compression == _NONE:
        if sizes is not None and (sizes.size != expected or (sizes < needed).any()):
            raise NotReadError("a TIFF that is truncated: its strips or tiles are too short")
        sizes = needed
    if sizes is None or sizes.size != expected:
        raise NotReadError("a TIFF that does not say how long its strips or tiles are")
    _check_places(offsets, sizes, length)
    return _Segments(tiled, width, height, offsets, sizes)


def _decompressed(
    samples: _Samples, tiled: bool, width: int, height: int, count: int
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


def _check_jpeg(data: bytes, start: int, samples: _Samples) -> None:
    """libtiff converts as the directory says, so that the JPEG itself must agree."""
    first = data[start : start + 256]
    adobe = first.find(b"Adobe")
    transforms = first[adobe + 11 : adobe + 12] if adobe >= 0 else b""
    is_ycbcr = {b"": b"JFIF\0" in first, b"\0": False}.get(transforms, True)
    if (is_ycbcr and samples.layout is _RGB) or (transforms == b"\0" and samples.layout is _YCBCR):
        raise NotReadError(f"{samples.name} in a JPEG that says otherwise")


def _kept(tags: Tags, samples: _Samples, segments: _Segments) -> Tags:
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
        kept[Tag.PHOTOMETRIC] = np.array([_BLACK_IS_ZERO])
    if samples.layout is _PALETTE:
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


def _is_inverted(tags: Tags, samples: _Samples) -> bool:
    """Whether white is zero in 16 bits, of which Pillow knows nothing."""
    return samples.layout is _GREY_16 and one(tags, Tag.PHOTOMETRIC) == _WHITE_IS_ZERO


def _rgb_from_inverted(image: Image.Image) -> Image.Image:
    return ImageOps.invert(convert.rgb_from_16_bit_grey(image))


def _memory(samples: _Samples, segments: _Segments, orientation: int, inverted: bool) -> int:
    pixels = samples.width * samples.height
    mode = {"La": "LA"}.get(samples.modes[0], samples.modes[0])
    samples_at_once = segments.width * segments.height * samples.per_pixel // samples.planes
    per_sample = _IN_LIBJPEG if samples.compression == _JPEG else max(samples.bits // 8, 1)
    tables = _PER_SEGMENT * segments.offsets.size
    beside = samples_at_once * per_sample + tables
    kept = tables + 4 * pixels * inverted
    return bytes_held(mode, pixels, orientation, beside=beside, kept=kept)
