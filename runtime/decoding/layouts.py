"""The formats that are read: what each file says of itself, and the table of all layouts."""

import io
import warnings
from collections.abc import Callable

from PIL import Image, UnidentifiedImageError

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.orientation import orientation_of
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored

# By what `kinds.kind_of` calls a file.
INSPECTORS: dict[str, Callable[[bytes], Stored]] = {}


def inspect(data: bytes) -> Stored:
    """What a file says of its picture. Raises NotReadError for what is not read."""
    if not data:
        raise NotReadError("it is empty")
    try:
        return _unchecked(data)
    except UnidentifiedImageError as cause:
        raise NotReadError(f"it is none of {', '.join(FORMATS)}") from cause


# To be replaced by a module per format.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")


def _unchecked(data: bytes) -> Stored:
    warnings.simplefilter("ignore", Image.DecompressionBombWarning, append=True)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return Stored(
            layout=Layout(image.format or "", image.mode, ""),
            width=image.width,
            height=image.height,
            data=data,
            open=lambda stream: Image.open(stream, formats=FORMATS),
            modes=frozenset({image.mode}),
            to_rgb=convert.to_rgb,
            memory=8 * image.width * image.height,
            orientation=orientation_of(image),
        )
