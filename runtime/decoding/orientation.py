"""The orientation that a file's metadata give, and how an image is turned upright."""

import re
import struct

from PIL import Image

# Metadata beyond this are not searched: an orientation stands at their beginning.
MOST_BYTES = 2**20

_TAG = 0x0112
_SHORT, _LONG = 3, 4
_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation_from(exif: bytes | None, xmp: bytes | None) -> int:
    """The orientation, 1 to 8, of EXIF, else of XMP, else 1. Damaged metadata give none."""
    for value in (_from_exif(exif or b""), _from_xmp(xmp or b"")):
        if value is not None:
            return value if value in _METHODS else 1
    return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _METHODS.get(orientation)
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info = {}  # its metadata would turn the image again
    return turned


def orientation_of(image: Image.Image) -> int:
    """The orientation of a PIL image that somebody else opened."""
    try:
        orientation = image.getexif().get(_TAG, 1)
        return orientation if orientation in _METHODS else 1
    # A photograph with damaged metadata is still a photograph, whatever Pillow raises.
    except Exception:
        return 1


def _from_exif(exif: bytes) -> int | None:
    """The value in the first directory of a TIFF, of which EXIF consists."""
    tiff = re.sub(rb"^(Exif\0\0){1,2}", b"", exif[:MOST_BYTES])
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", tiff, entry)
            if tag == _TAG and values == 1 and kind in (_SHORT, _LONG):
                format = order + ("H" if kind == _SHORT else "I")
                return int(struct.unpack_from(format, tiff, entry + 8)[0])
    except struct.error:  # cut off
        pass
    return None


def _from_xmp(xmp: bytes) -> int | None:
    found = _IN_XMP.search(xmp[:MOST_BYTES])
    return int(found[1]) if found else None
