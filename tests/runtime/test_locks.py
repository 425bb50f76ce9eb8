"""One process at a time writes a file or folder, however the others end."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drexperts.runtime.errors import UserError
from drexperts.runtime.locks import LOCK_INSIDE, lock, locked

HOLDER = """
import os, sys, time
from pathlib import Path
from drexperts.runtime.locks import lock
lock(Path(sys.argv[1]))
BEFORE
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def holder(target: Path, before: str = "") -> subprocess.Popen[str]:
    """A process that holds `target` until its input ends; its number has been printed."""
    command = [sys.executable, "-P", "-c", HOLDER.replace("BEFORE", before), str(target)]
    pipes = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipes, stdout=pipes, text=True)


def test_a_second_holder_is_refused_with_the_number_of_the_first(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process:
        assert process.stdout is not None
        number = process.stdout.readline().strip()
        with pytest.raises(UserError, match=rf"out.* process {number}\b"):
            lock(tmp_path / "out")
        process.communicate()


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(UserError, match=f"process {os.getpid()}"):
        lock(tmp_path / "out")


def test_other_names_of_the_target_are_the_same_lock(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    (tmp_path / "link").symlink_to("out")
    for name in ("link", "sub/../out"):
        with locked(tmp_path / "out"), pytest.raises(UserError, match="process"):
            lock(tmp_path / name)


@pytest.mark.parametrize("inside", [False, True])
def test_nothing_is_left(tmp_path: Path, inside: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for _ in range(2):
        with locked(out, inside=inside):
            held = out / LOCK_INSIDE if inside else tmp_path / ".out.lock"
            assert held.read_text() == f"{os.getpid()}\n"
        assert list(tmp_path.rglob("*")) == [out]


def test_unlocking_twice_does_not_unlock_the_next_holder(tmp_path: Path) -> None:
    unlock = lock(tmp_path / "out")
    unlock()
    with locked(tmp_path / "out"):
        unlock()
        with pytest.raises(UserError, match="process"):
            lock(tmp_path / "out")


def test_closing_another_handle_of_the_lock_file_keeps_the_lock(tmp_path: Path) -> None:
    """POSIX locks would be lost here."""
    with locked(tmp_path / "out"):
        (tmp_path / ".out.lock").read_text()
        with pytest.raises(UserError, match="process"):
            lock(tmp_path / "out")


def test_replacing_the_target_keeps_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        (tmp_path / "new").touch()
        os.replace(tmp_path / "new", tmp_path / "out")
        with pytest.raises(UserError, match="process"):
            lock(tmp_path / "out")


@pytest.mark.slow
def test_a_killed_holder_holds_nobody_up(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    with locked(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "child",
    [
        # The child says when it runs: before, it has everything that its parent had.
        "ready, told = os.pipe()\nchild = os.fork()\n"
        "if not child: os.write(told, b'x'); time.sleep(60); os._exit(0)\n"
        "os.read(ready, 1)\nprint(child, flush=True)",
        "import subprocess\n"
        "print(subprocess.Popen(['sleep', '60'], close_fds=False).pid, flush=True)",
    ],
)
def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(
    tmp_path: Path, child: str
) -> None:
    with holder(tmp_path / "out", child) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            lock(tmp_path / "out")()
        finally:
            os.kill(number, signal.SIGKILL)


def test_a_lock_file_that_is_removed_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removes it after we opened it: our lock would be one on a file without a name."""
    file, real = tmp_path / ".out.lock", fcntl.flock
    removed = iter([True])

    def late(descriptor: int, operation: int) -> None:
        if next(removed, False):
            file.unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path / "out"):
        assert file.exists()
        with pytest.raises(UserError, match="process"):
            lock(tmp_path / "out")


def test_a_link_in_the_place_of_the_lock_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("years of work")
    (tmp_path / ".out.lock").symlink_to("precious")
    with pytest.raises(UserError, match=r"\.out\.lock"):
        lock(tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "years of work"


def test_without_locks_in_the_file_system_a_warning_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with caplog.at_level(logging.WARNING), locked(tmp_path / "out"):
        assert "no locks" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.*out"):
        lock(tmp_path / "none" / "out")
