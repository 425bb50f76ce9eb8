"""The formats that are read: what each file says of itself, and the table of all layouts."""

from collections.abc import Callable

from drexperts.runtime.decoding import avif, bmp, gif, heif, jpeg, jpeg_2000, png, pnm, tiff, webp
from drexperts.runtime.decoding.kinds import READ, kind_of
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
    "HEIF": heif.inspect,
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
    *avif.LAYOUTS,
    *heif.LAYOUTS,
)
