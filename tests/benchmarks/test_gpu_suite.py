"""The GPU suite's parts, its summary and its command, none of which needs a GPU to go wrong."""

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

from drexperts.benchmarks import gpu_parts
from drexperts.benchmarks.gpu_parts import KILLED, LATE, Part, run_part, run_parts, why_it_ended
from drexperts.benchmarks.gpu_summary import Outcome, markdown, status, summarise

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
TIMES = {"p50": 2e-3, "samples": [2e-3]}
BATCH = {
    "precision": "fp16",
    "batch": 8,
    "latency": {"first": TIMES, "other": TIMES},
    "ratio": {"other": {"p50": 1.5}},
    "head": {"first": {"share": {"p50": 0.02}}},
    "peak_bytes": {"first": 10**6},
    "refused": {"slow": "it broke"},
}


@dataclass(frozen=True)
class Scripted(Part):
    """A part that is a few lines of Python, with the receipt's path as `path`."""

    script: str = ""

    def command(self, receipt: Path, seconds: float) -> list[str]:
        return ["-c", f"import pathlib; path = pathlib.Path({str(receipt)!r})\n{self.script}"]


def scripted(script: str) -> Scripted:
    return Scripted("kernels", trial=True, script=script)


def receipt_of(gates: dict[str, bool], **others: Any) -> str:
    document = json.dumps({"gates": gates, **others})
    return f"path.write_text({document!r})"


def test_a_part_that_ends_well(tmp_path: Path) -> None:
    outcome = run_part(scripted(receipt_of({"correct": True})), tmp_path, 60)
    assert outcome.receipt == "kernels-trial.json"
    assert outcome.why is None
    report = summarise([outcome], tmp_path, True, [])
    assert report["gates"] == {"kernels: correct": True}
    assert status(report) == 0


def test_a_red_gate_is_status_1(tmp_path: Path) -> None:
    script = f"{receipt_of({'a': True, 'b': False})}\nraise SystemExit(1)"
    outcome = run_part(scripted(script), tmp_path, 60)
    assert outcome.why is None
    report = summarise([outcome, Outcome("paper", None, "absent", 0)], tmp_path, False, [])
    assert status(report) == 1
    assert "- RED kernels: b" in list(markdown(report))


ARGUMENTS = "-c: error: unrecognized arguments: --x"


@pytest.mark.parametrize(
    ("script", "why", "expected"),
    [
        ("import no_such_library", "no_such_library is not installed", 2),
        ("raise MemoryError('out of memory')", "MemoryError: out of memory", 1),
        ("raise SystemExit(3)", "it said nothing", 2),
        ("import argparse; argparse.ArgumentParser().parse_args(['--x'])", ARGUMENTS, 1),
    ],
)
def test_a_part_that_breaks_says_why(tmp_path: Path, script: str, why: str, expected: int) -> None:
    outcome = run_part(scripted(script), tmp_path, 60)
    assert (outcome.receipt, outcome.why) == (None, why)
    assert status(summarise([outcome], tmp_path, True, [])) == expected


def test_an_error_after_green_gates_is_red(tmp_path: Path) -> None:
    script = f"{receipt_of({'a': True})}\nraise RuntimeError('CUDA error')"
    outcome = run_part(scripted(script), tmp_path, 60)
    assert outcome.why == "RuntimeError: CUDA error"
    report = summarise([outcome], tmp_path, False, [])
    assert report["gates"] == {"kernels: a": True, "kernels: did not break": False}


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
        f"{receipt_of({'a': True})}\n"
        "import signal, subprocess, sys\n"
        "sleeper = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        f"pathlib.Path({str(time_is_up)!r}).write_text(str(sleeper.pid))\n"
        "signal.pause()"
    )
    outcome = run_part(scripted(script), tmp_path, 60)
    assert (outcome.receipt, outcome.why) == ("kernels-trial.json", KILLED)
    sleeper = int(time_is_up.read_text())
    until(lambda: not _alive(sleeper))  # its end is the kernel's work, which takes a moment


@pytest.mark.parametrize(
    ("receipt", "red"),
    [
        ("", True),
        (receipt_of({"a": True}), True),
        (receipt_of({"a": True}, complete=False), True),
        (receipt_of({"a": True}, complete=True), False),
    ],
)
def test_a_part_killed_before_it_had_judged_is_red(
    tmp_path: Path, time_is_up: Path, receipt: str, red: bool
) -> None:
    mark = f"pathlib.Path({str(time_is_up)!r}).write_text('ready')"
    script = f"{receipt}\n{mark}\nimport signal; signal.pause()"
    outcome = run_part(scripted(script), tmp_path, 60)
    assert outcome.why == KILLED
    assert status(summarise([outcome], tmp_path, False, [])) == int(red)


def _alive(process: int) -> bool:
    """Whether it runs; what is dead may wait for its parent."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_half_a_receipt_is_named(tmp_path: Path) -> None:
    outcome = run_part(scripted("path.write_text('{')"), tmp_path, 60)
    (part,) = summarise([outcome], tmp_path, True, [])["parts"].values()
    assert part["why"].startswith("kernels-trial.json cannot be read")


def test_time_is_shared_and_what_it_does_not_reach_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def note(part: Part, out: Path, seconds: float) -> Outcome:
        given[part.name] = seconds
        return Outcome(part.name, None, None, 0)

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


def test_the_page_shows_rows_and_reasons(tmp_path: Path) -> None:
    document = receipt_of({"a": True}, batches=[BATCH], left_out={"late": "no time was left"})
    outcome = run_part(scripted(document), tmp_path, 60)
    lines = list(markdown(summarise([outcome], tmp_path, True, [])))
    assert lines[0] == "# TRIAL on a CPU: no figure here is a GPU's"
    assert "| other | 2.0000 ms | 1.50 | 4000 |  |" in lines
    assert "| first | 2.0000 ms |  | 4000 | 1 |" in lines
    assert "- the head is 2.0% of first" in lines
    assert "- not timed: slow: it broke" in lines
    assert "- left out: late: no time was left" in lines


def test_why_it_ended() -> None:
    chain = "No module named 'wcwidth'\nModuleNotFoundError: No module named 'open_clip.model'"
    assert why_it_ended(chain) == "open_clip.model is not installed"
    assert (
        why_it_ended("Traceback\n  ...\nRuntimeError: CUDA error\n") == "RuntimeError: CUDA error"
    )


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
    assert report["kind"] == "gpu-suite"
    assert {part["why"] for part in report["parts"].values()} == {"torch is not installed"}


def test_a_library_that_a_part_lacks_leaves_that_part_out(tmp_path: Path) -> None:
    process = suite(
        tmp_path / "out",
        "--parts",
        "kernels",
        PYTHONPATH=blocked(tmp_path / "blocker", "numpy"),
        SUITE_DEVICE="cpu",
    )
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    report = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert report["kind"] == "gpu-suite-trial"
    assert {name: part["why"] for name, part in report["parts"].items()} == {
        "kernels": "numpy is not installed"
    }


def test_a_stopped_suite_still_has_its_summary(tmp_path: Path) -> None:
    process = suite(tmp_path, SUITE_DEVICE="cpu", SECONDS_IN_ALL="600")
    until((tmp_path / "kernels.log").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    report = json.loads((tmp_path / "summary.json").read_text())
    assert report["parts"]["kernels"]["why"] == "the suite was stopped"


def test_paths_are_those_of_where_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    options = ("--parts", "official", "--images", "photographs")
    process = suite(Path("out"), *options, cwd=tmp_path, SUITE_DEVICE="cpu")
    process.communicate(timeout=PATIENCE)
    report = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert report["parts"]["official"]["why"].startswith("photographs has 0 photographs")
    assert process.returncode == 2


def test_what_fails_before_it_begins_is_not_a_red_gate(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    process = suite(tmp_path / "out", WHEELS=str(tmp_path / "wheels"))
    _, words = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "has no wheels" in words

    (tmp_path / "file").touch()
    process = suite(tmp_path / "file" / "out")
    _, words = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "nothing was judged" in words


def test_help() -> None:
    command = ["bash", str(BENCHMARKS / "gpu_suite.sh")]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "Exit status 0: all gates are green" in shown.stdout
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
