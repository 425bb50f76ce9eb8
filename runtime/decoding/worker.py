"""The process that decodes images for `workers.IsolatedDecoder`: its standard input and output.

A message is a JSON object behind its length in four bytes; some are followed by bytes whose number
both sides know. For each image:

    parent: {"size": of the file, "wants": "crops" or "resized", "spec", "limits"}, and the file
    worker: {"memory": the most bytes that decoding takes}
    parent: {}, once they are free
    worker: {"size": (width, height) of the image before it is resized}, the pixels

In place of both of its messages the worker may send {"error": why the image cannot be read,
"failed": whether memory ran out}. It ends when its input does.
"""

import json
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from PIL import AvifImagePlugin, Image

from drexperts.runtime.decoding.image import memory_for, pixels_of, reason_of, stored_in
from drexperts.runtime.decoding.limits import PIXELS, DecodingLimits
from drexperts.runtime.decoding.stored import DecoderFailure
from drexperts.runtime.preprocess import Preprocessing, crops_from_image, resized
from drexperts.runtime.wording import speaking_drx

try:
    import resource
except ImportError:  # Windows: only the parent's limit of time holds
    resource = None  # type: ignore[assignment]

LONGEST_MESSAGE = 2**16  # bytes
_LENGTH = struct.Struct("<I")
_SLACK = 64 * 2**20  # bytes beside an image's own, for Python and for parts of pages


class EndOfInput(Exception):  # noqa: N818 - not an error
    """The other side closed its end."""


def write(stream: IO[bytes], message: dict[str, Any], *more: memoryview) -> None:
    """Send a message, and the bytes that follow it."""
    text = json.dumps(message).encode()
    for part in (memoryview(_LENGTH.pack(len(text)) + text), *more):
        write_bytes(stream, part)


def write_bytes(stream: IO[bytes], rest: memoryview) -> None:
    """Send bytes, of which an unbuffered stream may take a part at a time."""
    while rest:
        rest = rest[stream.write(rest) :]


def read(stream: IO[bytes]) -> dict[str, Any]:
    """Receive a message. Raises EndOfInput, and ValueError for what is not one."""
    (length,) = _LENGTH.unpack(read_into(stream, bytearray(_LENGTH.size)))
    if length > LONGEST_MESSAGE:
        raise ValueError("the message is too long")
    message = json.loads(read_into(stream, bytearray(length)))
    if not isinstance(message, dict):
        raise ValueError("the message is no object")
    return message


def read_into(stream: IO[bytes], buffer: bytearray) -> bytearray:
    """Fill a buffer. Raises EndOfInput."""
    rest = memoryview(buffer)
    while rest:
        count = stream.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise EndOfInput
        rest = rest[count:]
    return buffer


def main(speak_drx: bool = False) -> None:
    """Answer until the input ends.

    speak_drx: see `wording.speaking_drx`, for the messages about images
    """
    _harden()
    # Libraries that print must not write between messages.
    with (
        speaking_drx(speak_drx),
        os.fdopen(0, "rb", buffering=0) as requests,
        os.fdopen(os.dup(1), "wb", buffering=0) as answers,
    ):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        write(answers, {"ready": True})
        try:
            while True:
                _answer(requests, answers)
        except (EndOfInput, BrokenPipeError):
            pass


def _harden() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    Image.MAX_IMAGE_PIXELS = None  # the limits say how many
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread would take memory for itself


def _answer(requests: IO[bytes], answers: IO[bytes]) -> None:
    request = read(requests)
    limits = DecodingLimits(**request["limits"])
    spec = Preprocessing(**request["spec"])
    _limit_time(limits.seconds)
    _limit_memory(4 * request["size"])
    data = bytes(read_into(requests, bytearray(request["size"])))
    with _errors_sent(answers):
        stored = stored_in(data, limits)
        del data
        most = memory_for(stored, spec)
        PIXELS.check(most, limits.for_pixels)
        write(answers, {"memory": most})
        read(requests)
        _limit_memory(most)
        image = pixels_of(stored)
        if request["wants"] == "crops":
            crops = crops_from_image(image, spec)
            size, pixels = crops.original, crops.pixels
        else:
            size, pixels = image.size, np.asarray(resized(image, spec))
        write(answers, {"size": size}, pixels.data.cast("B"))


@contextmanager
def _errors_sent(answers: IO[bytes]) -> Iterator[None]:
    try:
        yield
    except (EndOfInput, BrokenPipeError):
        raise
    except Exception as cause:
        failed = isinstance(cause, (MemoryError, DecoderFailure))
        write(answers, {"error": reason_of(cause)[:1000], "failed": failed})


def _limit_time(seconds: int) -> None:
    """Allow so many more seconds of processor time; the kernel ends this process after them."""
    if resource is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds + 1, hard))


def _limit_memory(size: int) -> None:
    """Allow `size` more bytes than this process has now. Linux alone counts them."""
    if resource is not None and sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + size + _SLACK, hard))


def _data_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
