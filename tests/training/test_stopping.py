"""Signals as requests."""

import os
import signal
import threading
import time
from types import FrameType

import pytest

from drexperts.training.stopping import stop_requests

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_recorded_and_does_not_end_anything(number: signal.Signals) -> None:
    with stop_requests() as request:
        assert request.signal is None
        os.kill(os.getpid(), number)
        assert request.signal == number


def test_the_handlers_are_as_before_also_after_an_error() -> None:
    def own(number: int, frame: FrameType | None) -> None:
        """Somebody else's handler."""

    before = [signal.signal(number, own) for number in SIGNALS]
    try:
        with stop_requests():
            assert own not in [signal.getsignal(number) for number in SIGNALS]
        assert [signal.getsignal(number) for number in SIGNALS] == [own, own]
        with pytest.raises(ZeroDivisionError), stop_requests():
            _ = 1 // 0
        assert [signal.getsignal(number) for number in SIGNALS] == [own, own]
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_two_seconds_after_a_request_interrupts_at_once(
    first: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with stop_requests() as request:
        os.kill(os.getpid(), first)
        now = 101.9
        os.kill(os.getpid(), signal.SIGINT)  # what torchrun's agent passes on
        assert request.signal == first
        now = 102.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == first


def test_a_second_termination_is_the_same_request() -> None:
    with stop_requests() as request:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM


def test_in_another_thread_nothing_is_changed() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[object] = []

    def work() -> None:
        with stop_requests() as request:
            seen.extend(signal.getsignal(number) for number in SIGNALS)
            seen.append(request.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [*before, None]
