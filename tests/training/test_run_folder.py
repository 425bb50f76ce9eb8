"""A run's files: written atomically, and only for the run that wrote them."""

import json
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from drexperts.evaluation.metrics import Metrics
from drexperts.model.weight_files import write_safetensors
from drexperts.runtime.errors import UserError, WeightsError
from drexperts.training.result import Epoch, TrainingResult
from drexperts.training.run_folder import FORMAT, RunFolder, State

SETTINGS = {"dataset": "livec", "config": {"batch": 8, "seed": 0}, "images": (9, 1, 3)}


before: list[RunFolder] = []


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    before.clear()
    yield opened(tmp_path / "runs" / "one")
    before.clear()


def opened(path: Path, **changes: Any) -> RunFolder:
    """The folder as a later process finds it: the one before has ended."""
    while before:
        before.pop().close()
    folder = RunFolder(path, SETTINGS | changes)
    before.append(folder)
    folder.cut_log(folder.load_state())
    return folder


def state(value: float, size: int = 10) -> State:
    values = {"done": int(value), "scaler": {}, "epochs": [], "losses": 0.5, "seconds": 1.5}
    return State({"weights.a": torch.full((size,), value)}, values)


def finished(**changes: Any) -> TrainingResult:
    test = Metrics(3, 0.5, 0.5, 0.5, 0.5, 1.0)
    known: dict[str, Any] = {"settings": SETTINGS, "images": (9, 1, 3), "selected_on": "test"}
    known |= {"selected_by": "plcc", "processes": 1, "skipped": (), "test": test}
    known |= {"epochs": (Epoch(1, 0.5, None, 0.25, None),)}
    return TrainingResult(**(known | {"best_epoch": 1, "versions": {}} | changes))


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
    folder.save_state(state(1))
    opened(folder.path)  # lists and tuples are the same in JSON
    with pytest.raises(UserError, match=r"config\.seed: 0, asked 1"):
        opened(folder.path, config={"batch": 8, "seed": 1})
    with pytest.raises(UserError, match=r"ema: None, asked 0\.9"):
        opened(folder.path, ema=0.9)


@pytest.mark.parametrize("content", [b"", b'{"dataset": ', b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("name", ["run.json", "result.json"])
def test_a_damaged_file_is_named(folder: RunFolder, name: str, content: bytes) -> None:
    folder.save_state(state(1))
    (folder.path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        opened(folder.path).result()


def test_a_truncated_state_is_named(folder: RunFolder) -> None:
    folder.save_state(state(1))
    path = folder.path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(WeightsError, match=r"state\.safetensors"):
        folder.load_state()


@pytest.mark.parametrize("values", ["", "[1]", "{", "7", *state(1).values])
def test_a_state_without_all_its_values_is_named(folder: RunFolder, values: str) -> None:
    known = state(1).values | {"log_bytes": 0}
    if values in known:
        del known[values]
        values = json.dumps(known)
    metadata = {"format": FORMAT, "values": values}
    write_safetensors({"a": torch.zeros(1)}, metadata, folder.path / "state.safetensors")
    with pytest.raises(WeightsError, match=r"state\.safetensors"):
        folder.load_state()


@pytest.mark.parametrize("name", ["state.safetensors", "best.safetensors", "result.json"])
def test_settings_stay_only_where_they_came_to_something(folder: RunFolder, name: str) -> None:
    folder.log(step=1)
    opened(folder.path, dataset="csiq")
    opened(folder.path)
    (folder.path / name).write_text("{}")
    with pytest.raises(UserError, match="dataset: livec, asked csiq"):
        opened(folder.path, dataset="csiq")


@pytest.mark.parametrize("name", ["state.safetensors", "best.safetensors", "result.json"])
def test_without_its_settings_a_run_is_nobodys(folder: RunFolder, name: str) -> None:
    (folder.path / name).write_text("{}")
    (folder.path / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json"):
        opened(folder.path)


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_not_a_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="notes"):
        RunFolder(tmp_path / "notes" / below, SETTINGS)


# Takes the lock and, where it is free, holds it until its input ends.
HOLDER = """
import fcntl, sys
with open(sys.argv[1], "w") as lock:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("held")
    print("free", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(path: Path) -> Iterator[str]:
    """What another process finds, and for how long it has the folder."""
    command = [sys.executable, "-I", "-S", "-c", HOLDER, str(path / ".lock")]
    pipes = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipes, stdout=pipes, stderr=pipes, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        yield process.stdout.readline().strip() or process.stderr.read().strip()
        process.communicate()


def test_one_process_at_a_time(folder: RunFolder) -> None:
    writing = folder.path / ".state.safetensors.part-0123abcd"
    writing.touch()
    folder.close()
    with another_process(folder.path) as found:
        assert found == "free"
        with pytest.raises(UserError) as told:
            opened(folder.path, dataset="csiq")
        assert str(folder.path) in str(told.value)
        assert writing.exists()
        assert json.loads((folder.path / "run.json").read_text())["dataset"] == "livec"
    opened(folder.path)
    assert not writing.exists()


def test_it_holds_the_folder_to_its_end(folder: RunFolder) -> None:
    with folder, another_process(folder.path) as found:
        assert found == "held"
    with another_process(folder.path) as found:
        assert found == "free"


def test_a_copy_reads_and_does_not_hold_the_folder(folder: RunFolder) -> None:
    folder.save_state(state(3))
    copy = pickle.loads(pickle.dumps(folder))
    assert saved(copy).values["done"] == 3
    copy.close()
    with another_process(folder.path) as found:
        assert found == "held"


def test_refused_settings_do_not_hold_the_folder(folder: RunFolder) -> None:
    folder.finish(finished())
    folder.close()
    with pytest.raises(UserError, match=str(folder.path)) as kept:
        RunFolder(folder.path, {})
    with another_process(folder.path) as found:
        assert found == "free"
    del kept


def test_a_kill_before_the_state_is_removed(folder: RunFolder) -> None:
    folder.save_state(state(1))
    content = (folder.path / "state.safetensors").read_bytes()
    folder.finish(finished())
    (folder.path / "state.safetensors").write_bytes(content)
    assert folder.result() is not None
    assert not (folder.path / "state.safetensors").exists()


def test_a_result_ends_the_run(folder: RunFolder) -> None:
    assert folder.result() is None
    folder.save_state(state(1))
    folder.finish(finished())
    found = opened(folder.path).result()
    assert found is not None
    assert found.as_json() == json.loads((folder.path / "result.json").read_text())
    assert (found.test, found.epochs) == (finished().test, finished().epochs)
    assert folder.load_state() is None


def test_an_invalid_result_leaves_the_state(folder: RunFolder) -> None:
    folder.save_state(state(1))
    with pytest.raises(ValueError, match="JSON compliant"):
        folder.finish(finished(versions={"a": float("inf")}))
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


# Killed by the system while safetensors writes: files may have 100 kB, and this one has 4 MB.
KILLED_SAVING = """
import resource, signal, sys
from pathlib import Path
import torch
from drexperts.evaluation.metrics import Metrics
from drexperts.model.weight_files import write_safetensors

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
write_safetensors({"a": torch.zeros(1 << 20)}, {}, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_temporary_files_of_safetensors_are_removed(folder: RunFolder) -> None:
    command = [sys.executable, "-P", "-c", KILLED_SAVING, str(folder.path / "state.safetensors")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGXFSZ
    assert list(folder.path.glob(".tmp*"))
    folder.close()
    opened(folder.path)
    assert not list(folder.path.glob(".tmp*"))


def test_temporary_files_of_a_killed_process_are_removed(folder: RunFolder) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from drexperts.runtime.files import written_whole\n"
        "with written_whole(Path(sys.argv[1])) as aside:\n"
        "    aside.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = folder.path / "best.safetensors"
    subprocess.run([sys.executable, "-P", "-c", code, str(target)], check=False)
    (left,) = folder.path.glob(".*.part-*")
    assert left.name.startswith(".best.safetensors.part-")
    (folder.path / ".kept").touch()
    (folder.path / ".own.part-folder").mkdir()
    opened(folder.path)
    names = {path.name for path in folder.path.glob(".*")}
    assert names == {".kept", ".lock", ".own.part-folder"}
