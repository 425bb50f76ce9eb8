"""Colours of series: any number of them, all different, and apart for colour-blind readers too."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito's palette without its yellow and black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")

_MOST = 300  # different colours
# Of further colours, relative: their contrast is 3 or more on a white page and on our dark one.
_LUMINANCE = 0.125, 0.3
# Linear RGB as those see it who lack the long, and the middle cones (Machado et al., 2009).
_SEEN = (
    np.eye(3),
    np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
)
# Linear RGB to OKLab, where distances are those that people see (Ottosson, 2020).
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def colour(index: int) -> str:
    """The colour of series number `index`. Numbers below 300 have different ones."""
    place = index % _MOST
    return COLOURS[place] if place < len(COLOURS) else _further()[place - len(COLOURS)]


def distances(one: str, others: tuple[str, ...]) -> NDArray[np.float64]:
    """How far a colour is from others, in OKLab, to the eyes that see the least of it."""
    first, rest = _views(_rgb((one,))), _views(_rgb(others))
    apart: NDArray[np.float64] = np.linalg.norm(first - rest, axis=-1).min(axis=0)
    return apart


@cache
def _further() -> tuple[str, ...]:
    """Of a grid of colours, each time the one that is the farthest from all before it."""
    steps = range(0, 256, 15)
    grid = tuple(f"#{r:02x}{g:02x}{b:02x}" for r in steps for g in steps for b in steps)
    luminance = _linear(_rgb(grid)) @ (0.2126, 0.7152, 0.0722)
    low, high = _LUMINANCE
    left = [each for each, light in zip(grid, luminance, strict=True) if low <= light <= high]
    views = _views(_rgb(tuple(left)))
    nearest = np.min([distances(each, tuple(left)) for each in COLOURS], axis=0)
    found = []
    for _ in range(_MOST - len(COLOURS)):
        best = int(nearest.argmax())
        found.append(left[best])
        apart = np.linalg.norm(views - views[:, best : best + 1], axis=-1).min(axis=0)
        nearest = np.minimum(nearest, apart)
        nearest[best] = -1.0
    return tuple(found)


def _rgb(colours: tuple[str, ...]) -> NDArray[np.float64]:
    """Float64 [n, 3], 0 to 1."""
    values = [[int(each[i : i + 2], 16) for i in (1, 3, 5)] for each in colours]
    return np.array(values, np.float64) / 255


def _linear(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _views(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """OKLab, float64 [eyes, n, 3], of each kind of eyes."""
    seen = np.stack([np.clip(_linear(rgb) @ eyes.T, 0, 1) for eyes in _SEEN])
    lab: NDArray[np.float64] = np.cbrt(seen @ _CONES.T) @ _LAB.T
    return lab
