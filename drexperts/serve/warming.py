"""What a server does before it is ready: run every batch size, and score one image as a test."""

import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drexperts import runtime
from drexperts.runtime.errors import BundleError, InternalError, MissingDependencyError
from drexperts.runtime.proof import LIMITS
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.work import Work
from drexperts.serve.service import Service

# Of the scale's span, unless the engine's precision is allowed more. Most engines are far closer to
# each other; what is caught here is one that computes something else.
_TOLERANCE = 0.05
_log = logging.getLogger("drexperts.serve")


def warm(service: Service, bundle: str | os.PathLike[str]) -> None:
    """Run the engine at every batch size, start what decodes, and test both; then it is ready.

    The test is an image whose score must be that of the bundle's ONNX engine on the CPU. Where that
    is the engine which is served, or where it does not run here, the image must at least score what
    its pixels do that were not decoded. Requests may arrive meanwhile, so nothing here is queued.

    Raises InternalError for scores that are not what they must be, and the engine's errors.
    """
    scorer = service.batcher.scorer
    image = _image(scorer)
    alone = _last_of(scorer, image, 1)
    for size in range(2, scorer.batch + 1):
        _check(scorer, _last_of(scorer, image, size), alone, f"a crop in a batch of {size}")
    expected = _expected(scorer, bundle, image)
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    with ThreadPoolExecutor(service.settings.decoders) as pool:  # each process is started
        for _ in pool.map(scorer.decoder.crops, [encoded.getvalue()] * service.settings.decoders):
            pass
    _check(scorer, scorer.score(encoded.getvalue()).value, expected, "the test image")
    service.warm = True


def _last_of(scorer: Scorer, image: NDArray[np.uint8], size: int) -> float:
    """The score of the last of `size` crops that are alike."""
    side = scorer.preprocessing.crop
    crop = image[:side, :side].transpose(2, 0, 1)
    work = Work(pixels=np.broadcast_to(crop, (size, *crop.shape)))
    scorer.run([(work, index) for index in range(size)])
    return float(work.stacked("score")[-1])


def _expected(scorer: Scorer, bundle: str | os.PathLike[str], image: NDArray[np.uint8]) -> float:
    """What the test image must score."""
    if scorer.engine.backend != "onnx":
        try:
            with runtime.load(bundle, "cpu", engine="onnx") as reference:
                return reference.score(image).value
        except (BundleError, MissingDependencyError) as error:
            _log.warning("the engine is tested against itself only: %s", error)
    return scorer.score(image).value


def _check(scorer: Scorer, value: float, expected: float, what: str) -> None:
    """Raise InternalError for another value than the expected one, such as NaN."""
    precisions = {each.precision for each in scorer.manifest.engines}
    allowed = max(_TOLERANCE, *(LIMITS[each]["score_max"] for each in precisions))
    if not abs(value - expected) <= allowed * scorer.manifest.scale.span:
        raise InternalError(f"the engine scores {what} {value:g}, and it must be {expected:g}")


def _image(scorer: Scorer) -> NDArray[np.uint8]:
    """A smooth picture of the smallest size that is not enlarged, uint8 [side, side, 3]."""
    side = scorer.preprocessing.short_side_min
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    planes = np.broadcast_arrays(ramp[:, None], ramp[None, :], ramp[::-1, None])
    return np.ascontiguousarray(np.stack(planes, axis=-1))
