"""Whether a folder holds all shards of one run, each of which has ended."""

import os
from pathlib import Path

from drexperts.runtime.errors import UserError
from drexperts.runtime.inputs.shards import Shard
from drexperts.runtime.results.shard_files import ShardRecord, file_of, read_record, shards_in

_NAMED = 5  # shards that a message names


def complete_shards(folder: Path, named: str) -> list[ShardRecord]:
    """The records of all shards of a run, which is complete.

    named: the folder, as messages name it

    A shard that is being scored has no record, and one that begins to be scored while its rows are
    read has another number of them.

    Raises UserError as `merge_shards` does.
    """
    found = shards_in(os.listdir(folder)) if folder.is_dir() else []
    if not found:
        raise UserError(f"no shards in {named!r}: name the folder that they were scored to")
    counts = sorted({shard.count for shard in found})
    if len(counts) > 1:
        raise UserError(
            f"{named!r} holds shards of {' and of '.join(map(str, counts))}: move those of "
            "one run into a folder of their own"
        )
    (count,) = counts
    records = {shard: _record(folder, shard) for shard in found}
    wanted = (Shard(index, count) for index in range(1, count + 1))
    todo = [shard for shard in wanted if records.get(shard) is None]
    if todo:
        named = ", ".join(map(str, todo[:_NAMED])) + ", …" * (len(todo) > _NAMED)
        raise UserError(
            f"{len(todo)} of {count} shards in {named!r} are missing or have not ended: "
            f"score {named} with the command of the others, which continues what was begun"
        )
    return _agreeing([record for record in records.values() if record is not None])


def _record(folder: Path, shard: Shard) -> ShardRecord | None:
    file = file_of(folder, shard)
    record = read_record(folder, shard)
    return record if record is not None and file.stat().st_size == record.bytes else None


def _agreeing(records: list[ShardRecord]) -> list[ShardRecord]:
    first = records[0]
    for record in records[1:]:
        if record.fingerprint != first.fingerprint:
            raise UserError(
                f"shards {first.shard} and {record.shard} have scores with fingerprints "
                f"{first.fingerprint} and {record.fingerprint}: weights, preprocessing or software "
                "differ; score them alike, into a new folder"
            )
        if (record.inputs, record.digest) != (first.inputs, first.digest):
            raise UserError(
                f"shards {first.shard} and {record.shard} saw other inputs ({first.inputs} and "
                f"{record.inputs} files): run all shards again with the same inputs, spelled the "
                "same; what has a row is not scored again"
            )
    return records
