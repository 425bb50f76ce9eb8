"""What a server does before it is ready: run every batch size, and score one image as a test."""

import math

import numpy as np

from drexperts.runtime.errors import InternalError
from drexperts.runtime.scorer import Scorer
from drexperts.serve.service import Service

# Of the scale's span. The engine is proven to score a crop alike in batches of any size, far more
# closely than this; what is caught here is an engine that computes something else.
_TOLERANCE = 0.05


def warm(service: Service) -> None:
    """Run the engine at every batch size and test it; then the service is ready.

    Raises InternalError for scores that are not what they must be, and the engine's errors.
    """
    scorer = service.batcher.scorer
    values = [_value(scorer, size) for size in range(1, scorer.batch + 1)]
    farthest = max(abs(value - values[0]) for value in values)
    if not farthest <= _TOLERANCE * scorer.manifest.scale.span:
        raise InternalError("the engine scores the same crop differently in batches of other sizes")
    score = service.batcher.submit(_image(scorer), timeout=service.settings.timeout).result()
    if not math.isfinite(score.value):
        raise InternalError("the engine's score of the test image is not finite")
    service.warm = True


def _value(scorer: Scorer, size: int) -> float:
    """The score of the last of `size` crops that are alike."""
    side = scorer.preprocessing.crop
    crops = np.broadcast_to(_image(scorer)[:side, :side].transpose(2, 0, 1), (size, 3, side, side))
    return float(scorer.session.run(np.ascontiguousarray(crops))["score"][-1])


def _image(scorer: Scorer) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """A smooth picture of the smallest size that is not enlarged, uint8 [side, side, 3]."""
    side = scorer.preprocessing.short_side_min
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    planes = np.broadcast_arrays(ramp[:, None], ramp[None, :], ramp[::-1, None])
    return np.ascontiguousarray(np.stack(planes, axis=-1))
