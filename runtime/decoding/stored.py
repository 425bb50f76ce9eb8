"""What a file says of the picture in it, before anything is decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from PIL import Image


@dataclass(frozen=True)
class Layout:
    """A way to store samples that is read: a row of the table in docs/concepts/preprocessing.md.

    format: the name of the format, such as "PNG"
    samples: what is stored, such as "grey, 2 or 4 bits, with a transparent value"
    answer: what becomes of it, such as "expanded to RGB, composited over white"
    """

    format: str
    samples: str
    answer: str


@dataclass(frozen=True)
class Stored:
    """A picture that is ready for its decoder.

    layout: how its samples are stored
    width, height: in pixels, as stored: the orientation is not applied
    data: what the decoder reads: the file without what the picture does not need
    open: Pillow's class for the format; called with a stream of `data`
    modes: the modes that Pillow may give this layout; another is refused, because its samples
        would mean something else
    to_rgb: from the decoded image to opaque RGB
    memory: the most bytes that decoding and converting hold at once, beside `data`; an upper bound
    orientation: as in EXIF, 1 to 8; Pillow is given no metadata that would say it
    """

    layout: Layout
    width: int
    height: int
    data: bytes
    open: Callable[[IO[bytes]], Image.Image]
    modes: frozenset[str]
    to_rgb: Callable[[Image.Image], Image.Image]
    memory: int
    orientation: int = 1


class NotReadError(ValueError):
    """A file that is not read, with the reason: "a TIFF of 12-bit grey samples: ..."."""


class DecoderFailure(NotReadError):  # noqa: N818 - the public error is errors.DecoderFailedError
    """A decoder that crashed, or took more memory or time than it may."""
