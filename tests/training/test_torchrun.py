"""Which process this one is, from torchrun's environment and from others."""

import pytest

from drexperts.runtime.errors import ConfigError
from drexperts.training.torchrun import Place, place, speaks

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TWO = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "3", "LOCAL_RANK": "1"}, {"RANK": "x", "WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}],
    indirect=True,
)
@pytest.mark.usefixtures("environment")
def test_alone() -> None:
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
def test_one_of_several(expected: Place) -> None:
    assert place() == expected
    assert speaks() == (expected.rank == 0)


@pytest.mark.parametrize(
    ("environment", "told"),
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
def test_what_no_torchrun_sets(told: str) -> None:
    with pytest.raises(ConfigError, match=f"{told}: start several processes with torchrun, or"):
        place()
