"""The pictures an engine is verified on.

Where the user names none: photographs that scikit-image ships in its wheel, whole, and pieces of
them distorted, so that scores differ. Nothing is fetched. And crops of any photographs, under every
synthetic distortion at every level.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from drexperts.data.distortions import SYNTHETIC_TYPES, distort
from drexperts.runtime.errors import MissingDependencyError
from drexperts.runtime.preprocess import Preprocessing, Source, crops_from_image, decode

NAMES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "camera.png",
    "brick.png",
    "clock_motion.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "moon.png",
    "page.png",
)
VERSIONS = (
    ("gaussian_blur", 0),
    ("gaussian_blur", 3),
    ("gaussian_blur", 4),
    ("jpeg", 2),
    ("jpeg", 4),
    ("white_noise", 3),
    ("white_noise", 5),
)
PIECE = 256  # px: of most models one crop, which keeps a verification short
LEVELS = range(1, 6)


def photograph(name: str) -> Image.Image:
    """One of the photographs in scikit-image's wheel, RGB.

    Read as a file: the library's own functions import much, and some fetch.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise MissingDependencyError(
            'photographs to verify on come with scikit-image: pip install "drexperts[export]", or '
            "name a folder of yours with --images"
        )
    return decode(Path(package.origin).parent / "data" / name)


def verification_images() -> list[Image.Image]:
    """Thirteen photographs, then seven versions of the middle of each: 104 images."""
    return list(_verification_images())


@functools.cache
def _verification_images() -> tuple[Image.Image, ...]:
    whole = [photograph(name) for name in NAMES]
    pieces = [_middle(image) for image in whole]
    return *whole, *(distorted(piece, *change) for piece in pieces for change in VERSIONS)


def _middle(image: Image.Image) -> Image.Image:
    side = min(PIECE, *image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def distorted_crops(images: Sequence[Source], preprocessing: Preprocessing) -> list[Image.Image]:
    """A crop of a photograph under each of the 25 distortions at each of its five levels.

    The first photographs, as many as there are `NAMES`, take turns by the distortion, and the crops
    of each when it has its turn again, so that all levels of a distortion are on the same crop.
    Grey ones are taken where there are no others. Crops that came out alike are there once: they
    have no order. That is so of JPEG 2000 at 64 px, which gets no smaller.
    """
    grids = [crops_from_image(decode(i), preprocessing).pixels for i in images[: len(NAMES)]]
    grids = [crops for crops in grids if _is_coloured(crops)] or grids
    changed = []
    for turn, kind in enumerate(SYNTHETIC_TYPES):
        crops = grids[turn % len(grids)]
        pixels = crops[turn // len(grids) % len(crops)]
        crop = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        changed += [distorted(crop, kind, level, seed=turn) for level in LEVELS]
    return list({image.tobytes(): image for image in changed}.values())


def _is_coloured(crops: NDArray[np.uint8]) -> bool:
    """Whether the channels of crops [n, 3, h, w] differ: a distortion of colour leaves others."""
    return bool((crops != crops[:, :1]).any())


def distorted(image: Image.Image, kind: str, level: int, seed: int = 0) -> Image.Image:
    """`drexperts.data.distortions.distort` on an RGB image."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    changed = distort(pixels, kind, level, torch.Generator().manual_seed(seed))
    rounded = (changed * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(rounded)
