"""From an upright RGB image to uint8 crops: the only definition of preprocessing."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from drexperts.runtime.errors import ConfigError
from drexperts.runtime.wording import remedy

# The longer side after resizing is at most this many times `short_side_max`. A longer image is cut
# to its centre before resizing; otherwise a 1 x 10000 image would become 384 x 3840000.
LONGEST_RATIO = 16
_MOST_PER_SIDE = 64


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
        if not 1 <= self.crops_per_side <= _MOST_PER_SIDE:
            raise ConfigError(
                f"crops_per_side must be 1 to {_MOST_PER_SIDE}, got {self.crops_per_side}"
            )


@dataclass(frozen=True, eq=False)
class Crops:
    """Crops of one image, row by row.

    pixels: uint8 [n, 3, crop, crop], C-contiguous
    boxes: int64 [n, 4], (left, top, right, bottom) in pixels of the resized image
    size: (width, height) of the resized image
    original: (width, height) of the image before it was resized
    """

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    size: tuple[int, int]
    original: tuple[int, int]


def with_crops_per_side(spec: Preprocessing, crops_per_side: int | None) -> Preprocessing:
    """The same preprocessing with another crop grid; None leaves the grid as it is.

    Raises ConfigError for anything but a whole number from 1 to 64.
    """
    if crops_per_side is None:
        return spec
    if type(crops_per_side) is not int or not 1 <= crops_per_side <= _MOST_PER_SIDE:
        name = remedy("--crops-per-side", "crops_per_side")
        raise ConfigError(
            f"{name} must be a whole number from 1 to {_MOST_PER_SIDE}, got {crops_per_side!r}"
        )
    return replace(spec, crops_per_side=crops_per_side)


def crops_from_image(image: Image.Image, spec: Preprocessing) -> Crops:
    """The crop grid of an RGB image: rows x columns of crops, row by row."""
    original = image.size
    image = resized(image, spec)
    boxes = crop_boxes(image.size, spec)
    planes = np.asarray(image).transpose(2, 0, 1)  # (3, height, width)
    pixels = np.empty((len(boxes), 3, spec.crop, spec.crop), np.uint8)
    for crop, (left, top, right, bottom) in zip(pixels, boxes.tolist(), strict=True):
        crop[:] = planes[:, top:bottom, left:right]
    return Crops(pixels, boxes, image.size, original)


def crop_boxes(size: tuple[int, int], spec: Preprocessing) -> NDArray[np.int64]:
    """The `boxes` of the crops of a resized image of this (width, height)."""
    rows = crop_positions(size[1], spec.crop, spec.crops_per_side)
    columns = crop_positions(size[0], spec.crop, spec.crops_per_side)
    boxes = [(x, y, x + spec.crop, y + spec.crop) for y in rows for x in columns]
    return np.array(boxes, np.int64)


def resized(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """The image with its shorter side clamped and its longer side cut to LONGEST_RATIO, centred.

    Bicubic, with antialiasing when reducing. An image that needs neither is returned unchanged.
    """
    part, size = _sizes(image.width, image.height, spec)
    image = _centre(image, *part)
    return image if size == part else image.resize(size, Image.Resampling.BICUBIC)


def resized_size(width: int, height: int, spec: Preprocessing) -> tuple[int, int]:
    """The (width, height) that `resized` gives an image of this size."""
    return _sizes(width, height, spec)[1]


def most_crops(spec: Preprocessing) -> int:
    """The most crops that any image has."""
    sides = spec.short_side_max, LONGEST_RATIO * spec.short_side_max
    rows, columns = (min(spec.crops_per_side, -(-side // spec.crop)) for side in sides)
    return rows * columns


def enlargement(size: tuple[int, int], spec: Preprocessing) -> float | None:
    """The factor by which `resized` enlarges an image of this (width, height).

    It is above 1; None for an image whose shorter side is at least `short_side_min`.
    """
    short = min(size)
    return spec.short_side_min / short if short < spec.short_side_min else None


def resizing_memory(width: int, height: int, spec: Preprocessing) -> int:
    """The most bytes that `resized` takes beside an RGB image of this size."""
    part, size = _sizes(width, height, spec)
    cut = 0 if part == (width, height) else part[0] * part[1]
    # Pillow keeps a pixel in four bytes, and resizes along the rows first.
    return 4 * (cut + size[0] * part[1] + size[0] * size[1])


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


def _sizes(width: int, height: int, spec: Preprocessing) -> tuple[tuple[int, int], tuple[int, int]]:
    """The (width, height) of the part of an image that is used, and what it is resized to."""
    short = min(width, height)
    target = min(max(short, spec.short_side_min), spec.short_side_max)
    longest = LONGEST_RATIO * spec.short_side_max * short // target
    part = min(width, longest), min(height, longest)
    return part, (_scaled(part[0], target, short), _scaled(part[1], target, short))


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    # Not the `box` of resize, which would blend pixels outside the box into the edges.
    return image.crop((left, top, left + width, top + height))


def _scaled(side: int, target: int, short: int) -> int:
    """side * target / short, rounded to the nearest pixel, halves up."""
    return (2 * side * target + short) // (2 * short)
