"""The parts of the GPU suite, its summary and its command, as far as they need no GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.waiting import PATIENCE, until

from drexperts.bench.provenance import this_machine, this_source
from drexperts.benchmarks import gpu_parts
from drexperts.benchmarks.gpu_parts import (
    KILLED,
    LATE,
    STOPPED,
    Outcome,
    Part,
    Summary,
    last_words,
    run_part,
    run_parts,
)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Found on PYTHONPATH at start: makes a library one that is not installed.
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


@dataclass(frozen=True)
class Scripted(Part):
    """A part that is a few lines of Python, with the receipt's path as `path`."""

    script: str = ""

    def command(self, receipt: Path, seconds: float) -> list[str]:
        return ["-c", f"import pathlib; path = pathlib.Path({str(receipt)!r})\n{self.script}"]


def scripted(script: str) -> Scripted:
    return Scripted("kernels", trial=True, script=script)


WRITE = "path.write_text('{}')"


def status(*outcomes: Outcome) -> int:
    return summary(*outcomes).status


def summary(*outcomes: Outcome, trial: bool = True) -> Summary:
    return Summary(trial, this_machine(), this_source("drexperts.kernels"), (), outcomes)


def test_a_part_that_passes(tmp_path: Path) -> None:
    outcome = run_part(scripted(f"{WRITE}; print('a table')"), tmp_path, 60)
    assert (outcome.state, outcome.why) == ("passed", None)
    assert outcome.receipt == "kernels-trial.json"
    assert status(outcome, Outcome("paper", "left out")) == 0
    page = "\n".join(summary(outcome).markdown(tmp_path))
    assert page.startswith("# TRIAL on a CPU")
    assert "a table" in page


ARGUMENTS = "-c: error: unrecognized arguments: --x"


@pytest.mark.parametrize(
    ("script", "why", "expected"),
    [
        ("print('FAILED b'); raise SystemExit(1)", "FAILED b", 1),
        (f"{WRITE}; raise RuntimeError('CUDA error')", "RuntimeError: CUDA error", 1),
        ("print('x'); raise MemoryError('out of memory')", "MemoryError: out of memory", 1),
        ("import argparse; argparse.ArgumentParser().parse_args(['--x'])", ARGUMENTS, 1),
        ("import no_such_library", "no_such_library is not installed", 2),
        ("raise SystemExit(3)", "it printed nothing", 2),
    ],
)
def test_a_part_that_does_not_pass_says_why(
    tmp_path: Path, script: str, why: str, expected: int
) -> None:
    outcome = run_part(scripted(script), tmp_path, 60)
    assert outcome.why == why
    assert status(outcome) == expected
    assert f": {why}" in "\n".join(summary(outcome).markdown(tmp_path))


@pytest.fixture
def time_is_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A part's time is up once it has written this file, however slow the machine is."""
    mark, wait = tmp_path / "ready", subprocess.Popen.wait

    def wait_for_mark(process: subprocess.Popen[Any], timeout: float | None = None) -> int:
        while timeout is not None and process.poll() is None:
            if mark.exists() and mark.read_text():
                raise subprocess.TimeoutExpired(process.args, timeout)
            time.sleep(0.01)
        return wait(process)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_mark)
    return mark


def test_a_killed_part_leaves_what_it_had_written_and_no_process(
    tmp_path: Path, time_is_up: Path
) -> None:
    script = (
        f"{WRITE}; print('half a table', flush=True)\n"
        "import signal, subprocess, sys\n"
        "sleeper = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        f"pathlib.Path({str(time_is_up)!r}).write_text(str(sleeper.pid))\n"
        "signal.pause()"
    )
    outcome = run_part(scripted(script), tmp_path, 60)
    assert (outcome.receipt, outcome.why) == ("kernels-trial.json", KILLED)
    assert status(outcome) == 1
    assert "half a table" in "\n".join(summary(outcome).markdown(tmp_path))
    sleeper = int(time_is_up.read_text())
    until(lambda: not _alive(sleeper))  # its end is the kernel's work, which takes a moment


def _alive(process: int) -> bool:
    """Whether it runs; what is dead may wait for its parent."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_time_is_shared_and_what_it_does_not_reach_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def note(part: Part, out: Path, seconds: float) -> Outcome:
        given[part.name] = seconds
        return Outcome(part.name, "passed")

    monkeypatch.setattr(gpu_parts, "run_part", note)
    parts = [Part(name, trial=True) for name in gpu_parts.SHARES]
    list(run_parts(parts, tmp_path, 100))
    assert given["kernels"] == pytest.approx(35, abs=1)
    assert given["paper"] == pytest.approx(100, abs=1)  # the others left all of it
    assert [outcome.why for outcome in run_parts(parts, tmp_path, 5)] == [LATE] * 3


def test_commands_of_parts() -> None:
    real, trial = (Part("official", trial) for trial in (False, True))
    assert (real.receipt, trial.receipt) == ("model-official-gpu.json", "model-official-trial.json")
    assert "cpu" not in real.command(Path("r"), 60)
    assert trial.command(Path("r"), 60)[-3:] == ["--device", "cpu", "--quick"]
    assert real.command(Path("r"), 90)[1:5] == ["--preset", "official", "--minutes", "1.50"]


def test_last_words() -> None:
    chain = "No module named 'wcwidth'\nModuleNotFoundError: No module named 'open_clip.model'"
    assert last_words(chain) == "open_clip.model is not installed"
    assert last_words("Traceback\n  ...\nRuntimeError: CUDA error\n") == "RuntimeError: CUDA error"


# The command -------------------------------------------------------------------------------------


def suite(
    out: Path, *options: str, cwd: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    command = ["bash", str(BENCHMARKS / "gpu_suite.sh"), str(out), *options]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def blocked(folder: Path, name: str) -> str:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER.format(name=name))
    return str(folder)


def test_without_pytorch_the_suite_says_so(tmp_path: Path) -> None:
    process = suite(tmp_path / "out", PYTHONPATH=blocked(tmp_path / "blocker", "torch"))
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    report = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not report["trial"]
    assert {part["why"] for part in report["outcomes"]} == {"torch is not installed"}


@pytest.mark.slow
def test_a_library_that_a_part_lacks_leaves_that_part_out(tmp_path: Path) -> None:
    process = suite(
        tmp_path / "out",
        "--parts",
        "official",
        PYTHONPATH=blocked(tmp_path / "blocker", "timm"),
        SUITE_DEVICE="cpu",
    )
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    report = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert report["trial"]
    assert [part["why"] for part in report["outcomes"]] == ["timm is not installed"]


def test_a_stopped_suite_still_has_its_summary(tmp_path: Path) -> None:
    process = suite(tmp_path, SUITE_DEVICE="cpu", SECONDS_IN_ALL="600")
    until((tmp_path / "kernels.log").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    report = json.loads((tmp_path / "summary.json").read_text())
    assert report["outcomes"][0]["why"] == STOPPED


@pytest.mark.slow
def test_paths_are_those_of_where_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    options = ("--parts", "official", "--images", "photographs")
    process = suite(Path("out"), *options, cwd=tmp_path, SUITE_DEVICE="cpu")
    process.communicate(timeout=PATIENCE)
    report = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "photographs" in report["outcomes"][0]["why"]
    assert process.returncode == 2


def test_what_fails_before_it_begins_is_not_a_failed_check(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    process = suite(tmp_path / "out", WHEELS=str(tmp_path / "wheels"))
    _, words = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "has no wheels" in words

    (tmp_path / "file").touch()
    process = suite(tmp_path / "file" / "out")
    _, words = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "nothing was checked" in words


def test_help() -> None:
    command = ["bash", str(BENCHMARKS / "gpu_suite.sh")]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "Exit status 0" in shown.stdout
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
