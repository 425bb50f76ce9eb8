"""What a process sends and leaves behind, seen from outside."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def strace() -> list[str]:
    """The start of a command that records what a process sends; skips where there is none."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    probe = subprocess.run([found, "-o", os.devnull, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"processes cannot be watched here: {probe.stderr.decode().strip()}")
    return [found, "-f", "-e", "trace=socket,connect,sendto,sendmsg,sendmmsg"]


def watched(
    tmp_path: Path, code: str, *arguments: object, **settings: str
) -> tuple[list[str], list[Path]]:
    """The calls by which a process may have reached the internet, and the files in its home."""
    home, log = tmp_path / "home", tmp_path / "calls"
    home.mkdir()
    kept = {n: v for n, v in os.environ.items() if n != "CI" and not n.startswith(("XDG_", "ORT_"))}
    environment = kept | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"} | settings
    command = [*strace(), "-o", str(log), sys.executable, "-P", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # PyTorch asks for the user's name, for which the C library looks for a local cache of names.
    calls = [line for line in log.read_text().splitlines() if "AF_INET" in line]
    return calls, [path for path in home.rglob("*") if path.is_file()]
