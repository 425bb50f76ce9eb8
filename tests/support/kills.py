"""Work that is ended by SIGKILL at one of its changes to the disk, in a process of its own."""

import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from drexperts.runtime.results.result_file import ResultFile

_LONGEST = 60.0  # seconds; a process that was forked from one with threads could wait for ever
_CHANGES = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir"}  # events of Python


def killed(work: Callable[[], object], changes: int, draw: Random) -> bool:
    """Do some work in a forked process, which is killed before or within a change of the disk.

    changes: how many come before the last one; if the work makes fewer it ends by itself. A change
        is a row, of which any part may be written, or that a file is opened, moved, cut or removed.

    Returns whether it was killed. An error of the work is an AssertionError here.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _work_until_killed(work, changes, draw)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _work_until_killed(work: Callable[[], object], changes: int, draw: Random) -> None:
    """Never returns: what is above this process belongs to its parent."""
    left = iter(range(changes))

    def kill_if_due(part: Callable[[], object]) -> None:
        if next(left, None) is None:
            part()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(event: str, arguments: Sequence[Any]) -> None:
        if event in _CHANGES and (event != "open" or _is_for_writing(*arguments)):
            kill_if_due(lambda: None)

    write = ResultFile._write

    def write_row(self: ResultFile, record: bytes) -> None:
        part = record[: draw.randint(0, len(record))]
        kill_if_due(lambda: os.write(self._stream.fileno(), part))
        write(self, record)

    status = 1
    try:
        faulthandler.dump_traceback_later(_LONGEST, exit=True)
        sys.addaudithook(on_event)
        ResultFile._write = write_row  # type: ignore[method-assign]
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _is_for_writing(path: Any, mode: Any, flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR))
