"""Decoding in processes of their own, with limits of memory and time, whose death costs one image.

The parent reads files but no byte of an image: what is in them is seen by the workers only. What a
worker answers is checked, because a decoder may have been taken over by the image.
"""

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal

import numpy as np
from PIL import Image

from drexperts.runtime.decoding.decoders import LocalDecoder
from drexperts.runtime.decoding.image import Source, encoded, errors_of
from drexperts.runtime.decoding.limits import DEFAULT_LIMITS, PIXELS, DecodingLimits
from drexperts.runtime.decoding.stored import DecoderFailure, NotReadError
from drexperts.runtime.decoding.worker import EndOfInput, read, read_into, write, write_bytes
from drexperts.runtime.errors import UserError
from drexperts.runtime.forks import renew_in_children
from drexperts.runtime.preprocess import (
    Crops,
    Preprocessing,
    crop_boxes,
    resized_size,
)
from drexperts.runtime.wording import remedy

_MOST = 256  # processes
_START = 60  # seconds, for Python and two libraries
# A worker's limit is of processor time, which a busy machine does not change. This many times as
# long by the clock ends one that hangs.
_PATIENCE = 10
_DYING = 5  # seconds
_TICK = 0.25  # seconds
_CHUNK = 2**20  # bytes
# With the parent's path in place of its own, the worker imports what the parent imported.
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from drexperts.runtime.decoding.worker import main; main(sys.argv[2] == 'drx')"
)
# A thread of a numeric library takes memory, and one image is the work of one core.
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class IsolatedDecoder:
    """Decodes files and bytes in `count` processes, which are started when they are needed.

    An image that crashes its decoder, or takes more memory or time than the limits allow, raises
    DecoderFailedError, and the next image gets a new process. The settings and plugins of Pillow in
    this process do not matter there. PIL images and arrays are converted in this process.

    Linux bounds the memory of a worker; elsewhere only the budget and the limit of time hold.

    Raises UserError for a `count` that is not a whole number from 1 to 256.
    """

    isolated = True

    def __init__(
        self, spec: Preprocessing, limits: DecodingLimits = DEFAULT_LIMITS, count: int = 2
    ) -> None:
        if type(count) is not int or not 1 <= count <= _MOST:
            name = remedy("--decoders", "decoders")
            raise UserError(f"{name} must be a whole number from 1 to {_MOST}, got {count!r:.80}")
        self.spec = spec
        self.limits = limits
        self.count = count
        self._local = LocalDecoder(spec, limits)
        self._closed = False
        self._running: set[_Worker] = set()
        self._prepare_slots()
        self._end = weakref.finalize(self, _stop_all, self._running)
        renew_in_children(self)

    def crops(self, source: Source) -> Crops:
        """See `Decoder`."""
        if isinstance(source, (Image.Image, np.ndarray)):
            return self._local.crops(source)
        with errors_of(source):
            original, pixels = self._ask(source, "crops")
            size = resized_size(*original, self.spec)
            boxes = crop_boxes(size, self.spec)
            shape = (len(boxes), 3, self.spec.crop, self.spec.crop)
            return Crops(np.frombuffer(pixels, np.uint8).reshape(shape), boxes, size, original)

    def resized(self, source: Source) -> Image.Image:
        """See `Decoder`."""
        if isinstance(source, (Image.Image, np.ndarray)):
            return self._local.resized(source)
        with errors_of(source):
            original, pixels = self._ask(source, "resized")
            size = resized_size(*original, self.spec)
            return Image.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1)

    def close(self) -> None:
        """See `Decoder`. It ends images that are being decoded, whose scores nobody waits for."""
        self._closed = True
        for worker in tuple(self._running):
            worker.process.kill()
        self._stop_idle()

    def after_fork(self) -> None:
        """The workers are the parent's; a child starts its own."""
        for worker in self._running:
            worker.abandon()
        self._running.clear()
        self._prepare_slots()

    def __reduce__(self) -> tuple[Any, ...]:
        return IsolatedDecoder, (self.spec, self.limits, self.count)

    def _prepare_slots(self) -> None:
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.count):
            self._slots.put(None)

    def _ask(
        self, source: Source, wants: Literal["crops", "resized"]
    ) -> tuple[tuple[int, int], bytearray]:
        """The size of the image before it is resized, and the pixels."""
        request = {
            "wants": wants,
            "spec": dataclasses.asdict(self.spec),
            "limits": dataclasses.asdict(self.limits),
        }
        with encoded(source, self.limits) as (length, stream), self._worker() as worker:
            watch = _Watch(worker.process, _PATIENCE * self.limits.seconds)
            with worker.exchange(watch):
                worker.send(request | {"size": length}, stream, length)
                memory = worker.memory()
            # The wait for others does not count as this image's time.
            with PIXELS.reserved(memory, self.limits.for_pixels), worker.exchange(watch):
                worker.send({})
                original = worker.size(self.limits)
                pixels = worker.receive(self._bytes(original, wants))
            worker.lost = watch.expired
            return original, pixels

    def _bytes(self, original: tuple[int, int], wants: Literal["crops", "resized"]) -> int:
        size = resized_size(*original, self.spec)
        if wants == "resized":
            return 3 * size[0] * size[1]
        return 3 * self.spec.crop**2 * len(crop_boxes(size, self.spec))

    @contextmanager
    def _worker(self) -> Iterator["_Worker"]:
        slots = self._slots
        worker = slots.get()
        try:
            self._check_open()
            if worker is None:
                worker = _Worker()
                self._running.add(worker)
                worker.wait_until_ready()
            worker.lost = True
            yield worker
        except DecoderFailure:
            self._check_open()
            raise
        finally:
            if worker is not None and worker.lost:
                self._running.discard(worker)
                worker.stop()
                worker = None
            slots.put(worker)
            if self._closed:
                self._stop_idle()

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("this decoder is closed")

    def _stop_idle(self) -> None:
        for _ in range(self.count):
            try:
                worker = self._slots.get_nowait()
            except queue.Empty:
                return
            if worker is not None:
                self._running.discard(worker)
                worker.stop()
            self._slots.put(None)


class _Worker:
    """A process that decodes one image after another.

    lost: whether it can no longer be used; so it is between a request and the whole answer
    """

    def __init__(self) -> None:
        if not sys.executable or getattr(sys, "frozen", False):
            raise UserError(f"there is no Python to start for decoding: {_in_process()}")
        path = json.dumps([os.path.abspath(folder) for folder in sys.path])
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-c", _CODE, path, remedy("drx", "python")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what decoders print about damaged files
                bufsize=0,  # a forked child must not write again what its parent has buffered
                env=os.environ | dict.fromkeys(_ONE_THREAD, "1"),
            )
        except OSError as cause:
            raise _not_started(str(cause)) from cause
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._requests: IO[bytes] = self.process.stdin
        self._answers: IO[bytes] = self.process.stdout
        self.lost = True

    def wait_until_ready(self) -> None:
        """Raises UserError if it does not start."""
        try:
            with _Watch(self.process, _START):
                read(self._answers)
        except (EndOfInput, ValueError) as cause:
            self.process.kill()
            status = self.process.wait()
            raise _not_started(f"{sys.executable} ended with status {status}") from cause

    def send(self, message: dict[str, Any], file: IO[bytes] | None = None, length: int = 0) -> None:
        """A message, and `length` bytes of a file."""
        write(self._requests, message)
        while length:
            assert file is not None
            chunk = _read(file, min(length, _CHUNK))
            write_bytes(self._requests, memoryview(chunk))
            length -= len(chunk)

    def memory(self) -> int:
        """The bytes that it is going to take."""
        value = self._message()["memory"]
        if type(value) is not int or value < 0:
            raise ValueError("not a number of bytes")
        return value

    def size(self, limits: DecodingLimits) -> tuple[int, int]:
        """The size of the image before it is resized, which is within the limits."""
        width, height = self._message()["size"]
        if not all(type(side) is int and side >= 1 for side in (width, height)):
            raise ValueError("not a size")
        if width * height > limits.max_pixels:
            raise ValueError("not a size that is decoded")
        return width, height

    def receive(self, count: int) -> bytearray:
        """So many bytes."""
        return read_into(self._answers, bytearray(count))

    def _message(self) -> dict[str, Any]:
        message = read(self._answers)
        if "error" in message:
            raise _Refusal(bool(message["failed"]), str(message["error"]))
        return message

    @contextmanager
    def exchange(self, watch: "_Watch") -> Iterator[None]:
        """Messages that fit the protocol, in time; otherwise DecoderFailure says what happened.

        Raises NotReadError for an image that it cannot read.
        """
        try:
            with watch:
                yield
        except _Refusal as refusal:
            self.lost = watch.expired
            failed, reason = refusal.args
            raise (DecoderFailure if failed else NotReadError)(reason) from None
        except NotReadError:
            raise
        except (ValueError, LookupError, TypeError) as cause:
            raise DecoderFailure("its decoder gave an answer without sense") from cause
        except (EndOfInput, OSError) as cause:
            raise DecoderFailure(self._cause_of_death(watch)) from cause

    def _cause_of_death(self, watch: "_Watch") -> str:
        try:
            status = self.process.wait(_DYING)
        except subprocess.TimeoutExpired:  # it only closed its pipes
            return "its decoder gave no answer"
        if watch.expired or status == -_signal("SIGXCPU"):
            return (
                "decoding it takes too long: reduce it, or raise "
                f"{remedy('--decode-seconds', 'DecodingLimits.seconds')}"
            )
        if status == -_signal("SIGKILL"):
            return "its decoder was killed, as the system does when memory is full"
        if status < 0:
            return f"its decoder crashed ({signal.Signals(-status).name})"
        return f"its decoder ended with status {status}"

    def stop(self) -> None:
        """End it; it has nothing to lose."""
        self.process.kill()
        self.process.wait()
        self.abandon()

    def abandon(self) -> None:
        """Close this process's ends of its pipes."""
        self._requests.close()
        self._answers.close()
        self.process.returncode = self.process.returncode or 0  # it is not this process's to wait


class _Refusal(Exception):  # noqa: N818 - a worker's answer
    """An image that a worker cannot read: whether memory ran out, and the reason."""


class _Watch:
    """Kills a process that takes longer than `seconds` inside the `with` statements of this object.

    It counts ticks, so that a time for which both processes were suspended does not count.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", seconds: int) -> None:
        self.expired = False
        self._process = process
        self._left = float(seconds)

    def __enter__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._count, name="drexperts-watch", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()  # from here on it kills nothing

    def _count(self) -> None:
        while not self._done.wait(_TICK):
            self._left -= _TICK
            if self._left <= 0:
                self.expired = True
                self._process.kill()
                return


def _not_started(reason: str) -> UserError:
    return UserError(f"a process for decoding did not start: {reason}; {_in_process()}")


def _in_process() -> str:
    how = remedy("--decode-in-process of `drx score`", "isolated=False")
    return f"decode in this process instead: {how}"


def _read(file: IO[bytes] | None, most: int) -> bytes:
    assert file is not None
    try:
        chunk = file.read(most)
    except OSError as cause:
        raise NotReadError(str(cause)) from cause
    if not chunk:
        raise NotReadError("it was changed while it was read")
    return chunk


def _signal(name: str) -> int:
    return int(getattr(signal, name, 0))  # Windows lacks most of them


def _stop_all(workers: set[_Worker]) -> None:
    for worker in tuple(workers):
        worker.stop()
