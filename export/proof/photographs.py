"""The pictures that engines are verified on.

By default these are photographs from scikit-image's wheel, whole, and pieces of them distorted so
that scores differ; nothing is downloaded. Parity adds crops of whatever photographs are used, under
every synthetic distortion at every level.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from drexperts.data.distortions import SYNTHETIC_TYPES, distort
from drexperts.runtime.decoding import Source, decode
from drexperts.runtime.errors import ImageError, MissingDependencyError, UserError
from drexperts.runtime.installing import install_command
from drexperts.runtime.preprocess import Preprocessing, crops_from_image
from drexperts.runtime.wording import remedy

# A folder of photographs, the images themselves, or None for `verification_images`.
Images: TypeAlias = str | Path | Sequence[Source] | None

# Coloured ones first: photographs are dealt out in turn, see `division`. The right picture of the
# motorcycle shows the same scene as the left one.
NAMES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "camera.png",
    "brick.png",
    "clock_motion.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "moon.png",
    "page.png",
    "cell.png",
    "text.png",
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
DISTORTED = 13  # photographs, at most, of which crops are distorted
PIECE = 256  # px: one crop for most models, which keeps a verification short
LEVELS = range(1, 6)


def photograph(name: str) -> Image.Image:
    """One of the photographs in scikit-image's wheel, RGB.

    It is read as a file, since the library's own functions import much and some download.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise MissingDependencyError(
            f"the default photographs come with scikit-image: {install_command('export')}, or pass "
            f"a folder of your own, {remedy('--images DIR', 'images=')}"
        )
    return decode(Path(package.origin).parent / "data" / name)


def proof_images(images: Images) -> Sequence[Source]:
    """The images to verify on. Raises UserError for a folder without a readable image."""
    if images is None:
        return verification_images()
    if not isinstance(images, str | Path):
        return images
    folder = Path(images)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of images")
    found = [path for path in sorted(folder.iterdir()) if _is_image(path)]
    if not found:
        raise UserError(f"{folder} holds no readable image: pass a folder of photographs")
    return found


def _is_image(path: Path) -> bool:
    try:
        decode(path)
    except ImageError:
        return False
    return True


def verification_images() -> list[Image.Image]:
    """Eighteen photographs, then seven versions of the middle of each: 144 images."""
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

    All levels of a distortion are on the same crop. Distortions take the first `DISTORTED`
    photographs in turn, and another crop each time a photograph comes round. Grey photographs are
    used only where there are no others. Equal crops are kept once, since they have no order: JPEG
    2000 at 64 px does not get smaller at every level.
    """
    grids = [crops_from_image(decode(i), preprocessing).pixels for i in images[:DISTORTED]]
    grids = [crops for crops in grids if _is_coloured(crops)] or grids
    changed = []
    for turn, kind in enumerate(SYNTHETIC_TYPES):
        crops = grids[turn % len(grids)]
        pixels = crops[turn // len(grids) % len(crops)]
        crop = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        changed += [distorted(crop, kind, level, seed=turn) for level in LEVELS]
    return list({image.tobytes(): image for image in changed}.values())


def _is_coloured(crops: NDArray[np.uint8]) -> bool:
    """Whether the channels of crops [n, 3, h, w] differ: colour distortions leave grey as it is."""
    return bool((crops != crops[:, :1]).any())


def distorted(image: Image.Image, kind: str, level: int, seed: int = 0) -> Image.Image:
    """`drexperts.data.distortions.distort` on an RGB image."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    changed = distort(pixels, kind, level, torch.Generator().manual_seed(seed))
    rounded = (changed * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(rounded)
