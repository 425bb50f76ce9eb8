"""The rate of long work and the time that is left."""

import pytest

from drexperts.ui.pace import Pace, duration, per_second


def test_rate_and_time_left() -> None:
    pace = Pace()
    pace.report("scoring", 0, 0.0)
    assert pace.text(0, 100) == "0 of 100"
    pace.report("scoring", 25, 10.0)
    assert pace.text(25, 100) == "25 of 100, 2.5/s, 30 s left"
    pace.report("scoring", 50, 20.0)
    assert pace.text(50, None) == "50 done, 2.5/s"


def test_the_rate_follows_the_work() -> None:
    pace = Pace()
    for now, done in enumerate([*range(100), *range(100, 1000, 10)]):
        pace.report("scoring", done, float(now))
    assert pace.rate == 10


def test_another_phase_begins_anew() -> None:
    pace = Pace()
    pace.report("scoring", 0, 0.0)
    pace.report("scoring", 9, 1.0)
    for phase, done in (("merging", 9), ("scoring", 9), ("scoring", 3)):
        pace.report(phase, done, 2.0)
        assert pace.rate is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min 0 s"),
        (352, "5 min 52 s"),
        (12_000, "3 h 20 min"),
        (356_400, "4 d 3 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rates() -> None:
    assert [per_second(rate) for rate in (0.01234, 2.5, 123.4, 12_345.6)] == [
        "0.0123/s",
        "2.5/s",
        "123/s",
        "12346/s",
    ]
