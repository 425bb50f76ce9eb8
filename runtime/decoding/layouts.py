"""The formats that are read: what each file says of itself, and the table of all layouts."""

import io
import warnings
from collections.abc import Callable

from PIL import Image

from drexperts.runtime.decoding import bmp, convert, gif, jpeg, jpeg_2000, png, pnm, tiff, webp
from drexperts.runtime.decoding.kinds import READ, kind_of
from drexperts.runtime.decoding.orientation import orientation_of, upright
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored


def inspect(data: bytes) -> Stored:
    """What a file says of its picture. Raises NotReadError for what is not read."""
    if not data:
        raise NotReadError("it is empty")
    kind = kind_of(data)
    if kind is None:
        raise NotReadError(f"its first bytes are of no format that is read ({', '.join(FORMATS)})")
    if kind not in INSPECTORS:
        raise NotReadError(f"it is {kind}, which is not read ({', '.join(FORMATS)} are)")
    return INSPECTORS[kind](data)


def _unchecked(data: bytes) -> Stored:
    """To be replaced by a module for each format."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning, append=True)
    formats = ("AVIF",)
    with Image.open(io.BytesIO(data), formats=formats) as image:
        return Stored(
            layout=Layout(image.format or "", image.mode, ""),
            width=image.width,
            height=image.height,
            data=data,
            open=lambda stream: Image.open(stream, formats=formats),
            modes=frozenset({image.mode}),
            # Of a TIFF, loading has turned the image already, and forgotten its orientation.
            to_rgb=lambda image: convert.to_rgb(upright(image, orientation_of(image))),
            memory=8 * image.width * image.height,
        )


# By what `kinds.kind_of` calls a file.
INSPECTORS: dict[str, Callable[[bytes], Stored]] = {
    "JPEG": jpeg.inspect,
    "PNG": png.inspect,
    "WebP": webp.inspect,
    "BMP": bmp.inspect,
    "GIF": gif.inspect,
    "PNM": pnm.inspect,
    "TIFF": tiff.inspect,
    "JPEG 2000": jpeg_2000.inspect,
    "AVIF": _unchecked,
}
FORMATS = READ
LAYOUTS: tuple[Layout, ...] = (
    *jpeg.LAYOUTS,
    *png.LAYOUTS,
    *webp.LAYOUTS,
    *bmp.LAYOUTS,
    *gif.LAYOUTS,
    *pnm.LAYOUTS,
    *tiff.LAYOUTS,
    *jpeg_2000.LAYOUTS,
)
