"""Which photographs an engine is made on, and which it is proven on: none is used for both.

Photographs are dealt out in turn, in the order given (a folder's is that of its names), to the
proof, the search and the calibration, as far as a precision needs them, until the last two have
enough. Versions of one photograph stay together.
"""

import hashlib
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drexperts.export.proof.photographs import VERSIONS, Images, proof_images, verification_images
from drexperts.runtime.decoding import Source, decode
from drexperts.runtime.errors import UserError
from drexperts.runtime.wording import remedy

Photographs: TypeAlias = list[list[Source]]  # the versions of each

# Pictures from which a part of `LEAST` photographs gets no more of them: more calibration hardly
# moves a scale, and the search scores them for each candidate.
ENOUGH = {"calibration": 32, "search": 256}
LEAST = 3  # photographs of each part

# Two pictures are versions of one photograph if thumbnails of this side correlate so far. Of 627
# photographs of LIVE Challenge, 38 pairs do (0.02 % of the pairs), bursts among them; so do almost
# all photographs and their blurred, noisy or compressed versions.
_SIDE, _ALIKE = 16, 0.9


def divided(photographs: Photographs, *others: str) -> dict[str, list[Source]]:
    """The pictures of the "proof", and of each of `others`, "search" and "calibration".

    Whole photographs come first in each part, then their other versions.

    Raises UserError if a part would have fewer than `LEAST` photographs. The proof alone has all,
    however few.
    """
    parts: dict[str, Photographs] = {name: [] for name in ("proof", *others)}
    if others and len(photographs) < LEAST * len(parts):
        raise UserError(
            f"the images are of {len(photographs)} photographs, and {', '.join(parts)} need "
            f"{LEAST} each that no other uses: pass more, or no "
            f"{remedy('--images', 'images=')} for the default ones"
        )
    for photograph in photographs:
        wanting = [name for name, part in parts.items() if _wants(name, part)]
        parts[min(wanting, key=lambda name: len(parts[name]))].append(photograph)
    return {name: in_turn(part) for name, part in parts.items()}


def _wants(name: str, part: Photographs) -> bool:
    return len(part) < LEAST or sum(map(len, part)) < ENOUGH.get(name, np.inf)


def in_turn(photographs: Photographs) -> list[Source]:
    """The first version of each photograph, then the second of each that has one, and so on."""
    turns = zip_longest(*photographs)
    return [image for image in chain.from_iterable(turns) if image is not None]


def photographs_of(images: Images) -> Photographs:
    """The images to verify on, with the versions of one photograph together.

    Raises UserError as `proof_images`.
    """
    if images is not None:
        return _grouped(proof_images(images))
    made, each = verification_images(), len(VERSIONS)
    whole = len(made) // (1 + each)
    return [[made[i], *made[whole + each * i :][:each]] for i in range(whole)]


def _grouped(images: Sequence[Source]) -> Photographs:
    """Each image joins the photograph whose first version is most like it, or is a new one."""
    photographs: Photographs = []
    firsts = np.empty((0, _SIDE**2))
    for image in images:
        thumbnail = _thumbnail(decode(image))
        likeness = firsts @ thumbnail
        if likeness.max(initial=0.0) >= _ALIKE:
            photographs[int(likeness.argmax())].append(image)
        else:
            photographs.append([image])
            firsts = np.vstack((firsts, thumbnail))
    return photographs


def _thumbnail(image: Image.Image) -> NDArray[np.float64]:
    """Its lightness, whose product with another's is their correlation; all flat ones are equal."""
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(small, float).ravel()
    centred = values - values.mean()
    if not centred.any():
        centred += 1  # which correlates with nothing else
    return centred / np.linalg.norm(centred)


def digest_of(image: Source) -> str:
    """What identifies a picture in a manifest: 12 hex digits of the SHA-256 of size and pixels."""
    pixels = decode(image)
    return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()[:12]


def digest_of_all(digests: Sequence[str]) -> str:
    """What identifies pictures in their order, which decides how each is distorted: "sha256:…"."""
    return f"sha256:{hashlib.sha256(''.join(digests).encode()).hexdigest()}"
