"""The crop whose score a bundle states, so that an engine can be tested wherever it runs."""

import numpy as np
from numpy.typing import NDArray


def reference_crop(side: int) -> NDArray[np.uint8]:
    """A smooth picture in colour, uint8 [3, side, side], the same for everyone: three ramps."""
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    planes = np.broadcast_arrays(ramp[:, None], ramp[None, :], ramp[::-1, None])
    return np.ascontiguousarray(np.stack(planes))
