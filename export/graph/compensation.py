"""Weights in integers whose errors of rounding cancel in the products with real inputs.

Each weight of a row is rounded in turn, and those that are still to come take over its error, as
far as the inputs that they multiply go together (GPTQ, Frantar et al. 2022, arXiv 2210.17323, of
which this is the form without groups). Inputs of a transformer's layers go together a good deal.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from drexperts.export.graph.calibration import CHUNK, block_linears, watched
from drexperts.export.graph.int8_products import Factors, Range, factor_steps
from drexperts.model.dr_experts import DRExperts

DAMPING = 0.01  # of the mean of the inputs' squares: keeps weights of unused inputs as they are
COLUMNS = 128  # rounded before the rest of a weight is changed, which only saves time


def compensated_factors(
    folded: DRExperts, ranges: Mapping[str, Range], crops: Tensor, largest: int
) -> dict[str, Factors]:
    """The weights of the blocks' linear layers within -largest..largest, for crops [n, 3, H, W].

    Args:
        ranges: of each layer's input.
    """
    products = measured_products(folded, ranges, crops)
    return {
        name: _compensated(linear, ranges[name], products.pop(name), largest)
        for name, linear in block_linears(folded).items()
    }


def measured_products(
    folded: DRExperts, ranges: Mapping[str, Range], crops: Tensor
) -> dict[str, Tensor]:
    """XᵀX [in, in] of the inputs X [rows, in] that each layer reads, rounded to its range."""
    found: dict[str, Tensor] = {}

    def note(name: str, rows: Tensor) -> None:
        read = in_steps(rows, ranges[name])
        found.setdefault(name, torch.zeros(read.shape[1], read.shape[1])).addmm_(read.mT, read)

    with watched(folded, note), torch.inference_mode():
        for chunk in crops.split(CHUNK):
            folded(chunk)
    return found


def in_steps(rows: Tensor, given: Range) -> Tensor:
    """An activation, rounded to the 256 values of its range."""
    steps = ((rows / given.scale).round() + given.zero).clamp(0, 255) - given.zero
    return steps * given.scale


def _compensated(linear: nn.Linear, given: Range, products: Tensor, largest: int) -> Factors:
    weight = linear.weight.detach()
    bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach()
    steps = factor_steps(weight.numpy(), bias.numpy(), given.scale, largest)
    scaled = weight.double() / torch.from_numpy(steps).double()[:, None]
    values = rounded_in_turn(scaled, products.double(), largest)
    return Factors(values.numpy().astype(np.int8), steps)


def rounded_in_turn(weight: Tensor, products: Tensor, largest: int) -> Tensor:
    """Whole numbers within -largest..largest near a weight [out, in], both in float64.

    They are those that change the products with inputs X little, columns of large inputs first.

    Args:
        products: XᵀX, [in, in].
    """
    order = products.diagonal().argsort(descending=True)
    left, chosen = weight[:, order], torch.empty_like(weight)
    shares = _shares(products[order][:, order])
    for start in range(0, len(order), COLUMNS):
        end = min(start + COLUMNS, len(order))
        errors = torch.empty_like(left[:, start:end])
        for i in range(start, end):
            column = left[:, i].round().clamp(-largest, largest)
            error = (left[:, i] - column) / shares[i, i]
            left[:, i:end] -= error[:, None] * shares[i, i:end]
            chosen[:, order[i]], errors[:, i - start] = column, error
        left[:, end:] -= errors @ shares[start:end, end:]
    return chosen


def _shares(products: Tensor) -> Tensor:
    """How much of a column's error each later column takes over: upper triangular, [in, in]."""
    damped = products.clone()
    damped.diagonal().add_(DAMPING * products.diagonal().mean().clamp(min=1e-12))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
