"""From a source to crops: the interface of decoders, and the decoder in this process."""

from typing import Protocol

from PIL import Image

from drexperts.runtime.decoding.image import Source, decoded, errors_of
from drexperts.runtime.decoding.limits import DEFAULT_LIMITS, DecodingLimits
from drexperts.runtime.preprocess import Crops, Preprocessing, crops_from_image, resized


class Decoder(Protocol):
    """Decodes sources, and cuts their crops. Safe to share between threads.

    spec, limits: what it was made with
    isolated: whether hostile bytes are decoded in another process
    """

    spec: Preprocessing
    limits: DecodingLimits
    isolated: bool

    def crops(self, source: Source) -> Crops:
        """The crops of an image. Raises ImageError for what cannot be read."""
        ...

    def resized(self, source: Source) -> Image.Image:
        """The RGB image from which the crops are cut. Raises what `crops` raises."""
        ...

    def close(self) -> None:
        """End what it started. Twice is fine; `crops` then raises UserError."""
        ...


class LocalDecoder:
    """Decodes in this process: within the budget of bytes, but for as long as it takes."""

    isolated = False

    def __init__(self, spec: Preprocessing, limits: DecodingLimits = DEFAULT_LIMITS) -> None:
        self.spec = spec
        self.limits = limits

    def crops(self, source: Source) -> Crops:
        """See `Decoder`."""
        with errors_of(source), decoded(source, self.limits, self.spec) as image:
            return crops_from_image(image, self.spec)

    def resized(self, source: Source) -> Image.Image:
        """See `Decoder`."""
        with errors_of(source), decoded(source, self.limits, self.spec) as image:
            return resized(image, self.spec)

    def close(self) -> None:
        """Nothing was started."""
