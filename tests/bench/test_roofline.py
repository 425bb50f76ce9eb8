"""The roofline's numbers: FLOP against their formula, bytes against the parameters."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from drexperts.bench import roofline
from drexperts.model.config import EncoderConfig
from drexperts.model.dr_experts import new_model


def encoder_flop(encoder: EncoderConfig) -> int:
    """Patches, then for each block four projections, an MLP of four widths, and attention."""
    patches, width = encoder.grid**2, encoder.width
    tokens = patches + 1
    embedding = 2 * patches * 3 * encoder.patch_size**2 * width
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    return embedding + encoder.depth * block


def test_flop_of_one_more_block(tiny: Callable[..., Any]) -> None:
    """Another block adds its own FLOP, whatever else the model does."""
    config = tiny("official")
    deeper = replace(config, encoder=replace(config.encoder, depth=config.encoder.depth + 1))
    counted = [roofline.flop_per_image(new_model(each)) for each in (config, deeper)]
    expected = encoder_flop(deeper.encoder) - encoder_flop(config.encoder)
    assert counted[1] - counted[0] == expected
    assert counted[0] > encoder_flop(config.encoder)


def test_bytes_are_those_of_the_precision(tiny: Callable[..., Any]) -> None:
    model = new_model(tiny("official"))
    weights = sum(parameter.numel() for parameter in model.parameters())
    widths = {"fp32": 4, "bf16": 2, "int8": 1, "mixed": 4}
    for precision, width in widths.items():
        assert roofline.weight_bytes(model, precision) == width * weights


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_BUDGET", 0.0)
    monkeypatch.setattr(roofline, "_SIDES", {"cpu": 64})
    monkeypatch.setattr(roofline, "_COPIED", 2**20)


@pytest.mark.usefixtures("quick")
def test_measure(tiny: Callable[..., Any]) -> None:
    before = torch.get_num_threads()
    found = roofline.measure(tiny("paper"), "fp32", 1)
    assert torch.get_num_threads() == before
    assert found.peak_flops
    assert found.bandwidth
    assert "64 x 64 in torch.float32" in found.source


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("types", "timed"),
    [
        ((), {"float32"}),
        (("bf16", "fp32"), {"bfloat16", "float32"}),
        (("int8",), {"int8", "bfloat16", "float32"}),
    ],
)
def test_the_roof_is_that_of_the_fastest_type(
    types: tuple[str, ...], timed: set[str], tiny: Callable[..., Any], monkeypatch: Any
) -> None:
    measured: dict[str, float] = {}

    def peak(device: str, dtype: torch.dtype, side: int) -> float:
        return measured.setdefault(str(dtype).removeprefix("torch."), 2.0 + len(measured))

    monkeypatch.setattr(roofline, "_peak_flops", peak)
    found = roofline.measure(tiny("paper"), "int8", 1, types=types)
    assert set(measured) == timed
    assert found.peak_flops == max(measured.values())
    assert f"in torch.{list(measured)[-1]} " in found.source


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_peaks_of_other_types(dtype: torch.dtype) -> None:
    assert roofline._peak_flops("cpu", dtype, 64) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_pytorch_does_not_see_has_no_roof(tiny: Callable[..., Any]) -> None:
    found = roofline.measure(tiny("paper"), "fp16", None, "cuda")
    assert found.peak_flops is found.bandwidth is None
    assert found.flop_per_image > 0
