"""Which of the processes that `torchrun` started this one is, from the environment it sets."""

import os
import re
from typing import NamedTuple

from drexperts.runtime.errors import ConfigError


class Place(NamedTuple):
    """A process's number of how many, and its number on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def place() -> Place:
    """This process's. Without a `WORLD_SIZE` above one it is alone, whatever else is set.

    Raises ConfigError for an environment that no `torchrun` makes.
    """
    world = _number("WORLD_SIZE", "1")
    if world == 1:
        return Place()
    found = Place(_number("RANK"), world, _number("LOCAL_RANK", "0"))
    if found.rank >= world:
        raise _mistake(f"RANK={found.rank}")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise _mistake(f"no {name}")
    return found


def speaks() -> bool:
    """Whether this process is the one that prints and writes. Raises ConfigError as `place`."""
    return place().rank == 0


def _number(name: str, otherwise: str = "") -> int:
    text = os.environ.get(name) or otherwise
    if not re.fullmatch("[0-9]{1,9}", text) or (name == "WORLD_SIZE" and int(text) == 0):
        raise _mistake(f"{name}={text}" if text else f"no {name}")
    return int(text)


def _mistake(found: str) -> ConfigError:
    world = os.environ.get("WORLD_SIZE")
    return ConfigError(
        f"the environment has WORLD_SIZE={world} and {found}: start several processes with "
        "torchrun, or unset WORLD_SIZE for one"
    )
