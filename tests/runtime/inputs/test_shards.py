"""Which shard an image belongs to, and which one a task is."""

from collections import Counter

import pytest

from drexperts.runtime.errors import ConfigError
from drexperts.runtime.inputs.shards import Shard, parse_shard

NAMES = [f"photos/{i:06}.jpg" for i in range(20_000)]


def test_every_image_belongs_to_one_shard() -> None:
    for count in (1, 2, 7):
        shards = [Shard(index, count) for index in range(1, count + 1)]
        taken = Counter(str(shard) for name in NAMES for shard in shards if shard.takes(name))
        assert sum(taken.values()) == len(NAMES)
        assert max(taken.values()) - min(taken.values()) < 0.05 * len(NAMES)


def test_shards_are_the_same_everywhere_and_for_ever() -> None:
    """These numbers must not change: shards of one run may be scored by several versions."""
    names = ["a.jpg", "photos/照片.jpg", "x\udcff.png", "s3://bucket/key.png", ""]
    assert [
        next(i for i in range(1, 1000) if Shard(i, 999).takes(name)) for name in names
    ] == PLACES


PLACES = [578, 592, 718, 378, 179]


def test_one_path_is_in_one_shard_however_it_is_spelled() -> None:
    for name in NAMES[:50]:
        for shard in (Shard(1, 3), Shard(2, 3)):
            assert shard.takes(name) == shard.takes(f"./{name}") == shard.takes(f"x/..//{name}")


@pytest.mark.parametrize("numbers", [(0, 4), (5, 4), (-1, 4), (1, 0), (1, 10**7)])
def test_shards_that_are_none(numbers: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="with I from 1 to N"):
        Shard(*numbers)


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
