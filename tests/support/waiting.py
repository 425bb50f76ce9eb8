"""Waiting for other processes, on a machine as slow as it likes.

A time limit here ends what hangs. None is a judgement: a test goes on when something has happened,
not when it should have.
"""

import subprocess
import time
from collections.abc import Callable

PATIENCE = 600.0  # seconds
# Python for a process that is to stay where it is until it gets a signal, or its input ends.
HOLD = "(print('held', flush=True), sys.stdin.read())"


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)


def holding(command: list[str]) -> subprocess.Popen[str]:
    """A process that is at its `HOLD`."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert "held\n" in process.stdout, "it ended before it could be disturbed"
    return process
