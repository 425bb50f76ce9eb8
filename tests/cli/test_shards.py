"""Which shard a task is, by its command line or its environment."""

import pytest

from drexperts.cli.shards import parse_shard
from drexperts.runtime.errors import ConfigError
from drexperts.runtime.inputs.shards import Shard

SLURM = {f"SLURM_ARRAY_TASK_{name}": "" for name in ("ID", "MIN", "MAX", "COUNT")}


def array(here: int, first: int, last: int, count: int) -> dict[str, str]:
    return dict(zip(SLURM, map(str, (here, first, last, count)), strict=True))


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("2/4", {}, (2, 4)),
        ("2/4", array(0, 0, 9, 10), (2, 4)),
        ("auto", array(0, 0, 9, 10), (1, 10)),
        ("auto", array(9, 0, 9, 10), (10, 10)),
        ("auto", array(1, 1, 4, 4), (1, 4)),
        ("auto/4", array(4, 1, 4, 4), (4, 4)),
        ("auto", array(20, 10, 30, 3), (2, 3)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "0"}, (1, 8)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "7"}, (8, 8)),
    ],
)
def test_which_shard(text: str, environment: dict[str, str], shard: tuple[int, int]) -> None:
    assert parse_shard(text, environment) == Shard(*shard)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("4", {}, "takes I/N"),
        ("1/x", {}, "takes I/N"),
        ("0/4", {}, "from 1 to N|index and count"),
        ("auto", {}, "neither is set: pass --shard I/N"),
        ("auto", array(0, 0, 3, 4) | {"JOB_COMPLETION_INDEX": "0"}, "both are set"),
        ("auto", {"JOB_COMPLETION_INDEX": "3"}, "pass --shard auto/N"),
        ("auto/3", {"JOB_COMPLETION_INDEX": "3"}, "not 4/3"),
        ("auto/8", {"JOB_COMPLETION_INDEX": "x"}, "a number in JOB_COMPLETION_INDEX, not 'x'"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "0"}, "a number in SLURM_ARRAY_TASK_MIN"),
        ("auto", array(1, 1, 9, 3) | {"SLURM_ARRAY_TASK_ID": "2"}, "not evenly spaced"),
        ("auto", array(7, 0, 7, 3), "not evenly spaced"),
        ("auto/8", array(3, 3, 3, 1), "has 1 tasks and --shard auto/8 asks for 8"),
    ],
)
def test_what_says_no_shard(text: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_shard(text, environment)
