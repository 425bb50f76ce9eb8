"""From a file, bytes, a PIL image or an array to an upright, opaque RGB image."""

import functools
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, features

from drexperts.runtime.decoding import convert, heif
from drexperts.runtime.decoding.layouts import inspect
from drexperts.runtime.decoding.limits import DEFAULT_LIMITS, FILES, PIXELS, DecodingLimits
from drexperts.runtime.decoding.orientation import orientation_of, upright
from drexperts.runtime.decoding.stored import NotReadError
from drexperts.runtime.errors import ImageError

Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

# Part of the fingerprint of scores: raised when this package reads other pixels from the same file.
READER = "drexperts reader 3"


def describe(source: Source) -> str:
    """A short name of a source, for messages and result rows."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, np.ndarray):
        return f"<array {source.dtype} {'x'.join(map(str, source.shape))}>"
    if isinstance(source, Image.Image):
        return f"<{source.mode} image {source.width}x{source.height}>"
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return f"<{type(source).__name__}>"


def decoder_version(source: Source | None = None) -> str:
    """What turns `source` into pixels, such as "Pillow 13.0.0, libjpeg-turbo 3.2.0".

    None stands for the encoded image in any file or bytes.
    """
    if isinstance(source, (Image.Image, np.ndarray)):
        return "caller's pixels"
    return _decoders()


def decode(source: Source, limits: DecodingLimits = DEFAULT_LIMITS) -> Image.Image:
    """The upright, opaque RGB image in `source`, as docs/concepts/preprocessing.md says.

    source: a path, the bytes of a file, a PIL image, or a uint8 array HxW, HxWx1, HxWx3 or HxWx4.
    Raises ImageError for everything else, and for an image beyond the limits.
    """
    try:
        return _decoded(source, limits)
    except Exception as cause:
        # On hostile bytes Pillow raises nearly anything: SyntaxError, struct.error, KeyError...
        reason = str(cause) or type(cause).__name__
        raise ImageError(f"cannot read {describe(source)} as an image: {reason}") from cause


@functools.cache
def _decoders() -> str:
    turbo = features.version("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
    # The other lossy formats, which another release may decode differently.
    others = [f"{name} {features.version(name)}" for name in ("jpg_2000", "webp", "avif")]
    if of_heif := heif.decoder():
        others.append(of_heif)
    return ", ".join([READER, f"Pillow {features.version('pil')}", jpeg, *others])


def _decoded(source: Source, limits: DecodingLimits) -> Image.Image:
    if isinstance(source, np.ndarray):
        return convert.to_rgb(_image_from_array(source, limits))
    if isinstance(source, Image.Image):
        return _image_of_caller(source, limits)
    if isinstance(source, bytes):
        return _decoded_bytes(source, limits)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError("give a path, bytes, a PIL image, a uint8 array, or a list of them")
    with _read(source, limits) as data:
        return _decoded_bytes(data, limits)


@contextmanager
def _read(path: str | os.PathLike[str], limits: DecodingLimits) -> Iterator[bytes]:
    """The bytes of a file, which count against the budget."""
    with _opened(path) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise NotReadError("it is no file")
        with FILES.reserved(status.st_size, limits.for_files):
            yield stream.read(status.st_size)


def _opened(path: str | os.PathLike[str]) -> IO[bytes]:
    try:
        return open(path, "rb", opener=_open_without_waiting)
    except IsADirectoryError as cause:
        raise NotReadError("it is no file") from cause
    except (FileNotFoundError, NotADirectoryError, ValueError) as cause:  # such as "a\0b"
        raise NotReadError("there is no such file") from cause


def _open_without_waiting(path: str, flags: int) -> int:
    """Opening a pipe would wait for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _decoded_bytes(data: bytes, limits: DecodingLimits) -> Image.Image:
    stored = inspect(data)
    _check_size(stored.width, stored.height, limits)
    with PIXELS.reserved(stored.memory + len(stored.data), limits.for_pixels):
        _check_whole()
        image = stored.open(io.BytesIO(stored.data))
        if image.mode not in stored.modes or image.size != (stored.width, stored.height):
            raise NotReadError(
                f"Pillow reads {image.mode} {image.width}x{image.height} where the file says "
                f"{stored.layout.samples} {stored.width}x{stored.height}"
            )
        image.load()
        _check_whole()
        image = stored.to_rgb(image)  # the decoded form is freed before it is turned upright
        return upright(image, stored.orientation)


def _check_whole() -> None:
    """Refuse to decode while the application lets Pillow pass a cut-off picture for a whole one."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise NotReadError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so that a damaged picture "
            "would be read as a whole one: set it to False"
        )


def _image_of_caller(image: Image.Image, limits: DecodingLimits) -> Image.Image:
    _check_size(*image.size, limits)
    image.load()
    return convert.to_rgb(upright(image, orientation_of(image)))


def _image_from_array(array: NDArray[np.uint8], limits: DecodingLimits) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    has_channels = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not (array.ndim == 2 or has_channels):
        raise NotReadError(
            "an array is one image: uint8, HxW, HxWx1, HxWx3 or HxWx4; give several as a list"
        )
    _check_size(array.shape[1], array.shape[0], limits)
    return Image.fromarray(array)


def _check_size(width: int, height: int, limits: DecodingLimits) -> None:
    if width < 1 or height < 1:
        raise NotReadError("it has no pixels")
    if width * height > limits.max_pixels:
        raise NotReadError(
            f"{width}x{height} is more than {limits.max_pixels} pixels; reduce it first"
        )
