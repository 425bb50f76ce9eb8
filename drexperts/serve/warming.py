"""What a server does before it is ready: run every batch size, and score a crop as a test."""

import io
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drexperts.runtime.errors import InternalError
from drexperts.runtime.proof import LIMITS
from drexperts.runtime.reference_crop import reference_crop
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.wording import EXPORT_AGAIN
from drexperts.runtime.work import Work
from drexperts.serve.service import Service

# Of the scale's span, unless the engine's precision is allowed more. Most engines are far closer to
# the model; what is caught here is one that computes something else.
_TOLERANCE = 0.01
_log = logging.getLogger("drexperts.serve")


def warm(service: Service) -> None:
    """Run the engine at every batch size, start what decodes, and test both; then it is ready.

    A crop must score what the bundle says that its model does, alone and in a batch of every size,
    and an image must score the same when it was encoded as when it was not. Requests may arrive
    meanwhile, so nothing here is queued.

    Raises InternalError for scores that are not what they must be, and the engine's errors.
    """
    scorer = service.batcher.scorer
    expected = scorer.manifest.reference_score
    if expected is None:
        _log.warning("the bundle states no score to test its engine by: %s", EXPORT_AGAIN)
        expected = _last_of(scorer, 1)
    for size in range(1, scorer.batch + 1):
        _check(scorer, _last_of(scorer, size), expected, f"a crop in a batch of {size}")
    image = _image(scorer)
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    with ThreadPoolExecutor(service.settings.decoders) as pool:  # each process is started
        for _ in pool.map(scorer.decoder.crops, [encoded.getvalue()] * service.settings.decoders):
            pass
    decoded = scorer.score(encoded.getvalue()).value
    _check(scorer, decoded, scorer.score(image).value, "an image that was encoded")
    service.warm = True


def _last_of(scorer: Scorer, size: int) -> float:
    """The score of the last of `size` crops that are alike."""
    crop = reference_crop(scorer.preprocessing.crop)
    work = Work(pixels=np.broadcast_to(crop, (size, *crop.shape)))
    scorer.run([(work, index) for index in range(size)])
    return float(work.stacked("score")[-1])


def _check(scorer: Scorer, value: float, expected: float, what: str) -> None:
    """Raise InternalError for another value than the expected one, such as NaN."""
    allowed = max(_TOLERANCE, LIMITS[scorer.engine.precision]["score_max"])
    if not abs(value - expected) <= allowed * scorer.manifest.scale.span:
        raise InternalError(f"the engine scores {what} {value:g}, and it must be {expected:g}")


def _image(scorer: Scorer) -> NDArray[np.uint8]:
    """A picture of the smallest size that is not enlarged, uint8 [side, side, 3]."""
    planes = reference_crop(scorer.preprocessing.short_side_min)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))
