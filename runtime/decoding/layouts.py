"""The formats that are read: what each file says of itself, and the table of all layouts."""

import struct
from collections.abc import Callable

from drexperts.runtime.decoding.formats import (
    avif,
    bmp,
    gif,
    heif,
    jpeg,
    jpeg_2000,
    png,
    pnm,
    tiff,
    webp,
)
from drexperts.runtime.decoding.kinds import READ, kind_of, with_article
from drexperts.runtime.decoding.stored import Layout, NotReadError, Stored


def inspect(data: bytes) -> Stored:
    """What a file says of its picture. Raises NotReadError for what is not read."""
    if not data:
        raise NotReadError("it is empty")
    kind = kind_of(data)
    if kind is None:
        raise NotReadError(f"it is of an unknown format, not {' or '.join(FORMATS)}")
    if kind not in INSPECTORS:
        raise NotReadError(f"it is {kind}, which is not read ({', '.join(FORMATS)} are)")
    try:
        return INSPECTORS[kind](data)
    except NotReadError as cause:
        if kind in str(cause):
            raise
        raise NotReadError(f"{kind}: {cause}") from cause
    except (struct.error, LookupError, ValueError) as cause:  # of bytes that are not there
        raise NotReadError(f"{with_article(kind)} that is cut off or damaged") from cause


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
    "AVIF": avif.inspect,
    "HEIC": heif.inspect,
}
FORMATS = (*READ, "HEIC") if heif.available() else READ
LAYOUTS: tuple[Layout, ...] = (
    *jpeg.LAYOUTS,
    *png.LAYOUTS,
    *webp.LAYOUTS,
    *bmp.LAYOUTS,
    *gif.LAYOUTS,
    *pnm.LAYOUTS,
    *tiff.LAYOUTS,
    *jpeg_2000.LAYOUTS,
    *avif.LAYOUTS,
    *heif.LAYOUTS,
)
