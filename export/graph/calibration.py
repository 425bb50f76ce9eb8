"""The ranges that a folded model's linear layers read on real images, and their smoothing.

A transformer's activations have channels a hundred times larger than the others, which leave eight
bits few steps for the rest. `smoothed` moves part of their magnitude into the weights, exactly
(SmoothQuant, Xiao et al. 2023, arXiv 2211.10438, Eq. 4).
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from drexperts.export.graph.fold import encoder_blocks
from drexperts.export.proof.photographs import distorted_crops
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.decoding import Source, decode
from drexperts.runtime.preprocess import Preprocessing, crops_from_image

STRENGTH = 0.5  # of smoothing: 0 leaves the activations unchanged, 1 makes all channels equal
CHUNK = 4  # crops at a time
LEAST = 1e-5  # keeps a channel that is never used from division by zero


class Peaks(NamedTuple):
    """The least and the largest value of each input channel, [in] each."""

    low: Tensor
    high: Tensor

    @property
    def size(self) -> Tensor:
        """The largest magnitude of each channel."""
        return torch.maximum(self.low.abs(), self.high.abs()).clamp(min=LEAST)

    def divided(self, by: Tensor) -> "Peaks":
        return Peaks(self.low / by, self.high / by)


def calibration_crops(images: Sequence[Source], preprocessing: Preprocessing) -> Tensor:
    """A crop of each image and one of every distortion: float32 0..255 [n, 3, H, W]."""
    first = [crops_from_image(decode(image), preprocessing).pixels[0] for image in images]
    changed = distorted_crops(images, preprocessing)[::4]  # cycles through the five levels
    first += [crops_from_image(image, preprocessing).pixels[0] for image in changed]
    return torch.stack([torch.from_numpy(crop) for crop in first]).float()


def block_linears(folded: DRExperts) -> dict[str, nn.Linear]:
    """The linear layers of the transformer blocks by name, first "encoder.blocks.0.query"."""
    return {
        f"{name}.{child}": linear
        for name, block in encoder_blocks(folded)
        for child, linear in block.named_children()
        if isinstance(linear, nn.Linear)
    }


def measured_peaks(folded: DRExperts, crops: Tensor) -> dict[str, Peaks]:
    """The peaks of the inputs of the blocks' linear layers, over crops [n, 3, H, W]."""
    found: dict[str, Peaks] = {}

    def note(name: str, rows: Tensor) -> None:
        now = Peaks(rows.amin(0), rows.amax(0))
        old = found.get(name, now)
        found[name] = Peaks(torch.minimum(old.low, now.low), torch.maximum(old.high, now.high))

    with watched(folded, note), torch.inference_mode():
        for chunk in crops.split(CHUNK):
            folded(chunk)
    # Clones, because gradients cannot be taken through inference tensors.
    return {name: Peaks(low.clone(), high.clone()) for name, (low, high) in found.items()}


@contextmanager
def watched(folded: DRExperts, note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `note(name, rows)` with the input [rows, in] of each linear layer."""
    hooks = [
        linear.register_forward_pre_hook(lambda _, given, name=name: note(name, given[0]))
        for name, linear in block_linears(folded).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def smoothed(folded: DRExperts, peaks: Mapping[str, Peaks]) -> tuple[DRExperts, dict[str, Peaks]]:
    """An equal model whose linear layers read channels of more equal magnitude, and its peaks.

    The output of a norm is scaled through its gain. The attention's output has no such channels:
    scaled through the values, it took trained models no nearer to float32 and once farther away.
    """
    easier, found = copy.deepcopy(folded), dict(peaks)
    with torch.no_grad():
        for name, block in encoder_blocks(easier):
            for source, readers in (
                (block.norm1, ("query", "key", "value")),
                (block.norm2, ("fc1",)),
            ):
                by = _divisor([getattr(block, r) for r in readers], found[f"{name}.{readers[0]}"])
                source.weight.div_(by)
                source.bias.div_(by)
                for reader in readers:
                    getattr(block, reader).weight.mul_(by)
                    found[f"{name}.{reader}"] = found[f"{name}.{reader}"].divided(by)
    return easier, found


def _divisor(linears: Sequence[nn.Linear], peaks: Peaks) -> Tensor:
    """The divisor of each channel: size^a / weight^(1 - a), with geometric mean 1."""
    weight = torch.cat([linear.weight for linear in linears]).abs().amax(0).clamp(min=LEAST)
    by = peaks.size**STRENGTH / weight ** (1 - STRENGTH)
    result: Tensor = by / by.log().mean().exp()
    return result
