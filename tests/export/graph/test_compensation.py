"""Weights rounded in turn change the products with real inputs less than the nearest ones do."""

import numpy as np
import pytest
import torch

from drexperts.export.graph.calibration import block_linears
from drexperts.export.graph.compensation import (
    COLUMNS,
    compensated_factors,
    in_steps,
    measured_products,
    rounded_in_turn,
)
from drexperts.export.graph.fold import inference_model
from drexperts.export.graph.int8_products import LARGEST_WITH_VNNI, Range, nearest_factors


def inputs(width: int, alike: float, rows: int = 4000) -> torch.Tensor:
    """Inputs [rows, width] in float64 that share a part of what they are."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(rows, 8, generator=generator, dtype=torch.double)
    mixed = common @ torch.randn(8, width, generator=generator, dtype=torch.double)
    return alike * mixed + torch.randn(rows, width, generator=generator, dtype=torch.double)


def weight(width: int, largest: float = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(16, width, generator=generator, dtype=torch.double)
    return (2 * uniform - 1) * largest


@pytest.mark.parametrize("width", [24, COLUMNS, COLUMNS + 40])
def test_errors_cancel_where_inputs_go_together(width):
    floats, rows = weight(width), inputs(width, alike=3)
    exact = rows @ floats.mT
    turned = rounded_in_turn(floats, rows.mT @ rows, 63)
    errors = [(rows @ each.mT - exact).square().mean() for each in (turned, floats.round())]
    assert errors[0] < 0.5 * errors[1]
    torch.testing.assert_close(turned, turned.round(), rtol=0, atol=0)
    assert turned.abs().max() <= 63


def test_inputs_that_do_not_go_together_leave_the_nearest():
    floats = weight(20)
    torch.testing.assert_close(
        rounded_in_turn(floats, torch.eye(20, dtype=torch.double), 63), floats.round()
    )


def test_no_factor_is_beyond_the_largest():
    floats, rows = weight(32, largest=90), inputs(32, alike=3)
    turned = rounded_in_turn(floats, rows.mT @ rows, 63)
    assert turned.abs().max() == 63


@pytest.mark.parametrize("unused", [slice(0, 1), slice(None)])
def test_inputs_that_are_always_zero(unused):
    floats, rows = weight(12), inputs(12, alike=1)
    rows[:, unused] = 0
    turned = rounded_in_turn(floats, rows.mT @ rows, 63)
    torch.testing.assert_close(turned[:, unused], floats[:, unused].round())


def test_activations_are_rounded_to_the_steps_of_their_range():
    given = Range(-1.0, 3.0)
    rows = torch.linspace(-2, 4, 200)
    got = in_steps(rows, given)
    assert len(got.unique()) <= 256
    assert (got.clamp(-1, 3) - rows.clamp(-1, 3)).abs().max() <= given.scale
    assert in_steps(torch.zeros(1), given) == 0


@pytest.fixture(scope="module")
def folded(tiny, random_model):
    return inference_model(random_model(tiny("official"), spread=0.05))


@pytest.fixture(scope="module")
def crops():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, 64, 64), generator=generator).float()


@pytest.fixture(scope="module")
def ranges(folded):
    return {name: Range(-4.0, 4.0) for name in block_linears(folded)}


def test_products_are_those_of_what_is_read(folded, crops, ranges):
    read, layer = [], block_linears(folded)["encoder.blocks.1.fc2"]
    hook = layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.inference_mode():
        folded(crops)
    hook.remove()
    found = measured_products(folded, ranges, crops)
    assert found.keys() == ranges.keys()
    rows = in_steps(torch.cat(read), ranges["encoder.blocks.1.fc2"])
    torch.testing.assert_close(
        found["encoder.blocks.1.fc2"], rows.mT @ rows, rtol=1e-3, atol=1e-2 * float(rows.var())
    )


def test_every_layer_has_steps_of_its_own_size(folded, crops, ranges):
    found = compensated_factors(folded, ranges, crops, LARGEST_WITH_VNNI)
    assert found.keys() == ranges.keys()
    for name, linear in block_linears(folded).items():
        floats = linear.weight.detach().numpy()
        bias = np.zeros(len(floats), np.float32)
        if linear.bias is not None:
            bias = linear.bias.detach().numpy()
        nearest = nearest_factors(floats, bias, ranges[name], LARGEST_WITH_VNNI)
        np.testing.assert_array_equal(found[name].steps, nearest.steps)
        assert found[name].values.dtype == np.int8
        away = np.abs(found[name].values.astype(int) - nearest.values)
        assert away.max() > 0
        assert away.mean() < 2
