"""How `drx` ends when nobody reads its output, when that is full or closed, and on early Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DRX = "import sys; from drexperts.cli.main import main; sys.exit(main(sys.argv[1:]))"
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
pytestmark = [posix, pytest.mark.slow]


def shell(redirections: str, *arguments: object) -> tuple[int, str, str]:
    """`drx ...` with a shell's redirections: exit status, stdout, stderr."""
    command = [sys.executable, "-P", "-c", DRX, *map(str, arguments)]
    script = ["bash", "-c", f'"$@" {redirections}; exit "${{PIPESTATUS[0]}}"', "drx", *command]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def commands(toy_bundle: Path, photos: Path) -> dict[str, list[object]]:
    return {
        "info": ["info", toy_bundle],
        "score": ["score", toy_bundle, photos],
        "json": ["score", toy_bundle, photos, "--json"],
        "help": ["--help"],
        "version": ["--version"],
        "gate": ["score", toy_bundle, photos / "broken.jpg"],
    }


KINDS = ("info", "score", "json", "help", "version", "gate")


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_pipe(kind: str, commands: dict[str, list[object]]) -> None:
    status, _, error = shell("| true", *commands[kind])
    assert status == 141
    assert "Traceback" not in error
    assert "Error" not in error


@full
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_standard_output(kind: str, commands: dict[str, list[object]]) -> None:
    status, _, error = shell("> /dev/full", *commands[kind])
    assert status == 2
    assert error.splitlines()[-1].startswith("drx: the output cannot be written: No space left")
    assert "Traceback" not in error


@full
def test_a_full_standard_error(commands: dict[str, list[object]]) -> None:
    assert shell("2> /dev/full", *commands["score"])[0] == 2
    assert shell("2> /dev/full", "info", "nowhere")[0] == 2


@pytest.mark.parametrize(("kind", "expected"), [("json", 0), ("help", 0), ("gate", 1)])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_at_the_start(
    kind: str, expected: int, closed: str, commands: dict[str, list[object]], tmp_path: Path
) -> None:
    """As if they were connected to nothing; and no other file takes their place."""
    out = ["--out", tmp_path / "r.jsonl"] if commands[kind][0] == "score" else []
    status, _, error = shell(closed, *commands[kind], *out)
    assert (status, "Traceback" in error) == (expected, False)
    if out:
        for row in (tmp_path / "r.jsonl").read_text().splitlines():
            assert "source" in json.loads(row)


SIGNALLED = """
import os, sys
signal, module = int(sys.argv.pop(1)), sys.argv.pop(1)
class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal)
sys.meta_path.insert(0, Sender())
"""


def signalled(number: int, module: str, *arguments: object) -> tuple[int, str]:
    """`drx ...` that gets a signal when it imports a module: return code, stderr."""
    command = [sys.executable, "-P", "-c", SIGNALLED + DRX, int(number), module, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "module",
    ["drexperts.cli.dispatch", "argparse", "drexperts.cli.score", "rich", "numpy", "onnxruntime"],
)
def test_ctrl_c_while_a_module_is_imported(module: str, commands: dict[str, list[object]]) -> None:
    status, error = signalled(signal.SIGINT, module, *commands["score"])
    assert (status, "Traceback" in error) == (130, False)
    assert error.endswith("drx: interrupted\n")


def test_a_terminated_process_did_not_fail_a_gate(commands: dict[str, list[object]]) -> None:
    assert signalled(signal.SIGTERM, "onnxruntime", *commands["gate"])[0] == -signal.SIGTERM
