"""Synthetic distortions: purity, seeds, severity order, colour conversions, block composition."""

import math
from collections.abc import Callable
from functools import cache
from io import BytesIO

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import wiener
from skimage import color, data, filters
from skimage.metrics import mean_squared_error
from torch import Generator, Tensor

from drexperts.data import distortions as synthetic
from drexperts.data.distortions import SYNTHETIC_TYPES, compose_blocks, distort

NAMES = list(SYNTHETIC_TYPES)
LEVELS = range(1, 6)
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
RANDOM = {"motion_blur", "colour_shift", "white_noise", "ycbcr_noise", "impulse_noise"}
RANDOM |= {"multiplicative_noise", "denoise", "jitter", "non_eccentricity_patch", "colour_block"}
# Table entries that leave an 8-bit image as it is: a Gaussian of 0.1 pixels, a factor of 1, a
# shift of 0 and a contrast change of 0.
IDENTITIES = {("gaussian_blur", 1), ("saturation_lab", 1), ("mean_shift", 3), ("contrast", 3)}


@cache
def photograph(name: str, height: int = 160, width: int = 160) -> Tensor:
    pixels = getattr(data, name)()[:height, 100 : 100 + width]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().contiguous() / 255


def hwc(image: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = image.permute(1, 2, 0).numpy()
    return array


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def mse(image: Tensor, name: str, level: int, seed: int = 0) -> float:
    """PSNR falls exactly where this rises, and this stays finite at the identity."""
    return float(mean_squared_error(hwc(image), hwc(distort(image, name, level, seeded(seed)))))


def test_table_is_complete() -> None:
    assert len(NAMES) == 25
    assert all(name == distortion.name for name, distortion in SYNTHETIC_TYPES.items())
    assert {name for name in NAMES if not SYNTHETIC_TYPES[name].monotone} == {
        "mean_shift",
        "contrast",
    }


@pytest.mark.parametrize("name", NAMES)
def test_output_is_an_image_and_input_is_unchanged(name: str) -> None:
    image = photograph("coffee", 97, 131)
    before = image.clone()
    for level in LEVELS:
        result = distort(image, name, level, seeded())
        assert result.shape == image.shape
        assert result.dtype == torch.float32
        assert 0 <= result.min() <= result.max() <= 1
        assert result.data_ptr() != image.data_ptr()
        torch.testing.assert_close(image, before, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (16, 90)])
@pytest.mark.parametrize("name", NAMES)
def test_smallest_sizes_and_flat_images(name: str, size: tuple[int, int]) -> None:
    for value in (0.0, 0.5, 1.0):
        for level in LEVELS:
            result = distort(torch.full((3, *size), value), name, level, seeded())
            assert result.shape == (3, *size)
            assert 0 <= result.min() <= result.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_non_contiguous_image(name: str) -> None:
    image = photograph("chelsea", 64, 48).transpose(1, 2)
    assert not image.is_contiguous()
    expected = distort(image.contiguous(), name, 3, seeded())
    # Convolutions may sum in another order for another memory layout.
    torch.testing.assert_close(distort(image, name, 3, seeded()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_all_randomness(name: str) -> None:
    image = photograph("astronaut", 64, 64)
    first, again, other = (distort(image, name, 5, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name not in RANDOM)


@pytest.mark.parametrize("photo", PHOTOGRAPHS)
@pytest.mark.parametrize("name", [name for name in NAMES if SYNTHETIC_TYPES[name].monotone])
def test_severity_rises_with_level(name: str, photo: str) -> None:
    # A flat block pasted later can hide one that differed more from the photograph, so a single
    # draw of colour_block need not be in order: only its expectation is. All others are per draw.
    seeds = range(16) if name == "colour_block" else range(1)
    errors = [sum(mse(photograph(photo), name, level, seed) for seed in seeds) for level in LEVELS]
    assert errors == sorted(set(errors))


@pytest.mark.parametrize("name", ["mean_shift", "contrast"])
def test_non_monotone_levels_are_weakest_in_the_middle(name: str) -> None:
    errors = [mse(photograph("coffee"), name, level) for level in LEVELS]
    assert errors[0] > errors[1] > errors[2] < errors[3] < errors[4]


def test_only_the_known_levels_change_nothing() -> None:
    image = photograph("chelsea", 96, 96)
    # 1e-8 is 80 dB, far below the 59 dB of rounding to 8 bits.
    unchanged = {(n, level) for n in NAMES for level in LEVELS if mse(image, n, level) < 1e-8}
    assert unchanged == IDENTITIES


# scikit-image rounds its colour matrices to six digits, hence hundredths of a Lab unit.
def test_lab_matches_scikit_image() -> None:
    image = photograph("astronaut")
    lab = synthetic.lab_from_rgb(image)
    np.testing.assert_allclose(hwc(lab), color.rgb2lab(hwc(image)), rtol=0, atol=0.02)
    stretched = lab * torch.tensor([1.0, 2.0, 2.0])[:, None, None]
    rgb = synthetic.rgb_from_lab(stretched)
    np.testing.assert_allclose(hwc(rgb), color.lab2rgb(hwc(stretched)), rtol=0, atol=2e-3)


def test_lab_round_trip_and_greys() -> None:
    image = photograph("coffee")
    back = synthetic.rgb_from_lab(synthetic.lab_from_rgb(image))
    torch.testing.assert_close(back, image, rtol=0, atol=1e-4)
    grey = torch.linspace(0, 1, 256).expand(3, 16, 256)
    lab = synthetic.lab_from_rgb(grey)
    assert lab[1:].abs().max() < 1e-3
    assert lab[0].min().abs() < 1e-3
    assert (lab[0].max() - 100).abs() < 1e-3


@pytest.mark.parametrize("factor", [0.4, 0.0])
def test_saturation_matches_hsv_of_scikit_image(factor: float) -> None:
    image = photograph("coffee")
    expected = color.hsv2rgb(color.rgb2hsv(hwc(image)) * np.array([1, factor, 1]))
    result = synthetic.saturation_hsv(image, factor)
    np.testing.assert_allclose(hwc(result), expected, rtol=0, atol=1e-5)


def test_ycbcr_noise_is_independent_in_ycbcr() -> None:
    image = torch.full((3, 200, 200), 0.5)
    noise = synthetic.ycbcr_noise(image, 0.001, seeded()) - image
    # scikit-image uses studio range: Y spans 219 and Cb, Cr span 224 of 255.
    ycbcr = (color.rgb2ycbcr(hwc(noise)) - [16, 128, 128]) / np.array([219, 224, 224])
    covariance = np.cov(ycbcr.reshape(-1, 3).T)
    # 40,000 samples estimate a variance to 0.7 %; 5 % is seven of those.
    np.testing.assert_allclose(covariance, 0.001 * np.eye(3), rtol=0, atol=5e-5)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 20.0])
def test_gaussian_blur_matches_scikit_image(sigma: float) -> None:
    image = photograph("astronaut", 48, 40)
    expected = filters.gaussian(hwc(image), sigma, mode="nearest", truncate=3.0, channel_axis=-1)
    # scikit-image cuts at round(3 sigma), one pixel earlier for sigma 0.5, where a weight is 2e-4.
    result = synthetic.gaussian_blur(image, sigma)
    np.testing.assert_allclose(hwc(result), expected, rtol=0, atol=1e-3)


def test_motion_blur_spreads_a_point_over_its_length() -> None:
    point = torch.zeros(3, 33, 33)
    point[:, 16, 16] = 1
    for length in SYNTHETIC_TYPES["motion_blur"].levels:
        blurred = synthetic.motion_blur(point, length, seeded())[0]
        assert math.isclose(blurred.sum(), 1, abs_tol=1e-5)
        y, x = blurred.nonzero().float().T - 16
        assert length / 2 - 1 < torch.hypot(y, x).max() < length / 2 + 1


def test_denoise_matches_the_wiener_filter_of_scipy() -> None:
    image = photograph("chelsea", 64, 64)
    noisy = synthetic.white_noise(image, 0.01, seeded()).clamp(0, 1)
    expected = np.stack([wiener(channel.numpy(), (5, 5), 0.01) for channel in noisy])
    result = synthetic.denoise(image, 0.01, seeded()).numpy()
    # The borders differ: SciPy pads with zeros.
    inner = np.s_[:, 2:-2, 2:-2]
    np.testing.assert_allclose(result[inner], expected[inner], rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_colour_and_value_counts(level: int) -> None:
    image = photograph("coffee")
    colours = distort(image, "colour_quantisation", level, seeded()).flatten(1).unique(dim=1)
    # Median cut may leave a palette entry unused.
    limit = SYNTHETIC_TYPES["colour_quantisation"].levels[level - 1]
    assert limit / 2 < colours.shape[1] <= limit
    values = distort(image, "quantisation", level, seeded()).unique()
    assert len(values) == SYNTHETIC_TYPES["quantisation"].levels[level - 1]


@pytest.mark.parametrize("level", LEVELS)
def test_impulse_noise_density(level: int) -> None:
    density = SYNTHETIC_TYPES["impulse_noise"].levels[level - 1]
    result = distort(torch.full((3, 300, 300), 0.5), "impulse_noise", level, seeded())
    # 270,000 values: the tolerance is five standard deviations of the binomial count.
    tolerance = 5 * math.sqrt(density / 2 / result.numel())
    for extreme in (0.0, 1.0):
        assert abs((result == extreme).float().mean().item() - density / 2) < tolerance


def test_jpeg2000_reaches_its_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    opened = Image.open

    def measured(buffer: BytesIO) -> Image.Image:
        sizes.append(len(buffer.getvalue()))
        return opened(buffer)

    monkeypatch.setattr(Image, "open", measured)
    image = photograph("astronaut")
    for ratio in SYNTHETIC_TYPES["jpeg2000"].levels:
        synthetic.jpeg2000(image, ratio)
        # The encoder aims a little below the requested size, and headers take about 120 bytes.
        assert 0.8 * image.numel() / ratio < sizes[-1] < image.numel() / ratio + 150


def chroma(image: Tensor) -> float:
    return synthetic.lab_from_rgb(image)[1:].abs().mean().item()


# An error grows with its strength whatever its sign, so the direction is checked here.
@pytest.mark.parametrize(
    ("name", "level", "measure", "sign"),
    [
        ("saturation_hsv", 1, chroma, -1),
        ("saturation_lab", 2, chroma, 1),
        ("brighten", 1, Tensor.mean, 1),
        ("darken", 1, Tensor.mean, -1),
        ("mean_shift", 1, Tensor.mean, 1),
        ("mean_shift", 5, Tensor.mean, -1),
        ("contrast", 1, Tensor.std, 1),
        ("contrast", 5, Tensor.std, -1),
        ("high_sharpen", 1, lambda image: image.diff().abs().mean(), 1),
        ("gaussian_blur", 3, lambda image: image.diff().abs().mean(), -1),
    ],
)
def test_direction_of_the_change(
    name: str, level: int, measure: Callable[[Tensor], float], sign: int
) -> None:
    image = photograph("coffee")
    assert sign * (measure(distort(image, name, level, seeded())) - measure(image)) > 0


def test_pasted_patches_are_read_from_the_image() -> None:
    # Every pixel has its own value, so each result pixel tells where it was read.
    index = torch.arange(96 * 96, dtype=torch.float32).reshape(1, 96, 96)
    image = (index / (96 * 96)).expand(3, -1, -1)
    source = (distort(image, "non_eccentricity_patch", 1, seeded())[0] * 96 * 96).round()
    moved = (source != index[0]).nonzero()
    read = source[moved[:, 0], moved[:, 1]]
    distance = torch.hypot(moved[:, 0] - read // 96, moved[:, 1] - read % 96)
    # One side of 16 pixels, plus rounding; less where the border stops the source.
    assert 0 < distance.max() <= 17
    assert distance.median() > 14


def test_level_zero_is_the_image_itself_and_draws_nothing() -> None:
    generator = seeded()
    before = generator.get_state()
    image = photograph("coffee")
    assert all(distort(image, name, 0, generator) is image for name in NAMES)
    assert torch.equal(generator.get_state(), before)


GRID = [
    [("jpeg", 5), ("white_noise", 2), ("colour_diffusion", 3)],
    [("gaussian_blur", 0), ("white_noise", 2), ("jitter", 4)],
    [("jpeg", 4), ("colour_block", 5), ("jpeg", 5)],
]


@pytest.mark.parametrize("size", [(97, 131), (96, 96), (16, 17)])
def test_each_block_equals_the_whole_image_distorted(size: tuple[int, int]) -> None:
    image = photograph("coffee", *size)
    before = image.clone()
    result = compose_blocks(image, GRID, seeded())
    generator = seeded()
    pairs = list(dict.fromkeys(pair for row in GRID for pair in row))
    whole = {pair: distort(image, *pair, generator) for pair in pairs}
    covered = torch.zeros(size, dtype=torch.bool)
    for r, row in enumerate(GRID):
        for c, pair in enumerate(row):
            rows = slice(r * size[0] // 3, (r + 1) * size[0] // 3)
            columns = slice(c * size[1] // 3, (c + 1) * size[1] // 3)
            assert torch.equal(result[:, rows, columns], whole[pair][:, rows, columns])
            covered[rows, columns] = True
    assert covered.all()
    assert torch.equal(image, before)


def test_a_repeated_pair_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(image: Tensor, name: str, level: int, _: Generator) -> Tensor:
        calls.append((name, level))
        return image

    monkeypatch.setattr(synthetic, "distort", counted)
    compose_blocks(photograph("coffee"), GRID, seeded())
    assert len(calls) == len(set(calls)) == 7


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("jpeg", -1), "-1"),
        (("jpeg", 6), "6"),
        (("fog", 0), r"fog.*gaussian_blur.*contrast"),
        (("fog", 1), r"fog.*gaussian_blur.*contrast"),
    ],
)
def test_unknown_types_and_levels(arguments: tuple[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        distort(photograph("coffee"), *arguments, seeded())


@pytest.mark.parametrize("size", [(1, 32, 32), (2, 3, 32, 32), (3, 15, 32)])
def test_image_of_the_wrong_kind(size: tuple[int, ...]) -> None:
    for image in (torch.zeros(size), torch.zeros(3, 32, 32, dtype=torch.float64)):
        with pytest.raises(ValueError, match="float32"):
            distort(image, "jpeg", 1, seeded())


@pytest.mark.parametrize("assignments", [[], [[("jpeg", 1), ("jpeg", 2)]], [[], []]])
def test_assignments_must_be_square(assignments: list[list[tuple[str, int]]]) -> None:
    with pytest.raises(ValueError, match="square"):
        compose_blocks(photograph("coffee"), assignments, seeded())
