"""The inputs and outputs of an engine, and whether they are those that its bundle describes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.errors import InternalError
from drexperts.runtime.manifest import Engine, Manifest

_SINGLE, _ANY = 1, -1  # sizes of a batch: no fixed size is -1


class Tensor(NamedTuple):
    """An input or an output. type: as numpy names it; shape: None for a size that is left free"""

    name: str
    type: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("free" if size in (None, _ANY) else str(size) for size in self.shape)
        return f"{self.name!r:.80} {self.type} [{sizes}]"

    def fits(self, wanted: "Tensor") -> bool:
        """Whether this can be `wanted`, of which a size of None may be any."""
        return (self.name, self.type, len(self.shape)) == (
            wanted.name,
            wanted.type,
            len(wanted.shape),
        ) and all(
            None in (size, asked) or size == asked
            for size, asked in zip(self.shape, wanted.shape, strict=True)
        )


def misfit(
    manifest: Manifest, engine: Engine, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> str | None:
    """How an engine differs from what the manifest says of it; None if it does not.

    It must have the one input "pixels" and every output of the manifest. The batch must be free,
    or 1 for an engine of single images.
    """
    batch = _SINGLE if engine.certified_batch == 1 else _ANY
    crop, experts, grid = manifest.preprocessing.crop, len(manifest.distortions), manifest.grid
    pixels = Tensor("pixels", "uint8", (batch, 3, crop, crop))
    if len(inputs) != 1 or not inputs[0].fits(pixels):
        return f"it takes {', '.join(map(str, inputs)) or 'nothing'} and must take {pixels}"
    shapes = {"score": (), "weights": (experts,), "maps": (experts, grid, grid)}
    found = {tensor.name: tensor for tensor in outputs}
    for name in manifest.outputs:
        wanted = Tensor(name, "float32", (batch, *shapes[name]))
        if name not in found:
            return f"it has no output {wanted}"
        if not found[name].fits(wanted):
            return f"its output is {found[name]} and must be {wanted}"
    return None


def check_pixels(
    pixels: NDArray[np.uint8], image_shape: Sequence[int | None], max_batch: int
) -> None:
    """Raise InternalError for anything but uint8 [1..max_batch, *image_shape]."""
    fits = pixels.ndim == 1 + len(image_shape) and all(
        wanted in (None, size) for size, wanted in zip(pixels.shape[1:], image_shape, strict=True)
    )
    if pixels.dtype != np.uint8 or not fits or not 1 <= len(pixels) <= max_batch:
        raise InternalError(
            f"the session takes uint8 [1..{max_batch}, {tuple(image_shape)}], "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
