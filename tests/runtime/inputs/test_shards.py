"""Which shard an image belongs to."""

from collections import Counter

import pytest

from drexperts.runtime.errors import ConfigError
from drexperts.runtime.inputs.shards import Shard

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
