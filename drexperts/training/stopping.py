"""SIGTERM and Ctrl-C as requests, so that the work can stop at a safe place."""

import signal as signals
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Under torchrun, one Ctrl-C reaches each process twice: from the terminal and from the agent.
_ECHO_SECONDS = 2.0


class StopRequest:
    """The signal that asked the process to stop, None so far."""

    signal: int | None = None
    at: float = 0.0  # time.monotonic()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record SIGTERM or the first Ctrl-C; a Ctrl-C at least two seconds later interrupts at once.

    Only the main thread can handle signals; in any other thread this changes nothing.
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
