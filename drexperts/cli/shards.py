"""Which shard a command or its environment asks for."""

import os
import re
from collections.abc import Mapping

from drexperts.runtime.errors import ConfigError
from drexperts.runtime.inputs.shards import Shard

_INDEXED_JOB = "JOB_COMPLETION_INDEX"  # Kubernetes, from 0
_ARRAY = "SLURM_ARRAY_TASK_"


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """The shard in I/N, auto or auto/N; "auto" is asked of a Slurm array or a Kubernetes job.

    Raises ConfigError for another text, and where the environment does not say which it is.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})|auto(?:/(\d{1,9}))?", text)
    if match is None:
        raise ConfigError(f"--shard takes I/N, such as 1/4, or auto or auto/N, not {text!r}")
    if match[1]:
        return Shard(int(match[1]), int(match[2]))
    return _from_environment(environment, int(match[3]) if match[3] else None)


def _from_environment(environment: Mapping[str, str], count: int | None) -> Shard:
    slurm, job = environment.get(f"{_ARRAY}ID"), environment.get(_INDEXED_JOB)
    if (slurm is None) == (job is None):
        which = "neither is" if slurm is None else "both are"
        raise ConfigError(
            f"--shard auto reads {_ARRAY}ID or {_INDEXED_JOB}, and {which} set: pass --shard I/N"
        )
    if slurm is not None:
        return _of_array(environment, count)
    if count is None:
        raise ConfigError(
            f"{_INDEXED_JOB} does not say how many tasks there are: pass --shard auto/N with the "
            "job's completions as N"
        )
    return Shard(_number(environment, _INDEXED_JOB) + 1, count)


def _of_array(environment: Mapping[str, str], count: int | None) -> Shard:
    """The place of this task in its array, whose numbers must be evenly spaced."""
    here, first, last, tasks = (
        _number(environment, f"{_ARRAY}{name}") for name in ("ID", "MIN", "MAX", "COUNT")
    )
    if count not in (None, tasks):
        raise ConfigError(
            f"the Slurm array has {tasks} tasks and --shard auto/{count} asks for {count}: submit "
            "the whole array again (finished shards end at once), or pass --shard I/N"
        )
    step, uneven = divmod(last - first, max(1, tasks - 1))
    place, between = divmod(here - first, max(1, step))
    if uneven or between or not 0 <= place < tasks:
        raise ConfigError(
            f"the {tasks} tasks of this Slurm array are not evenly spaced from {first} to {last}: "
            "submit the whole array (finished shards end at once), or pass --shard I/N"
        )
    return Shard(place + 1, tasks)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"\d{1,9}", text):
        raise ConfigError(f"--shard auto needs a number in {name}, not {text!r}: pass --shard I/N")
    return int(text)
