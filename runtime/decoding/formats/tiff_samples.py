"""The samples of a TIFF that are read, by what its directory says of them."""

from dataclasses import dataclass

import numpy as np

from drexperts.runtime.decoding.headers.tiff_directory import Tag, Tags, one
from drexperts.runtime.decoding.stored import Layout, NotReadError

_BILEVEL = Layout("TIFF", "grey, 1 bit, 0 is black or white", "expanded to RGB")
_GREY = Layout("TIFF", "grey, 2, 4 or 8 bits, 0 is black or white", "expanded to RGB")
GREY_16 = Layout("TIFF", "grey, 16 bits, 0 is black or white", "divided by 257 and rounded")
_GREY_ALPHA = Layout("TIFF", "grey with alpha, 8 bits", "composited over white")
PALETTE = Layout(
    "TIFF",
    "palette, 1, 2, 4 or 8 bits",
    "expanded to RGB; its colours are of 16 bits, divided by 257 and rounded, or of 8 bits if none "
    "exceeds 255",
)
RGB = Layout("TIFF", "RGB, 8 bits, interleaved or in planes", "as stored")
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
YCBCR = Layout("TIFF", "YCbCr in JPEG", "libjpeg's conversion to RGB")
LAYOUTS = (
    _BILEVEL,
    _GREY,
    GREY_16,
    _GREY_ALPHA,
    PALETTE,
    RGB,
    _RGB_ALPHA,
    _RGB_EXTRA,
    _RGB_16,
    _RGB_ALPHA_16,
    _RGB_EXTRA_16,
    _CMYK,
    _CMYK_16,
    YCBCR,
)

WHITE_IS_ZERO, BLACK_IS_ZERO, _RGB_COLOURS, _PALETTE_COLOURS, _CMYK_COLOURS = 0, 1, 2, 3, 5
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
    **{(zero, 16, ()): (GREY_16, ("I;16", "I;16B")) for zero in (0, 1)},
    (1, 8, (_ASSOCIATED,)): (_GREY_ALPHA, ("La",)),
    (1, 8, (_UNASSOCIATED,)): (_GREY_ALPHA, ("LA",)),
    **{(3, bits, ()): (PALETTE, ("P",)) for bits in (1, 2, 4, 8)},
    (2, 8, ()): (RGB, ("RGB",)),
    (2, 8, (0,)): (_RGB_EXTRA, ("RGB",)),
    (2, 8, (_ASSOCIATED,)): (_RGB_ALPHA, ("RGBA",)),
    (2, 8, (_UNASSOCIATED,)): (_RGB_ALPHA, ("RGBA",)),
    (2, 16, ()): (_RGB_16, ("RGB",)),
    (2, 16, (0,)): (_RGB_EXTRA_16, ("RGB",)),
    (2, 16, (_ASSOCIATED,)): (_RGB_ALPHA_16, ("RGBA",)),
    (2, 16, (_UNASSOCIATED,)): (_RGB_ALPHA_16, ("RGBA",)),
    (5, 8, ()): (_CMYK, ("CMYK",)),
    (5, 16, ()): (_CMYK_16, ("CMYK",)),
    (6, 8, ()): (YCBCR, ("RGB",)),
}

NONE, _LZW, JPEG, _PACKBITS = 1, 5, 7, 32773
_CCITT = {2, 3, 4}
_WITH_PREDICTOR = {_LZW, 8, 32946, 34925, 50000}  # LZW, deflate (two numbers), LZMA, Zstandard
_LOSSLESS = _WITH_PREDICTOR | {NONE, _PACKBITS}
_IN_JPEG = {_GREY, RGB, YCBCR, _CMYK}
_IN_PLANES = {RGB, _CMYK}
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


@dataclass(frozen=True)
class Samples:
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


def read_samples(tags: Tags) -> Samples:
    """Raises NotReadError for samples that are not read."""
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
    return Samples(
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


def check_compression(tags: Tags, samples: Samples) -> None:
    """Raises NotReadError unless these samples are read with this compression."""
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
    if layout is YCBCR:
        _check_conversion(tags)


def _is_read(compression: int, layout: Layout) -> bool:
    if compression == JPEG:
        return layout in _IN_JPEG
    if compression in _CCITT:
        return layout is _BILEVEL
    return compression in _LOSSLESS and layout is not YCBCR


def _check_conversion(tags: Tags) -> None:
    """libjpeg converts by JFIF's rules, whatever these tags say."""
    for tag, usual in _OF_JFIF.items():
        if tag in tags:
            numerators, denominators = tags[tag][0::2], tags[tag][1::2]
            if numerators.size != len(usual) or not np.allclose(
                numerators, np.multiply(usual, denominators), rtol=1e-3
            ):
                raise NotReadError("a TIFF of YCbCr samples other than those of JFIF")


def check_no_raw_file(tags: Tags) -> None:
    """A camera's raw file is a TIFF, too; its first picture is a small one, for a preview."""
    if Tag.DNG_VERSION in tags or one(tags, Tag.PHOTOMETRIC, 0) in _RAW:
        raise NotReadError("a camera's raw file (DNG): develop it first")
    if one(tags, Tag.SUBFILE, 0) & 1:
        raise NotReadError(
            "a TIFF whose first picture is a reduced one, as in a camera's raw file: develop it, "
            "or save the picture by itself"
        )
