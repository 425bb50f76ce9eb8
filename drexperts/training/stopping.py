"""Stopping where it is safe: SIGTERM and Ctrl-C as a request, not as an end."""

import signal as signals
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Of one Ctrl-C a process of `torchrun` hears twice: from the terminal and from the agent.
_ECHO_SECONDS = 2.0


class StopRequest:
    """Whether the process was asked to stop, and by which signal."""

    signal: int | None = None
    at: float = 0.0  # time.monotonic()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take SIGTERM and the first Ctrl-C as requests; a Ctrl-C two seconds later interrupts at once.

    Only the main thread can; in another the signals do what they did before.
    """
    request = StopRequest()

    def take(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if request.signal is None:
            request.signal, request.at = number, now
        elif number == signals.SIGINT and now - request.at >= _ECHO_SECONDS:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    kept = {number: signals.signal(number, take) for number in (signals.SIGTERM, signals.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in kept.items():
            signals.signal(number, handler)
