"""A fresh process's start, in its own process."""

import subprocess
import sys
from pathlib import Path

import pytest

from drexperts.bench import cold_start as measuring
from drexperts.bench.cold_start import cold_start
from drexperts.runtime.errors import InternalError, UserError


@pytest.mark.slow
def test_measured(toy_bundle: Path) -> None:
    cold, memory = cold_start(toy_bundle, 16, 1, None)
    assert min(cold.import_s, cold.load_s, cold.first_inference_s) > 0
    assert cold.resident_bytes
    assert cold.peak_bytes
    assert memory.host_peak_bytes
    assert 1e6 < cold.resident_bytes <= cold.peak_bytes <= memory.host_peak_bytes
    assert memory.device_bytes is None


def test_nothing_of_ours_is_imported_before_the_clock_runs() -> None:
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); "
        "assert not [name for name in sys.modules if name.startswith('drexperts')]"
    )
    subprocess.run([sys.executable, "-P", "-c", code, measuring.__file__], check=True)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=tmp_path.name):
        cold_start(tmp_path, 1, 1, None)


@pytest.mark.parametrize(
    ("code", "error", "named"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            UserError,
            "signal 9",
        ),
        ("import os; os._exit(7)", UserError, "status 7"),
        ("raise ValueError('of ours')", InternalError, "ValueError: of ours"),
    ],
)
def test_a_process_that_fails(
    code: str, error: type[Exception], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(error, match=named):
        cold_start(Path("bundle"), 1, 1, None)


def test_a_mistake_keeps_all_its_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise UserError("two lines:\nthis: and that")

    monkeypatch.setattr(measuring, "_measured", refused)
    status = measuring._main("bundle", "1", "1", "", "")
    ended = subprocess.CompletedProcess("", status, capsys.readouterr().out, "")
    assert str(measuring._failure(ended)) == "two lines:\nthis: and that"


def test_the_import_that_is_timed_brings_what_loading_needs() -> None:
    code = "import sys; from drexperts.runtime import load; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert {"numpy", "PIL.Image", "drexperts.runtime.scorer"} <= set(done.stdout.split())
