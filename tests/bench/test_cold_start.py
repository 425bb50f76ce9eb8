"""A fresh process's start, in its own process."""

import subprocess
import sys
from pathlib import Path

import pytest

from drexperts.bench import cold_start as measuring
from drexperts.bench.cold_start import cold_start
from drexperts.runtime.errors import InternalError, UserError


def test_measured(toy_bundle: Path) -> None:
    found = cold_start(toy_bundle, 16, 1, None)
    cold, memory = found["cold_start"], found["memory"]
    assert min(cold["import_s"], cold["load_s"], cold["first_inference_s"]) > 0
    assert 1e6 < cold["resident_bytes"] <= cold["peak_bytes"] <= memory["host_peak_bytes"]
    assert memory["device_peak_bytes"] is None


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a bundle"):
        cold_start(tmp_path, 1, 1, None)


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            UserError,
            "ended by signal 9, most likely for want",
        ),
        ("import os; os._exit(7)", UserError, "ended by status 7, most likely for want"),
        ("raise ValueError('of ours')", InternalError, "ValueError: of ours.*is a bug"),
    ],
)
def test_a_process_that_fails(
    code: str, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(error, match=said):
        cold_start(Path("bundle"), 1, 1, None)


def test_a_mistake_keeps_all_its_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise UserError("two lines:\nthis: and that")

    monkeypatch.setattr(measuring, "_measured", refused)
    status = measuring._main("bundle", "1", "1", "")
    ended = subprocess.CompletedProcess("", status, capsys.readouterr().out, "")
    assert str(measuring._failure(ended)) == "two lines:\nthis: and that"


def test_memory_that_the_platform_does_not_tell(tmp_path: Path) -> None:
    assert measuring._resident_bytes(tmp_path / "none") is None
    status = tmp_path / "status"
    status.write_text("Name:\tpython\n")
    assert measuring._resident_bytes(status) is None
    status.write_text("VmRSS:\t  12 kB\n")
    assert measuring._resident_bytes(status) == 12 * 1024
