"""A group of two processes, one process alone, and torchrun's environment."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.waiting import PATIENCE
from torch import nn

from drexperts.runtime.errors import ConfigError, DeviceError
from drexperts.training.distributed import Processes
from drexperts.training.place import Place, place, speaks

pytestmark = pytest.mark.slow  # what they share takes seconds to make

# Each process writes what it finds into a file of its own, named after its rank.
SCRIPT = """
import json, os, sys, warnings
from pathlib import Path
import torch
from torch import nn
from drexperts.runtime.errors import DataError
from drexperts.runtime.errors import LostProcessError
from drexperts.training.distributed import Processes
from drexperts.runtime.errors import InternalError, StoppedError

warnings.simplefilter("error", FutureWarning)

out = Path(sys.argv[1])
with Processes("cpu") as group:
    rank = group.rank
    found = {
        "world": group.world,
        "first": group.first,
        "average": group.average(10.0 + rank),
        "any": [group.any(False), group.any(rank == 1), group.any(True)],
        "gather": group.gather([f"{rank}a", f"{rank}b"]),
        "gather uneven": group.gather(list(range(rank))),
        "from_first": group.from_first(lambda: ["of", rank]),
    }

    def fails():
        (out / f"called-{rank}").touch()
        raise DataError("no such label")

    try:
        group.from_first(fails)
    except DataError as error:
        found["error"] = str(error)
    found["errors"] = []
    for sent in (StoppedError("stopped", 15), InternalError("odd")):
        def stops():
            raise sent
        try:
            group.from_first(stops)
        except (StoppedError, InternalError) as error:
            found["errors"].append([str(error), getattr(error, "status", 0)])
    found["continues"] = group.from_first(lambda: rank)

    torch.manual_seed(0)
    inner = nn.Linear(2, 1)
    wrapped = group.wrap(inner)
    inputs = torch.tensor([[1.0, 2.0]]) * (1 + 2 * rank)
    with group.last_part(wrapped, False):
        wrapped(inputs).sum().backward()
    found["own gradient"] = inner.weight.grad.tolist()[0]
    with group.last_part(wrapped, True):
        wrapped(inputs).sum().backward()
    found["gradient"] = inner.weight.grad.tolist()[0]
    (out / f"{rank}.json").write_text(json.dumps(found))
left = torch.distributed.is_initialized()
(out / f"left-{rank}").write_text(str(left))

averages = []
for start in range(20):
    with Processes("cpu") as group:
        averages.append(group.average(start + rank))
(out / f"again-{rank}.json").write_text(json.dumps(averages))

lost = {}
try:
    with Processes("cpu") as group:
        wrapped = group.wrap(nn.Linear(2, 1))
        loss = wrapped(torch.ones(1, 2)).sum()
        group.wait()
        if rank == 1:
            sys.stdout.flush()
            os._exit(0)
        for name, exchange in {
            "step": lambda: loss.backward(),
            "average": lambda: group.average(1.0),
            "gather": lambda: group.gather([1]),
            "from_first": lambda: group.from_first(lambda: 1),
            "own": lambda: torch.ones(2) @ torch.ones(3),
        }.items():
            try:
                with group.together():
                    exchange()
                lost[name] = "nothing"
            except Exception as error:
                lost[name] = f"{type(error).__name__}: {error}"
        group.wait()
except LostProcessError as error:
    lost["left"] = str(error)
(out / "lost.json").write_text(json.dumps(lost))
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    # A port of the system's choice: other tests may be running.
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [*torchrun, str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(out: Path) -> list[dict[str, object]]:
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_both_know_the_group_and_one_is_first(found: list[dict[str, object]]) -> None:
    assert [one["world"] for one in found] == [2, 2]
    assert [one["first"] for one in found] == [True, False]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("average", 10.5),
        ("any", [False, True, True]),
        ("gather", ["0a", "0b", "1a", "1b"]),
        ("gather uneven", [0]),
        ("from_first", ["of", 0]),
        ("error", "no such label"),
        (
            "errors",
            [["stopped", 143], ["odd. This is a bug in drexperts: please report it", 0]],
        ),
        ("continues", 0),
    ],
)
def test_both_find_the_same(name: str, expected: object, found: list[dict[str, object]]) -> None:
    assert [one[name] for one in found] == [expected, expected]


def test_only_the_first_does_the_work(out: Path) -> None:
    assert (out / "called-0").exists()
    assert not (out / "called-1").exists()


def test_gradients_are_averaged_once_after_the_last_part(found: list[dict[str, object]]) -> None:
    assert [one["own gradient"] for one in found] == [[1.0, 2.0], [3.0, 6.0]]
    assert [one["gradient"] for one in found] == [[4.0, 8.0], [4.0, 8.0]]


def test_the_group_is_left_at_the_end(out: Path) -> None:
    assert [(out / f"left-{rank}").read_text() for rank in range(2)] == ["False", "False"]


def test_one_group_after_the_other_in_the_same_processes(out: Path) -> None:
    for rank in range(2):
        averages = json.loads((out / f"again-{rank}.json").read_text())
        assert averages == [start + 0.5 for start in range(20)]


def test_a_lost_process_is_not_a_bug_of_the_others(out: Path) -> None:
    lost = json.loads((out / "lost.json").read_text())
    assert lost.pop("own").startswith("RuntimeError: ")
    assert lost.pop("left")
    assert lost.keys() == {"step", "average", "gather", "from_first"}
    for told in lost.values():
        assert told.startswith("LostProcessError: ")


@pytest.fixture
def alone() -> Iterator[Processes]:
    with Processes("cpu") as group:
        yield group


def test_alone_everything_is_its_own(alone: Processes) -> None:
    assert (alone.rank, alone.world, alone.first) == (0, 1, True)
    assert not torch.distributed.is_initialized()
    assert alone.average(2.5) == 2.5
    assert [alone.any(True), alone.any(False)] == [True, False]
    part = [1, 2]
    assert alone.gather(part) == [1, 2]
    assert alone.from_first(lambda: part) is part
    module = nn.Linear(1, 1)
    assert alone.wrap(module) is module
    with pytest.raises(ZeroDivisionError), alone.last_part(module, False):
        alone.from_first(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="gloo"), alone.together():
        raise RuntimeError("gloo")


@pytest.mark.parametrize("name", ["tpu9", "", "cpu:x", "meta", "mps"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(DeviceError, match=f"--device '{name}'"):
        Processes(name)


def test_devices_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Processes("auto").device == torch.device("cpu")
    with pytest.raises(DeviceError, match="0 CUDA devices"):
        Processes("cuda")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    two = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in (two | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    assert Processes("auto").device == torch.device("cuda", 1)
    assert Processes("cuda").device == torch.device("cuda", 1)
    assert Processes("cuda:0").device == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match=r"2 CUDA devices.*cuda:2"):
        Processes("cuda")


TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TWO = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "3", "LOCAL_RANK": "1"}, {"RANK": "x", "WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}],
    indirect=True,
)
@pytest.mark.usefixtures("environment")
def test_place_of_a_process_alone() -> None:
    assert place() == Place(rank=0, world=1, local_rank=0)
    assert speaks()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TWO, Place(1, 2, 0)),
        (TWO | {"RANK": "0"}, Place(0, 2, 0)),
        (TWO | {"WORLD_SIZE": "12", "RANK": "11", "LOCAL_RANK": "3"}, Place(11, 12, 3)),
    ],
    indirect=["environment"],
)
@pytest.mark.usefixtures("environment")
def test_place_of_one_of_several(expected: Place) -> None:
    assert place() == expected
    assert speaks() == (expected.rank == 0)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        (TWO | {"RANK": "x"}, "WORLD_SIZE=2 and RANK=x"),
        (TWO | {"RANK": "-1"}, "RANK=-1"),
        (TWO | {"RANK": "2"}, "RANK=2"),
        (TWO | {"RANK": ""}, "no RANK"),
        (TWO | {"LOCAL_RANK": "gpu"}, "LOCAL_RANK=gpu"),
        (TWO | {"WORLD_SIZE": "x"}, "WORLD_SIZE=x"),
        (TWO | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        (TWO | {"MASTER_ADDR": ""}, "no MASTER_ADDR"),
        (TWO | {"MASTER_PORT": ""}, "no MASTER_PORT"),
    ],
    indirect=["environment"],
)
@pytest.mark.usefixtures("environment")
def test_invalid_environments(named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        place()
