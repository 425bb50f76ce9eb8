"""Small pictures inside a page."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import ImageError

SIDE = 240  # px of the longer side of a picture


class Picture(NamedTuple):
    """A picture with its caption, as the macro `gallery` shows it.

    name: of the image
    said: about it, in a few words
    source: a data URL; None if the picture cannot be read, and only its caption is shown
    """

    name: str
    said: str
    source: str | None


def thumbnail(path: Path, read: Callable[[Path], Image.Image] = decode) -> str | None:
    """A small copy of a picture as a data URL; None if it cannot be read.

    read: how the file becomes an RGB image, such as `IsolatedDecoder.resized`
    """
    try:
        image = read(path)
    except (ImageError, OSError):
        return None
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
