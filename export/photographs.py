"""The pictures an engine is verified on where the user names none.

Photographs that scikit-image ships in its wheel, as they are and distorted, so that scores differ.
Nothing is fetched.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from drexperts.synthetic import distort

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
DISTORTED = (("gaussian_blur", 4), ("jpeg", 4), ("white_noise", 5))


def photograph(name: str) -> Image.Image:
    """One of scikit-image's photographs, RGB."""
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
        return image.convert("RGB")


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
