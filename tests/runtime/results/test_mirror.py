"""Results at a URL: copied whole, continued, merged."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from support.archives import exact_scorer, png
from support.memory_bucket import memory_bucket

from drexperts import runtime
from drexperts.runtime import Score, Scorer, Shard, UserError, merge_shards, score_files
from drexperts.runtime.results import mirror


@pytest.fixture(scope="module")
def scorer(toy_bundle: Path) -> Scorer:
    return exact_scorer(runtime.load(toy_bundle, threads=1))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    with memory_bucket() as system:
        yield system


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(12):
        (tmp_path / "photos" / f"{i:02}.png").write_bytes(png(i))
    return tmp_path / "photos"


class KilledError(Exception):
    pass


def names(bucket: Any) -> list[str]:
    return sorted(path.removeprefix("/bucket/") for path in bucket.find("/bucket"))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_result_file_is_copied_and_continued(
    suffix: str, scorer: Scorer, bucket: Any, photos: Path, tmp_path: Path
) -> None:
    url, local = f"memory://bucket/run/r{suffix}", tmp_path / f"r{suffix}"

    def killed(score: Score) -> None:
        if score.source.endswith("05.png"):
            raise KilledError

    for out in (url, local):
        with pytest.raises(KilledError):
            score_files(scorer, photos, out, on_score=killed)
    assert names(bucket) == [f"run/r{suffix}" + ".jsonl" * (suffix == ".parquet")]
    for out in (url, local):
        summary = score_files(scorer, photos, out)
        assert (summary.already_there, summary.scored) == (6, 6)
        assert str(summary.out) == str(out)
    assert names(bucket) == [f"run/r{suffix}"]
    data = bucket.cat(f"/bucket/run/r{suffix}")
    if suffix == ".parquet":
        one, other = pyarrow.parquet.read_table(io.BytesIO(data)), pyarrow.parquet.read_table(local)
        assert one.equals(other)
    else:
        assert data == local.read_bytes()
    assert score_files(scorer, photos, url, overwrite=True).scored == 12


def test_rows_are_copied_now_and_then(
    scorer: Scorer, bucket: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_SECONDS", 0.0)
    monkeypatch.setattr(mirror, "_SHARE", 1e9)
    seen = list[int]()

    def look(score: Score) -> None:
        seen.append(bucket.cat("/bucket/r.jsonl").count(b"\n"))

    score_files(scorer, photos, "memory://bucket/r.jsonl", on_score=look)
    assert seen == list(range(1, 13))


def test_shards_and_their_merge(scorer: Scorer, bucket: Any, photos: Path, tmp_path: Path) -> None:
    url = "memory://bucket/run/"
    for index in (1, 2):
        score_files(scorer, photos, url, shard=Shard(index, 2))
    assert names(bucket) == [
        f"run/shard-{i}-of-2.{end}" for i in (1, 2) for end in ("done.json", "jsonl")
    ]
    with pytest.raises(UserError, match="holds shard 1/2, and this run is shard 1/3"):
        score_files(scorer, photos, url, shard=Shard(1, 3))
    for out in (None, "memory://bucket/all.csv", tmp_path / "all.jsonl"):
        summary = merge_shards(url, out)
        assert summary.images == 12
    assert names(bucket)[0] == "all.csv"
    merged = bucket.cat("/bucket/run/scores.jsonl")
    assert merged == (tmp_path / "all.jsonl").read_bytes()
    assert [json.loads(line)["value"] for line in merged.splitlines()] == list(range(12))
    with pytest.raises(UserError, match="exists"):
        merge_shards(url)


def test_a_shard_that_begins_again_is_not_complete_until_it_ends(
    scorer: Scorer, bucket: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_SECONDS", 0.0)
    monkeypatch.setattr(mirror, "_SHARE", 1e9)
    url = "memory://bucket/run"
    score_files(scorer, photos, url, shard=Shard(1, 1))
    (photos / "new.png").write_bytes(png(50))
    (photos / "newer.png").write_bytes(png(50))

    def killed(score: Score) -> None:
        assert names(bucket) == ["run/shard-1-of-1.jsonl"]
        raise KilledError

    with pytest.raises(KilledError):
        score_files(scorer, photos, url, shard=Shard(1, 1), on_score=killed)
    with pytest.raises(UserError, match="have not ended: score 1/1"):
        merge_shards(url)


def test_addresses_that_cannot_be_used(scorer: Scorer, bucket: Any, photos: Path) -> None:
    with pytest.raises(UserError, match=r"cannot use 'unknown://x': .*check the address"):
        score_files(scorer, photos, "unknown://x/r.jsonl")
    with pytest.raises(UserError, match="is a folder, for shards"):
        score_files(scorer, photos, "memory://bucket/run/")


def test_the_address_of_a_local_file_is_its_path(
    scorer: Scorer, photos: Path, tmp_path: Path
) -> None:
    """Which is locked: two runs that copied their rows there would lose those of one."""
    for index in (1, 2):
        score_files(scorer, photos, f"file://{tmp_path}/shards", shard=Shard(index, 2))

    def other(score: Score) -> None:
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            score_files(scorer, photos, f"file://{tmp_path}/r.jsonl")

    summary = score_files(scorer, photos, f"file://{tmp_path}/r.jsonl", on_score=other)
    assert summary.out == tmp_path / "r.jsonl"
    merged = merge_shards(f"file://{tmp_path}/shards", f"file://{tmp_path}/m.jsonl")
    assert merged.out == tmp_path / "m.jsonl"
    assert (tmp_path / "m.jsonl").read_bytes() == (tmp_path / "r.jsonl").read_bytes()


def test_a_copy_that_fails_once_is_tried_again(
    scorer: Scorer, bucket: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_SECONDS", 0.0)
    monkeypatch.setattr(mirror, "_SHARE", 1e9)
    put, fails = type(bucket).put_file, iter([False, True, False, True, False] + [True] * 99)

    def flaky(self: Any, *paths: str) -> None:
        if next(fails):
            raise OSError("the network is down")
        put(self, *paths)

    monkeypatch.setattr(type(bucket), "put_file", flaky)
    with pytest.raises(UserError, match="the network is down"):
        score_files(scorer, photos, "memory://bucket/r.jsonl")
    assert bucket.cat("/bucket/r.jsonl").count(b"\n") == 5  # until the second failure in a row
    monkeypatch.undo()
    assert score_files(scorer, photos, "memory://bucket/r.jsonl").already_there == 5
