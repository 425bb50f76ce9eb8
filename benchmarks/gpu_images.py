"""The crops on which the whole model is checked on a GPU: of photographs, plain and distorted."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drexperts.bench import timing
from drexperts.export.proof.photographs import NAMES, distorted_crops, photograph
from drexperts.model.checkpoint import default_preprocessing
from drexperts.model.config import DRExpertsConfig
from drexperts.runtime.decoding import Source, decode
from drexperts.runtime.errors import UserError
from drexperts.runtime.preprocess import Preprocessing, crops_from_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
FEWEST = 3
MOST = 64  # photographs


def crops_for(config: DRExpertsConfig, folder: Path | None) -> tuple[Tensor, dict[str, int], str]:
    """What a model of this configuration is checked on.

    folder: of photographs; None takes those in scikit-image's wheel, or, without it, a picture that
        is made here

    Returns uint8 crops [n, 3, H, W], how many each set has, and where they are from.
    Raises UserError for a folder with too few photographs.
    """
    spec = default_preprocessing(config)
    photographs, origin = _photographs(folder)
    grids = [crops_from_image(decode(source), spec).pixels for source in photographs]
    plain = np.concatenate(grids if len(grids) < FEWEST else [grid[:1] for grid in grids])
    changed = distorted_crops(photographs, spec)
    distorted = np.stack([_pixels(crop, spec) for crop in changed])
    sizes = {"photographs": len(plain), "synthetic": len(distorted)}
    return torch.from_numpy(np.concatenate([plain, distorted])), sizes, origin


def _pixels(crop: Source, spec: Preprocessing) -> NDArray[np.uint8]:
    return crops_from_image(decode(crop), spec).pixels[0]


def _photographs(folder: Path | None) -> tuple[list[Source], str]:
    if folder is not None:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if len(found) < FEWEST:
            raise UserError(f"{folder} has {len(found)} photographs: at least {FEWEST} are needed")
        return list(found[:MOST]), f"{len(found[:MOST])} photographs of a folder"
    try:
        return [photograph(name) for name in NAMES], "the photographs in scikit-image's wheel"
    except UserError:  # no scikit-image, or one without them
        return [timing.photograph()], "a picture made here: no photograph was at hand"
