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

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.formats import heif
from drexperts.runtime.decoding.kinds import with_article
from drexperts.runtime.decoding.layouts import inspect
from drexperts.runtime.decoding.limits import DEFAULT_LIMITS, FILES, PIXELS, DecodingLimits
from drexperts.runtime.decoding.orientation import orientation_of, upright
from drexperts.runtime.decoding.stored import DecoderFailure, NotReadError, Stored
from drexperts.runtime.errors import DecoderFailedError, DrexpertsError, ImageError
from drexperts.runtime.forks import ForkSafeLock
from drexperts.runtime.preprocess import Preprocessing, resizing_memory

Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

# Part of the fingerprint of scores: raised when this package reads other pixels from the same file.
READER = "drexperts reader 3"

# Pillow points to each row, and pads it: 12 bytes, in up to three images at once. It matters where
# rows have few pixels, also after they are turned.
_PER_ROW = 36

# Loading a lazy PIL image moves in its file: two threads that share one would read nonsense.
_LOADING = ForkSafeLock()


def describe(source: object) -> str:
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
    with errors_of(source), decoded(source, limits) as image:
        return image


@contextmanager
def errors_of(source: Source) -> Iterator[None]:
    """Turn whatever reading an image raises into ImageError, which names the source."""
    try:
        yield
    except DrexpertsError:
        raise
    except Exception as cause:
        # On hostile bytes Pillow raises nearly anything: SyntaxError, struct.error, KeyError...
        failed = isinstance(cause, (MemoryError, DecoderFailure))
        kind = DecoderFailedError if failed else ImageError
        raise kind(f"cannot read {describe(source)} as an image: {reason_of(cause)}") from cause


def reason_of(cause: Exception) -> str:
    """Why an image cannot be read, in words."""
    if isinstance(cause, MemoryError):
        return "decoding it takes more memory than there is for it"
    return str(cause) or type(cause).__name__


@contextmanager
def decoded(
    source: Source, limits: DecodingLimits, spec: Preprocessing | None = None
) -> Iterator[Image.Image]:
    """The image that `decode` returns, within the budget until the end of the `with`.

    spec: how the image is going to be resized, which counts against the budget
    """
    if isinstance(source, (Image.Image, np.ndarray)):
        size = _size_of_array(source) if isinstance(source, np.ndarray) else source.size
        _check_size(*size, limits)
        with PIXELS.reserved(memory_of(*size, spec), limits.for_pixels):
            yield _image_of_caller(source)
        return
    with encoded(source, limits) as (length, stream):
        stored = stored_in(stream.read(length), limits)
        with PIXELS.reserved(memory_for(stored, spec), limits.for_pixels):
            yield pixels_of(stored)


@functools.cache
def _decoders() -> str:
    turbo = features.version("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
    # The other lossy formats, which another release may decode differently.
    others = [f"{name} {features.version(name)}" for name in ("jpg_2000", "webp", "avif")]
    if of_heif := heif.decoder():
        others.append(of_heif)
    return ", ".join([READER, f"Pillow {features.version('pil')}", jpeg, *others])


@contextmanager
def encoded(source: Source, limits: DecodingLimits) -> Iterator[tuple[int, IO[bytes]]]:
    """The size of a file or of bytes, which counts against the budget, and a stream of them."""
    if isinstance(source, bytes):
        opened: IO[bytes] = io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        opened = _opened(source)
    else:
        raise TypeError("give a path, bytes, a PIL image, a uint8 array, or a list of them")
    with opened as stream:
        size = len(source) if isinstance(source, bytes) else _size(stream)
        with FILES.reserved(size, limits.for_files):
            yield size, stream


def _size(stream: IO[bytes]) -> int:
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise NotReadError("it is no file")
    return status.st_size


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


def stored_in(data: bytes, limits: DecodingLimits) -> Stored:
    """What the bytes of a file say of its picture. Raises NotReadError, for too many pixels too."""
    stored = inspect(data)
    _check_size(stored.width, stored.height, limits)
    return stored


def memory_of(width: int, height: int, spec: Preprocessing | None) -> int:
    """The most bytes that an image takes once it is decoded, until its crops are cut.

    Pillow keeps an RGB pixel in four bytes. There are two copies while the image is converted or
    turned upright.
    """
    again = 4 * width * height if spec is None else resizing_memory(width, height, spec)
    return 4 * width * height + max(4 * width * height, again)


def memory_for(stored: Stored, spec: Preprocessing | None) -> int:
    """The most bytes that a picture takes from its decoder to its crops.

    What the decoder reads is not among them: it replaced the file, which has its own reservation.
    """
    rows = _PER_ROW * max(stored.width, stored.height)
    return max(stored.memory, memory_of(stored.width, stored.height, spec)) + rows


def pixels_of(stored: Stored) -> Image.Image:
    """The upright RGB image; its decoded form is freed before it is turned upright."""
    _check_whole()
    with _damage_named(stored):
        image = stored.open(io.BytesIO(stored.data))
    if image.mode not in stored.modes or image.size != (stored.width, stored.height):
        raise NotReadError(
            f"Pillow reads {image.mode} {image.width}x{image.height} where the file says "
            f"{stored.layout.samples} {stored.width}x{stored.height}"
        )
    with _damage_named(stored):
        image.load()
    _check_whole()
    image = stored.to_rgb(image)
    return upright(image, stored.orientation)


@contextmanager
def _damage_named(stored: Stored) -> Iterator[None]:
    """Decoders do not say what they read: "unrecognized data stream contents"."""
    try:
        yield
    except (NotReadError, MemoryError):
        raise
    except Exception as cause:  # whatever Pillow raises on hostile bytes
        raise NotReadError(
            f"{with_article(stored.layout.format)} whose pixels are damaged ({reason_of(cause)})"
        ) from cause


def _check_whole() -> None:
    """Refuse to decode while the application lets Pillow pass a cut-off picture for a whole one."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise NotReadError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so that a damaged picture "
            "would be read as a whole one: set it to False"
        )


def _image_of_caller(source: Image.Image | NDArray[np.uint8]) -> Image.Image:
    if isinstance(source, np.ndarray):
        grey = source.ndim == 3 and source.shape[2] == 1
        return convert.to_rgb(Image.fromarray(source[:, :, 0] if grey else source))
    with _LOADING:
        _load(source)
        orientation = orientation_of(source)
    return upright(convert.to_rgb(source), orientation)


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as cause:
        stream = getattr(image, "fp", None)
        if stream is None or getattr(stream, "closed", False):
            raise NotReadError(
                "it was closed before its pixels were read: call its load() before, or give the "
                "file's path"
            ) from cause
        raise


def _size_of_array(array: NDArray[np.uint8]) -> tuple[int, int]:
    has_channels = array.ndim == 3 and array.shape[2] in (1, 3, 4)
    if array.dtype != np.uint8 or not (array.ndim == 2 or has_channels):
        raise NotReadError(
            "an array is one image: uint8, HxW, HxWx1, HxWx3 or HxWx4; give several as a list"
        )
    return array.shape[1], array.shape[0]


def _check_size(width: int, height: int, limits: DecodingLimits) -> None:
    if width < 1 or height < 1:
        raise NotReadError("it has no pixels")
    if width * height > limits.max_pixels:
        raise NotReadError(
            f"{width}x{height} is more than {limits.max_pixels} pixels; reduce it first"
        )
