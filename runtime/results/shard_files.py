"""A folder of results of which each file is a shard's, and what each shard did when it ended."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drexperts.runtime.errors import UserError
from drexperts.runtime.files import unfinished, written_whole
from drexperts.runtime.inputs.shards import MOST, Shard
from drexperts.runtime.results.mirror import RECORD_SUFFIX
from drexperts.runtime.wording import remedy

NAMES = re.compile(r"shard-(\d+)-of-(\d+)\.jsonl")


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What a shard did, in a file beside its rows that is there only while they are complete.

    shard: which one
    fingerprint: of its scores
    distortions: their names
    rows, bytes: how many rows its file has, and its size
    inputs, digest: how many image files and archives the run saw, those of the other shards among
        them, and the digest of their names; equal for all shards of the same inputs
    """

    shard: Shard
    fingerprint: str
    distortions: tuple[str, ...]
    rows: int
    bytes: int
    inputs: int
    digest: str


def file_of(folder: Path, shard: Shard) -> Path:
    """The file of a shard's rows."""
    width = len(str(shard.count))
    return folder / f"shard-{shard.index:0{width}}-of-{shard.count}.jsonl"


def shards_in(names: Iterable[str]) -> list[Shard]:
    """The shards that have a file of rows among these names, finished or not, in order."""
    there = set(names)
    matches = map(NAMES.fullmatch, there)
    numbers = sorted((int(match[1]), int(match[2])) for match in matches if match)
    shards = [Shard(index, count) for index, count in numbers if 1 <= index <= count <= MOST]
    return [shard for shard in dict.fromkeys(shards) if file_of(Path(), shard).name in there]


def check_folder(folder: str, names: Iterable[str], shard: Shard) -> None:
    """Raise UserError for a folder among whose files are shards of another count."""
    others = [found for found in shards_in(names) if found.count != shard.count]
    if others:
        raise UserError(
            f"{folder!r} holds shard {others[0]}, and this run is shard {shard}: score the "
            "same number of shards, or choose another folder"
        )


def forget_record(folder: Path, shard: Shard) -> None:
    """Say that a shard is not complete, before its file is changed."""
    _record_file(folder, shard).unlink(missing_ok=True)


def write_record(folder: Path, record: ShardRecord) -> None:
    """Say that a shard is complete, after its last row."""
    document = asdict(record)
    file = _record_file(folder, record.shard)
    with written_whole(file, aside=unfinished(file)) as aside:
        aside.write_text(json.dumps(document) + "\n", encoding="ascii")


def read_record(folder: Path, shard: Shard) -> ShardRecord | None:
    """What a shard did; None if it has not ended. Raises UserError for a damaged record."""
    file = _record_file(folder, shard)
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="ascii"))
        document["shard"] = Shard(**document["shard"])
        document["distortions"] = tuple(document["distortions"])
        return ShardRecord(**document)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as cause:
        again = remedy(f"run `drx score` with --shard {shard} again", f"score shard {shard} again")
        raise UserError(f"{str(file)!r} is damaged: {again}") from cause


def _record_file(folder: Path, shard: Shard) -> Path:
    return file_of(folder, shard).with_suffix(RECORD_SUFFIX)
