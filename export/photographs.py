"""The pictures an engine is verified on where the user names none.

Photographs that scikit-image ships in its wheel, as they are and distorted, so that scores differ.
Nothing is fetched.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from drexperts.runtime.errors import MissingDependencyError
from drexperts.runtime.preprocess import decode
from drexperts.synthetic import distort

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
DISTORTED = (("gaussian_blur", 4), ("jpeg", 4), ("white_noise", 5))


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
    """Five photographs, each pristine and under three distortions: twenty images."""
    images = []
    for name in NAMES:
        pristine = photograph(name)
        images += [pristine, *(distorted(pristine, kind, level) for kind, level in DISTORTED)]
    return images


def distorted(image: Image.Image, kind: str, level: int, seed: int = 0) -> Image.Image:
    """`drexperts.synthetic.distort` on an RGB image."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    changed = distort(pixels, kind, level, torch.Generator().manual_seed(seed))
    rounded = (changed * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(rounded)
