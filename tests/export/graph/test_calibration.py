"""Peaks are those of the layers' inputs; smoothing changes no output and evens the channels."""

import numpy as np
import pytest
import torch
from PIL import Image

from drexperts.export.graph.calibration import (
    Peaks,
    block_linears,
    calibration_crops,
    measured_peaks,
    smoothed,
)
from drexperts.export.graph.fold import inference_model
from drexperts.runtime.preprocess import Preprocessing, crops_from_image

SPEC = Preprocessing(crop=64, short_side_min=64, short_side_max=128, crops_per_side=2)


@pytest.fixture(scope="module", params=["paper", "official"])
def folded(request, tiny, random_model):
    return inference_model(random_model(tiny(request.param)))


@pytest.fixture(scope="module")
def crops():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, 64, 64), generator=generator).float()


def test_names_of_the_layers(folded):
    names = list(block_linears(folded))
    assert len(names) == 4 * 6
    assert names[0] == "encoder.blocks.0.query"
    assert "controller.vit.blocks.1.fc2" in names


def test_peaks_are_those_of_what_is_read(folded, crops):
    read = []
    layer = block_linears(folded)["encoder.blocks.1.fc1"]
    hook = layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.inference_mode():
        for crop in crops:
            folded(crop[None])
    hook.remove()
    found = measured_peaks(folded, crops)
    assert found.keys() == block_linears(folded).keys()
    rows = torch.cat(read)
    low, high = found["encoder.blocks.1.fc1"]
    # Other batches, other order of summation.
    torch.testing.assert_close(low, rows.amin(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(high, rows.amax(0), rtol=1e-4, atol=1e-4)
    assert not layer._forward_pre_hooks


def test_smoothing_changes_nothing(folded, crops):
    exact = folded.double()
    peaks = measured_peaks(exact, crops.double())
    easier, _ = smoothed(exact, peaks)
    with torch.inference_mode():
        for before, after in zip(exact(crops.double()), easier(crops.double()), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    before, after = block_linears(exact), block_linears(easier)
    assert not torch.equal(
        before["encoder.blocks.0.fc1"].weight, after["encoder.blocks.0.fc1"].weight
    )
    folded.float()


def test_smoothed_peaks_are_those_of_the_smoothed_model(folded, crops):
    exact = folded.double()
    easier, told = smoothed(exact, measured_peaks(exact, crops.double()))
    measured = measured_peaks(easier, crops.double())
    for name, peaks in measured.items():
        torch.testing.assert_close(told[name].low, peaks.low)
        torch.testing.assert_close(told[name].high, peaks.high)
    folded.float()


def test_channels_become_more_alike(folded, crops):
    block = folded.encoder.blocks[0]
    gain = block.norm1.weight.clone()
    with torch.no_grad():
        block.norm1.weight[3] *= 300
    peaks = measured_peaks(folded, crops)
    _, even = smoothed(folded, peaks)
    name = "encoder.blocks.0.query"
    worst = [float(p[name].size.max() / p[name].size.median()) for p in (peaks, even)]
    assert worst[0] > 50
    assert worst[1] < worst[0] / 5
    with torch.no_grad():
        block.norm1.weight.copy_(gain)


def test_an_unused_channel_causes_no_division_by_zero(folded, crops):
    peaks = {
        name: Peaks(0 * p.low, 0 * p.high) for name, p in measured_peaks(folded, crops).items()
    }
    easier, _ = smoothed(folded, peaks)
    assert all(weight.isfinite().all() for weight in easier.state_dict().values())


def test_calibration_sees_the_images_and_their_distortions(photo):
    images = [photo(100, 80, seed) for seed in range(3)]
    crops = calibration_crops(images, SPEC)
    assert crops.dtype == torch.float32
    assert crops.shape[1:] == (3, 64, 64)
    assert len(crops) >= 3 + 25
    first = crops_from_image(images[0], SPEC).pixels[0]
    np.testing.assert_array_equal(crops[0].numpy(), first)
    assert Image.fromarray(first.transpose(1, 2, 0)).size == (64, 64)
