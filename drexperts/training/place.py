"""Which of `torchrun`'s processes this one is. Importing this needs no torch."""

import os
import re
from typing import NamedTuple

from drexperts.runtime.errors import ConfigError


class Place(NamedTuple):
    """A process's number, the number of processes, and its number on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def place() -> Place:
    """This process's place, from the environment that `torchrun` sets.

    Unless `WORLD_SIZE` is above 1 the process is alone, whatever else is set. Raises ConfigError
    for an environment that `torchrun` cannot have set.
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
    """Whether this process is the one that prints and writes. Raises ConfigError like `place`."""
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
        "torchrun, or unset WORLD_SIZE to run a single one"
    )
