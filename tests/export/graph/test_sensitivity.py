"""The first-order error of the score is the measured one for small errors of a part."""

import copy
from typing import Any

import pytest
import torch

from drexperts.export.graph.calibration import block_linears
from drexperts.export.graph.fold import encoder_blocks, inference_model
from drexperts.export.graph.sensitivity import score_errors

SMALL = 1e-4


@pytest.fixture(scope="module")
def folded(tiny, random_model):
    return inference_model(random_model(tiny("official"))).double()


@pytest.fixture(scope="module")
def crops():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 64, 64), generator=generator).double()


def scores(folded, crops):
    with torch.no_grad():
        return torch.cat([folded(crop[None]).score for crop in crops])


@pytest.mark.parametrize("name", ["encoder.blocks.0.query", "encoder.blocks.1.fc2"])
@pytest.mark.slow
def test_the_error_of_a_linear_layer(name, folded, crops):
    linear = block_linears(folded)[name]
    other = copy.deepcopy(linear)

    def reduced(rows):
        return other(rows) * (1 + SMALL * torch.sin(torch.arange(linear.out_features)))

    told = score_errors(folded, {name: reduced}, crops)[name]
    before = scores(folded, crops)
    scale = 1 + SMALL * torch.sin(torch.arange(linear.out_features))
    hook = linear.register_forward_hook(lambda _, given, output: output * scale)
    after = scores(folded, crops)
    hook.remove()
    measured = float((after - before).square().mean().sqrt())
    assert told == pytest.approx(measured, rel=0.02)


@pytest.mark.slow
def test_the_error_of_a_block_and_of_unchanged_blocks(folded, crops):
    blocks = dict(encoder_blocks(folded))
    reduced: dict[str, Any] = copy.deepcopy(blocks)
    last = reduced["encoder.blocks.1"]
    reduced["encoder.blocks.1"] = lambda rows, batch: last(rows, batch) + SMALL
    told = score_errors(folded, reduced, crops)
    assert told.keys() == blocks.keys()
    assert told["encoder.blocks.1"] > 0
    assert all(error == 0 for name, error in told.items() if name != "encoder.blocks.1")
    assert not any(block._forward_hooks for block in blocks.values())
