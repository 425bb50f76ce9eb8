"""From an upright RGB image to uint8 crops: the only definition of preprocessing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from drexperts.runtime.errors import ConfigError

# The longer side after resizing is at most this many times `short_side_max`. A longer image is cut
# to its centre before resizing; otherwise a 1 x 10000 image would become 384 x 3840000.
LONGEST_RATIO = 16


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


def resampler_version() -> str:
    """What resizes images, such as "Pillow 13.0.0"."""
    return f"Pillow {features.version('pil')}"


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
