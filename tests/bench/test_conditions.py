"""When a measurement ran and how busy its machine was, on made-up files of the kernel."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from drexperts.bench.conditions import Watch


def test_steal_is_a_share_of_all_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    #             user nice system idle iowait irq softirq steal guest guest_nice
    (tmp_path / "stat").write_text("cpu 1000 0 100 5000 0 0 0 10 500 0\n")
    watch = Watch()
    # 100 ticks of a guest are among the user's; 50 of 1000 were stolen.
    (tmp_path / "stat").write_text("cpu 1400 0 150 5450 50 0 0 60 600 0\n")
    assert watch.conditions().steal == pytest.approx(0.05)


def test_no_time_has_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    (tmp_path / "stat").write_text("cpu 1000 0 100 5000 0 0 0 10 500 0\n")
    assert Watch().conditions().steal == 0.0


def test_a_system_that_does_not_count_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times(tuple[float, ...]):
        _fields = ("user", "idle")

    def fails() -> Any:
        raise OSError

    monkeypatch.setattr(psutil, "cpu_times", lambda: Times((1.0, 2.0)))
    monkeypatch.setattr(psutil, "getloadavg", fails)
    found = Watch().conditions()
    assert (found.steal, found.load_before, found.loads) == (None, None, ())


def test_loads_and_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([0.5, 1.5, 2.5])
    monkeypatch.setattr(psutil, "getloadavg", lambda: (next(loads), 0.0, 0.0))
    before = datetime.now(UTC).replace(microsecond=0)
    watch = Watch()
    watch.look()
    found = watch.conditions()
    assert (found.load_before, found.loads) == (0.5, (1.5, 2.5))
    started = datetime.fromisoformat(found.started)
    assert started.utcoffset() is not None
    assert before <= started <= datetime.now(UTC)
    assert found.seconds >= 0
