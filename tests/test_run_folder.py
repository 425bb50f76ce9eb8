"""A run's files: whole or not there, and only for the run that wrote them."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from drexperts.run_folder import RunFolder, State
from drexperts.runtime.errors import UserError, WeightsError
from drexperts.weights import write_safetensors

SETTINGS = {"dataset": "livec", "config": {"batch": 8, "seed": 0}, "images": (9, 1, 3)}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return opened(tmp_path / "runs" / "one")


def opened(path: Path, **changes: Any) -> RunFolder:
    folder = RunFolder(path, SETTINGS | changes)
    folder.cut_log(folder.load_state())
    return folder


def state(value: float, size: int = 10) -> State:
    return State({"weights.a": torch.full((size,), value)}, {"done": int(value)})


def steps(folder: RunFolder) -> list[int]:
    lines = (folder.path / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def saved(folder: RunFolder) -> State:
    found = folder.load_state()
    assert found is not None
    return found


def test_a_state_comes_back(folder: RunFolder) -> None:
    assert folder.load_state() is None
    folder.save_state(state(3))
    folder.save_state(state(4))
    found = saved(folder)
    assert torch.equal(found.tensors["weights.a"], torch.full((10,), 4.0))
    assert found.values["done"] == 4


def test_steps_after_the_state_leave_the_log(folder: RunFolder) -> None:
    folder.log(step=1)
    folder.log(step=2)
    folder.save_state(state(2))
    folder.log(step=3)
    with open(folder.path / "log.jsonl", "a") as stream:
        stream.write('{"step": 4, "lo')  # the process was killed here
    again = opened(folder.path)
    assert steps(again) == [1, 2]
    again.log(step=3)
    assert steps(again) == [1, 2, 3]


def test_without_a_state_the_log_begins_again(folder: RunFolder) -> None:
    folder.log(step=1)
    assert steps(opened(folder.path)) == []


def test_other_settings_are_refused_and_named(folder: RunFolder) -> None:
    opened(folder.path)  # lists and tuples are the same in JSON
    with pytest.raises(UserError, match=r"config\.seed: 0, asked 1\): choose another.*--out"):
        opened(folder.path, config={"batch": 8, "seed": 1})
    with pytest.raises(UserError, match=r"ema: None, asked 0\.9"):
        opened(folder.path, ema=0.9)


@pytest.mark.parametrize("content", [b"", b'{"dataset": ', b"\xff\xfe"])
@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_damaged_file_is_named(folder: RunFolder, name: str, content: bytes) -> None:
    (folder.path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged: remove its folder, or choose"):
        opened(folder.path).result()


def test_a_damaged_state_is_named_with_the_remedy(folder: RunFolder) -> None:
    folder.save_state(state(1))
    path = folder.path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(WeightsError, match=r"state\.safetensors.*remove it to start over"):
        folder.load_state()


def test_a_file_that_is_no_state(folder: RunFolder) -> None:
    write_safetensors({"a": torch.zeros(1)}, {}, folder.path / "state.safetensors")
    with pytest.raises(WeightsError, match="no state of a training: remove it to start over"):
        folder.load_state()


def test_a_result_ends_the_run(folder: RunFolder) -> None:
    assert folder.result() is None
    folder.save_state(state(1))
    folder.finish({"test": {"srcc": 0.5}})
    assert opened(folder.path).result() == {"test": {"srcc": 0.5}}
    assert folder.load_state() is None


def test_a_result_that_json_cannot_hold_leaves_the_state(folder: RunFolder) -> None:
    folder.save_state(state(1))
    with pytest.raises(ValueError, match="JSON compliant"):
        folder.finish({"srcc": float("nan")})
    assert folder.result() is None
    assert saved(folder).values["done"] == 1


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file can be larger than `size` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_state_before(folder: RunFolder) -> None:
    folder.save_state(state(1, size=100_000))
    files = set(folder.path.iterdir())
    with full_after(100_000), pytest.raises(OSError, match=r"state\.safetensors"):
        folder.save_state(state(2, size=100_000))
    assert set(folder.path.iterdir()) == files
    assert saved(folder).values["done"] == 1
    assert torch.equal(saved(folder).tensors["weights.a"], torch.ones(100_000))
    folder.save_state(state(2, size=100_000))
    assert saved(folder).values["done"] == 2


def test_what_a_killed_process_left_is_removed(folder: RunFolder) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from drexperts.files import written_whole\n"
        "with written_whole(Path(sys.argv[1])) as aside:\n"
        "    aside.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = folder.path / "best.safetensors"
    subprocess.run([sys.executable, "-P", "-c", code, str(target)], check=False)
    (left,) = folder.path.glob(".*")
    assert left.name.startswith(".best.safetensors.part-")
    (folder.path / ".kept").touch()
    opened(folder.path)
    assert [path.name for path in folder.path.glob(".*")] == [".kept"]
