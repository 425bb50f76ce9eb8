"""Stopping where it is safe: SIGTERM and Ctrl-C as a request, not as an end."""

import signal as signals
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether the process was asked to stop, and by which signal."""

    signal: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take SIGTERM and the first Ctrl-C as requests; a second Ctrl-C interrupts at once.

    Only the main thread can; in another the signals do what they did before.
    """
    request = StopRequest()

    def take(number: int, frame: FrameType | None) -> None:
        if number == signals.SIGINT and request.signal is not None:
            raise KeyboardInterrupt
        request.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    kept = {number: signals.signal(number, take) for number in (signals.SIGTERM, signals.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in kept.items():
            signals.signal(number, handler)
