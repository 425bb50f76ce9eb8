"""A baseline without a network: regressions on the statistics of natural scenes (BRISQUE).

Mittal, Moorthy and Bovik, "No-Reference Image Quality Assessment in the Spatial Domain", IEEE
Transactions on Image Processing 21(12), 2012: the 36 features of Table I. Their regression is an
SVR; a ridge regression stands beside it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.special import gamma
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from drexperts.data.synthetic_set import LUMA

Array = NDArray[np.float64]

SCALES = 2
_SIGMA, _RADIUS = 7 / 6, 3  # of the Gaussian window of 7 x 7 pixels
_CONTRAST = 1.0  # keeps flat areas from being divided by zero; luma is 0..255
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # right, below, and both diagonals
_SHAPES = np.arange(0.2, 10.001, 0.001)
# r(a) = Gamma(2/a)^2 / (Gamma(1/a) Gamma(3/a)), which rises with the shape a.
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))


def brisque_features(pixels: NDArray[np.uint8]) -> Array:
    """The features of an RGB image uint8 [H, W, 3], float64 [36].

    Per scale, shape and variance of the normalised luma, then shape, mean, and left and right
    variance of its products with four neighbours. The second scale has half the size.
    """
    luma = pixels.astype(np.float64) @ np.array(LUMA)
    scales = [luma, _halved(luma)]
    return np.concatenate([_features_of_scale(image) for image in scales])


def normalised_luma(luma: Array) -> Array:
    """(I - mean) / (deviation + 1), both in a Gaussian window: MSCN coefficients, [H, W]."""
    mean = _blurred(luma)
    variance = _blurred(luma**2) - mean**2
    return (luma - mean) / (np.sqrt(np.abs(variance)) + _CONTRAST)


def generalised_gaussian(values: Array) -> tuple[float, float]:
    """Shape and variance of a generalised Gaussian of mean zero, by its moments.

    A Gaussian has the shape 2, a Laplacian 1. Constant zeros have the largest shape.
    """
    variance = float(np.mean(values**2))
    return _shape_of(_ratio(values)), variance


def asymmetric_gaussian(values: Array) -> tuple[float, float, float, float]:
    """Shape, mean, and left and right variance of an asymmetric generalised Gaussian."""
    left, right = (_root_mean_square(side) for side in (values[values < 0], values[values > 0]))
    skew = left / right if right else 1.0
    ratio = _ratio(values) * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = _shape_of(ratio)
    width = np.sqrt(gamma(1 / shape) / gamma(3 / shape))  # of a side, per its deviation
    mean = (right - left) * width * gamma(2 / shape) / gamma(1 / shape)
    return shape, float(mean), left**2, right**2


def ridge() -> Any:
    """A ridge regression of standardised features; its penalty is chosen by leaving one out."""
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 29)))


def support_vectors() -> Any:
    """An SVR with a Gaussian kernel; five folds of the training part choose its parameters."""
    grid = {"svr__C": [3, 10, 30, 100, 300], "svr__gamma": [0.001, 0.003, 0.01, 0.03, 0.1]}
    machine = make_pipeline(StandardScaler(), SVR(epsilon=2.0))  # labels are 0..100
    return GridSearchCV(machine, grid, cv=KFold(5, shuffle=True, random_state=0))


def _features_of_scale(luma: Array) -> list[float]:
    scene = normalised_luma(luma)
    features = [*generalised_gaussian(scene.ravel())]
    for down, across in _NEIGHBOURS:
        features += asymmetric_gaussian(_products(scene, down, across).ravel())
    return features


def _products(scene: Array, down: int, across: int) -> Array:
    """The products of all neighbours inside the image."""
    height, width = scene.shape
    first = scene[: height - down, max(0, -across) : width - max(0, across)]
    second = scene[down:, max(0, across) : width - max(0, -across)]
    return first * second


def _blurred(image: Array) -> Array:
    blurred: Array = gaussian_filter(image, _SIGMA, radius=_RADIUS, mode="nearest")
    return blurred


def _halved(luma: Array) -> Array:
    height, width = luma.shape
    size = (max(width // 2, 1), max(height // 2, 1))
    small = Image.fromarray(luma.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(small, np.float64)


def _ratio(values: Array) -> float:
    """E|x|^2 / E[x^2]; 1, the most that there can be, for constant zeros."""
    square = float(np.mean(values**2))
    return float(np.mean(np.abs(values))) ** 2 / square if square else 1.0


def _shape_of(ratio: float) -> float:
    return float(np.interp(ratio, _RATIOS, _SHAPES))


def _root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0
