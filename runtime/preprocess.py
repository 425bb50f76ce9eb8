"""From a file, bytes, a PIL image or an array to uint8 crops: the only definition of preprocessing.

How each kind of image is treated:

| image | treatment |
|---|---|
| EXIF or XMP orientation | applied; metadata that cannot be read is ignored |
| alpha, or a transparent colour or palette entry | composited over white |
| 16-bit grey | value / 257, rounded; 32-bit integers outside 0..65535 are refused |
| 16-bit RGB | the high byte of each sample, which is what Pillow decodes |
| floating point | refused: it has no defined white |
| grey, bilevel, palette | expanded to RGB |
| CMYK, YCbCr, LAB, HSV | Pillow's conversion to RGB |
| animation, several pages | the first frame |
| ICC profile | ignored |
| more than MAX_PIXELS, no pixels, truncated, not an image | ImageError |
"""

import functools
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from drexperts.runtime.errors import ConfigError, ImageError

Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

MAX_PIXELS = 100_000_000

# Raster formats decoded inside this process. Left out on purpose: EPS, which runs Ghostscript, and
# the many formats that no camera writes. A JPEG with several pictures (MPO) is read as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# The longer side after resizing is at most this many times `short_side_max`. A longer image is cut
# to its centre before resizing; otherwise a 1 x 10000 image would become 384 x 3840000.
LONGEST_RATIO = 16

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns from 89 million pixels; our limit is MAX_PIXELS. Appended, so that a filter that the
# application set (such as "error") still comes first.
warnings.simplefilter("ignore", Image.DecompressionBombWarning, append=True)


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing contract, in pixels; it is written into the manifest.

    The shorter side is clamped into [short_side_min, short_side_max]; then at most
    `crops_per_side` crops of `crop` x `crop` are taken along each axis.

    Raises ConfigError for invalid sizes.
    """

    crop: int
    short_side_min: int
    short_side_max: int
    crops_per_side: int

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.short_side_min <= self.short_side_max <= 4096:
            raise ConfigError(
                "preprocessing needs 1 <= crop <= short_side_min <= short_side_max <= 4096, got "
                f"{self.crop}, {self.short_side_min}, {self.short_side_max}"
            )
        if not 1 <= self.crops_per_side <= 64:
            raise ConfigError(f"crops_per_side must be 1 to 64, got {self.crops_per_side}")


@dataclass(frozen=True, eq=False)
class Crops:
    """Crops of one image, row by row.

    pixels: uint8 [n, 3, crop, crop], C-contiguous
    boxes: int64 [n, 4], (left, top, right, bottom) in pixels of the resized image
    size: (width, height) of the resized image
    """

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    size: tuple[int, int]


def describe(source: Source) -> str:
    """A short name of a source, for messages and result rows."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, np.ndarray):
        return f"<array {source.dtype} {'x'.join(map(str, source.shape))}>"
    if isinstance(source, Image.Image):
        return f"<{source.mode} image {source.width}x{source.height}>"
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return f"<{type(source).__name__}>"


def decoder_version(source: Source | None = None) -> str:
    """What turns `source` into pixels, such as "Pillow 13.0.0, libjpeg-turbo 3.2.0".

    None stands for the encoded image in any file or bytes.
    """
    if isinstance(source, (Image.Image, np.ndarray)):
        return "caller's pixels"
    return _pillow_decoder()


def decode(source: Source) -> Image.Image:
    """The upright, opaque RGB image in `source`, as the table of this module says.

    source: a path, the bytes of a file, a PIL image, or a uint8 array HxW, HxWx1, HxWx3 or HxWx4.
    Raises ImageError for everything else.
    """
    try:
        return _rgb(_loaded(source))
    except Exception as cause:
        # On hostile bytes Pillow raises nearly anything: SyntaxError, struct.error, KeyError...
        known = ", ".join(FORMATS)
        unknown = isinstance(cause, UnidentifiedImageError)
        reason = f"it is none of {known}" if unknown else str(cause) or type(cause).__name__
        raise ImageError(f"cannot read {describe(source)} as an image: {reason}") from cause


def crops_from_image(image: Image.Image, spec: Preprocessing) -> Crops:
    """The crop grid of an RGB image: rows x columns of crops, row by row."""
    image = resized(image, spec)
    rows = crop_positions(image.height, spec.crop, spec.crops_per_side)
    columns = crop_positions(image.width, spec.crop, spec.crops_per_side)
    boxes = [(x, y, x + spec.crop, y + spec.crop) for y in rows for x in columns]
    planes = np.asarray(image).transpose(2, 0, 1)  # (3, height, width)
    pixels = np.empty((len(boxes), 3, spec.crop, spec.crop), np.uint8)
    for crop, (left, top, right, bottom) in zip(pixels, boxes, strict=True):
        crop[:] = planes[:, top:bottom, left:right]
    return Crops(pixels, np.array(boxes, np.int64), image.size)


def resized(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """The image with its shorter side clamped and its longer side cut to LONGEST_RATIO, centred.

    Bicubic, with antialiasing when reducing. An image that needs neither is returned unchanged.
    """
    short = min(image.size)
    target = min(max(short, spec.short_side_min), spec.short_side_max)
    image = _shortened(image, LONGEST_RATIO * spec.short_side_max * short // target)
    if target == short:
        return image
    size = (_scaled(image.width, target, short), _scaled(image.height, target, short))
    return image.resize(size, Image.Resampling.BICUBIC)


def crop_positions(side: int, crop: int, most: int) -> list[int]:
    """The start of each crop along an axis of `side` >= `crop` pixels.

    There are min(most, ceil(side / crop)) crops, evenly spaced from the first position to the last,
    each start rounded to the nearest pixel (halves up). A single crop is centred.
    """
    count = min(most, -(-side // crop))
    slack = side - crop
    if count == 1:
        return [slack // 2]
    gaps = count - 1
    return [(2 * i * slack + gaps) // (2 * gaps) for i in range(count)]


@functools.cache
def _pillow_decoder() -> str:
    turbo = features.version("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
    # The other lossy formats, which another release may decode differently.
    others = [f"{name} {features.version(name)}" for name in ("jpg_2000", "webp", "avif")]
    return ", ".join([resampler_version(), jpeg, *others])


def resampler_version() -> str:
    """What resizes images, such as "Pillow 13.0.0"."""
    return f"Pillow {features.version('pil')}"


def _loaded(source: Source) -> Image.Image:
    """The image as stored, its pixels in memory."""
    if isinstance(source, np.ndarray):
        return _image_from_array(source)
    if isinstance(source, Image.Image):
        return _load(source)
    if isinstance(source, bytes):
        return _image_from_stream(io.BytesIO(source))
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError("give a path, bytes, a PIL image, a uint8 array, or a list of them")
    if not Path(source).is_file():
        raise ValueError("there is no such file" if not Path(source).exists() else "it is no file")
    with open(source, "rb") as stream:
        return _image_from_stream(stream)


def _image_from_stream(stream: IO[bytes]) -> Image.Image:
    if not stream.read(1):
        raise ValueError("it is empty")
    stream.seek(0)
    # A stream, because Pillow maps named files into memory, where a truncated file is a crash.
    return _load(Image.open(stream, formats=FORMATS))


def _load(image: Image.Image) -> Image.Image:
    _check_size(*image.size)
    image.load()
    return image


def _image_from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    has_channels = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not (array.ndim == 2 or has_channels):
        raise ValueError(
            "an array is one image: uint8, HxW, HxWx1, HxWx3 or HxWx4; give several as a list"
        )
    _check_size(array.shape[1], array.shape[0])
    return Image.fromarray(array)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError("it has no pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} is more than {MAX_PIXELS} pixels; reduce it first")


def _rgb(stored: Image.Image) -> Image.Image:
    image = _upright(stored)
    if image.mode == "F":
        raise ValueError("floating-point samples have no defined white; convert them to 8 bits")
    if image.mode.startswith("I"):
        return _rgb_from_16_bit_grey(image)
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    # A photograph with damaged metadata is still a photograph, whatever Pillow raises.
    except Exception:
        return image
    if method is None:
        return image
    upright = image.transpose(method)
    # The rest of the metadata would rotate the image again.
    upright.info = {key: image.info[key] for key in ("transparency",) if key in image.info}
    return upright


def _rgb_from_16_bit_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)  # (height, width), uint16 or int32
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("integer samples outside 0..65535 have no defined white")
    scaled = values.astype(np.uint32)
    scaled += 128  # round to nearest: 257 is odd, so there are no ties
    scaled //= 257
    grey = scaled.astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow has no direct way from premultiplied grey to RGBA
        image = image.convert("LA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _shortened(image: Image.Image, longest: int) -> Image.Image:
    """The centre of the image, at most `longest` pixels along each axis."""
    width, height = min(image.width, longest), min(image.height, longest)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    # Not the `box` of resize, which would blend pixels outside the box into the edges.
    return image.crop((left, top, left + width, top + height))


def _scaled(side: int, target: int, short: int) -> int:
    """side * target / short, rounded to the nearest pixel, halves up."""
    return (2 * side * target + short) // (2 * short)
