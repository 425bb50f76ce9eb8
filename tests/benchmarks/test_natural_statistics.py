"""The BRISQUE features: distributions are found again, and filters agree with loops in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gamma

from drexperts.benchmarks import natural_statistics as statistics

DRAWS = 200_000


def drawn(shape: float, width: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """|x| of a generalised Gaussian: (|x| / width)^shape has a gamma distribution."""
    values: NDArray[np.float64] = width * rng.gamma(1 / shape, size=DRAWS) ** (1 / shape)
    return values


@pytest.mark.parametrize(
    ("draw", "shape", "variance"),
    [
        (lambda rng: rng.normal(0, 3, DRAWS), 2.0, 9.0),
        (lambda rng: rng.laplace(0, 1.5, DRAWS), 1.0, 4.5),
        (lambda rng: rng.choice([-1, 1], DRAWS) * drawn(0.5, 1.0, rng), 0.5, 120.0),
    ],
)
def test_a_generalised_gaussian_is_found_again(
    draw: Callable[[np.random.Generator], NDArray[np.float64]], shape: float, variance: float
) -> None:
    found = statistics.generalised_gaussian(draw(np.random.default_rng(0)))
    assert found == pytest.approx((shape, variance), rel=0.02)


def test_the_shape_solves_the_equation_of_moments() -> None:
    values = np.random.default_rng(1).laplace(size=100) ** 3

    def excess(shape: float) -> float:
        ratio = np.mean(values**2) / np.mean(np.abs(values)) ** 2
        return float(gamma(1 / shape) * gamma(3 / shape) / gamma(2 / shape) ** 2 - ratio)

    assert statistics.generalised_gaussian(values)[0] == pytest.approx(brentq(excess, 0.2, 10))


def test_an_asymmetric_gaussian_is_found_again() -> None:
    rng, shape, left, right = np.random.default_rng(0), 1.5, 1.0, 3.0
    on_the_left = rng.random(DRAWS) < left / (left + right)
    values = np.where(on_the_left, -drawn(shape, left, rng), drawn(shape, right, rng))
    spread = math.gamma(3 / shape) / math.gamma(1 / shape)  # of a side of width 1
    expected = (shape, float(values.mean()), spread * left**2, spread * right**2)
    assert statistics.asymmetric_gaussian(values) == pytest.approx(expected, rel=0.03)


def test_normalised_luma_agrees_with_a_window_summed_by_hand() -> None:
    luma = np.random.default_rng(0).uniform(0, 255, (12, 11))
    line = [math.exp(-((i - 3) ** 2) / (2 * (7 / 6) ** 2)) for i in range(7)]
    weights = np.outer(line, line) / sum(line) ** 2
    window = luma[2:9, 1:8]  # around row 5, column 4
    mean = float((weights * window).sum())
    deviation = math.sqrt(float((weights * (window - mean) ** 2).sum()))
    expected = (luma[5, 4] - mean) / (deviation + 1)
    assert statistics.normalised_luma(luma)[5, 4] == pytest.approx(expected, abs=1e-12)


def test_the_normalised_luma_of_noise_is_nearly_gaussian() -> None:
    noise = np.random.default_rng(0).normal(128, 20, (300, 300)).clip(0, 255)
    pixels = np.repeat(noise.astype(np.uint8)[..., None], 3, axis=2)
    shape = statistics.brisque_features(pixels)[0]
    assert 2.0 < shape < 3.0  # dividing by the deviation in a small window shortens the tails


def test_features_are_those_of_products_multiplied_by_hand() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 10, 3)).astype(np.uint8)
    features = statistics.brisque_features(pixels)
    assert features.shape == (36,)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    scene = statistics.normalised_luma(luma)
    for number, (down, across) in enumerate([(0, 1), (1, 0), (1, 1), (1, -1)]):
        places = [(i, j) for i in range(9) for j in range(10)]
        products = [
            scene[i, j] * scene[i + down, j + across]
            for i, j in places
            if i + down < 9 and 0 <= j + across < 10
        ]
        expected = statistics.asymmetric_gaussian(np.array(products))
        assert features[2 + 4 * number : 6 + 4 * number] == pytest.approx(expected, rel=1e-12)


def test_a_mirrored_image_exchanges_the_diagonals() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    first = statistics.brisque_features(pixels)
    second = statistics.brisque_features(pixels[:, ::-1])
    order = [*range(10), *range(14, 18), *range(10, 14)]
    assert second[order] == pytest.approx(first[:18])


def test_a_flat_image_has_finite_features() -> None:
    assert np.isfinite(statistics.brisque_features(np.full((20, 20, 3), 90, np.uint8))).all()


@pytest.mark.parametrize("regression", [statistics.ridge, statistics.support_vectors])
def test_a_regression_learns_what_depends_on_a_feature(regression: Callable[[], object]) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 5)) * [1, 10, 0.1, 1, 1]
    labels = 50 + 1.5 * features[:, 1]
    model = regression().fit(features[:80], labels[:80])  # type: ignore[attr-defined]
    assert np.corrcoef(model.predict(features[80:]), labels[80:])[0, 1] > 0.95
