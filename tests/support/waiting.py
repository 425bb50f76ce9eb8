"""Waiting for other processes, on a machine of any speed.

The time limit only ends what hangs. A test continues when something has happened, not when it
should have happened.
"""

import subprocess
import time
from collections.abc import Callable

PATIENCE = 600.0  # seconds
# A Python expression that blocks its process until a signal, or until its input ends.
HOLD = "(print('held', flush=True), sys.stdin.read())"


def until(condition: Callable[[], object]) -> None:
    """Wait until `condition` is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)


def holding(command: list[str]) -> subprocess.Popen[str]:
    """Start a process and wait until it is blocked at its `HOLD`."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert "held\n" in process.stdout, "it ended before it could be disturbed"
    return process
