"""Shards, killed and continued in any order, merge into the file of one run."""

import functools
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from support.archives import exact_scorer, png, write_parquet, write_tar
from support.kills import killed

from drexperts import runtime
from drexperts.runtime import Scorer, Shard, UserError, merge_shards, score_files
from drexperts.runtime.results import sorting
from drexperts.runtime.results.shard_files import file_of, forget_record, shards_in

SUFFIXES = (".jsonl", ".csv", ".parquet")


@pytest.fixture(scope="module")
def toy(toy_bundle: Path) -> Scorer:
    return runtime.load(toy_bundle, threads=1)


@pytest.fixture(scope="module")
def scorer(toy: Scorer) -> Scorer:
    return exact_scorer(toy)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Photographs, tar archives, one of which is cut off, and a Parquet file."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "photos").mkdir()
    for i in range(12):
        (folder / "photos" / f"{i:02}.png").write_bytes(png(10 * i))
    (folder / "photos" / "broken.jpg").write_bytes(b"junk")
    for number in range(5):
        images = [(f"{i}.png", png(50 * number + i)) for i in range(4)]
        write_tar(folder / f"{number}.tar", images)
    cut = (folder / "4.tar").read_bytes()
    (folder / "4.tar").write_bytes(cut[: len(cut.rstrip(b"\0")) - 20])
    write_parquet(folder / "p.parquet", {"image": [png(3 * i) for i in range(6)]})
    return [str(folder / "photos"), f"{folder}/*.tar", str(folder / "p.parquet")]


@pytest.fixture(scope="module")
def whole(scorer: Scorer, inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The rows of one run, sorted by source."""
    out = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    score_files(scorer, inputs, out)
    lines = out.read_bytes().splitlines(keepends=True)
    assert len(lines) == 13 + 20 + 1 + 6
    lines.sort(key=source_of)
    return b"".join(lines)


def source_of(line: bytes) -> str:
    return str(json.loads(line)["source"])


def score_shard(scorer: Scorer, inputs: list[str], out: Path, shard: Shard) -> Any:
    return score_files(scorer, inputs, out, shard=shard)


def score_all(scorer: Scorer, inputs: list[str], out: Path, count: int) -> None:
    for index in range(1, count + 1):
        score_shard(scorer, inputs, out, Shard(index, count))


@pytest.mark.slow
def test_any_shards_killed_anyhow_merge_into_one_run(
    toy: Scorer, inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least 200 kills by SIGKILL, of shards in any order and of the merge."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    expected = {suffix: merged_once(toy, inputs, tmp_path, suffix) for suffix in SUFFIXES}
    kills = dict.fromkeys(("shard", "merge"), 0)
    runs = 0
    while sum(kills.values()) < 200:
        draw, out, runs = random.Random(runs), tmp_path / str(runs), runs + 1
        count = draw.randint(1, 5)
        todo = [Shard(index, count) for index in range(1, count + 1)]
        while todo:
            shard = draw.choice(todo)
            score = functools.partial(score_in_child, toy, inputs, out, shard=shard)
            if killed(score, draw.randint(0, 12 + 40 // count), draw):
                kills["shard"] += 1
                assert merged_or_refused(out, tmp_path / "early.jsonl") in (
                    None,
                    expected[".jsonl"],
                )
            elif draw.random() < 0.8:  # otherwise it is begun again, and may be killed
                todo.remove(shard)
        suffix = draw.choice(SUFFIXES)
        goal = tmp_path / f"{runs}{suffix}"
        merge = functools.partial(merge_shards, out, goal)
        while not goal.exists() and killed(merge, draw.randint(0, 15), draw):
            kills["merge"] += 1
        assert goal.read_bytes() == expected[suffix]
    assert runs > 5
    assert min(kills.values()) > 5


def merged_or_refused(folder: Path, goal: Path) -> bytes | None:
    """A merge after a kill, which may have come when all was done."""
    try:
        merge_shards(folder, goal, overwrite=True)
    except UserError as error:
        if re.search("no shards|missing or have not ended", str(error)) is None:
            raise
        return None
    return goal.read_bytes()


def merged_once(toy: Scorer, inputs: list[str], tmp_path: Path, suffix: str) -> bytes:
    """One run that was not killed, sorted."""
    folder, goal = tmp_path / f"whole-{suffix[1:]}", tmp_path / f"expected{suffix}"
    score_shard(exact_scorer(toy), inputs, folder, Shard(1, 1))
    merge_shards(folder, goal)
    return goal.read_bytes()


def score_in_child(toy: Scorer, inputs: list[str], out: Path, **options: Any) -> None:
    # A Scorer that was made before the fork has lost its engine.
    score_files(exact_scorer(toy), inputs, out, **options)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_file_killed_anyhow(
    suffix: str,
    toy: Scorer,
    inputs: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every change of the disk but the rows in the middle, errors scored again among them."""
    monkeypatch.setattr(os, "fsync", lambda file: None)

    def rows(path: Path) -> Any:
        if suffix != ".parquet":
            return sorted(path.read_bytes().splitlines())
        return pyarrow.parquet.read_table(path).sort_by("source").to_pylist()

    whole = tmp_path / f"whole{suffix}"
    score_files(exact_scorer(toy), inputs, whole)
    expected, kills = rows(whole), 0
    for changes in (*range(8), *range(38, 55)):
        out, draw = tmp_path / f"{changes}{suffix}", random.Random(changes)
        score = functools.partial(score_in_child, toy, inputs, out)
        kills += killed(score, changes, draw)
        score()
        assert rows(out) == expected
        again = functools.partial(score, retry_errors=True)
        kills += killed(again, changes % 16, draw)
        again()
        assert rows(out) == expected
    assert kills > 30
    assert not [name for name in os.listdir(tmp_path) if ".part" in name or "parquet.j" in name]


def test_a_torn_file_is_continued_from_every_length(
    scorer: Scorer, inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    out = tmp_path / "r.jsonl"
    score_files(scorer, inputs, out)
    expected, draw = out.read_bytes(), random.Random(0)
    for length in draw.sample(range(len(expected)), 60):
        out.write_bytes(expected[:length])
        summary = score_files(scorer, inputs, out)
        assert out.read_bytes() == expected
        assert summary.already_there == expected[:length].count(b"\n")


def test_what_a_shard_does(scorer: Scorer, inputs: list[str], tmp_path: Path) -> None:
    summaries = [score_shard(scorer, inputs, tmp_path, Shard(i, 3)) for i in (1, 2, 3)]
    assert sum(summary.images for summary in summaries) == 40
    assert sorted(os.listdir(tmp_path)) == [
        f"shard-{i}-of-3.{suffix}" for i in (1, 2, 3) for suffix in ("done.json", "jsonl")
    ]
    again = score_shard(scorer, inputs, tmp_path, Shard(2, 3))
    assert (again.already_there, again.scored) == (summaries[1].images, 0)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_merged_into_another_form(
    suffix: str, scorer: Scorer, inputs: list[str], tmp_path: Path
) -> None:
    score_all(scorer, inputs, tmp_path / "shards", 3)
    out = tmp_path / f"merged{suffix}"
    summary = merge_shards(tmp_path / "shards", out)
    assert (summary.shards, summary.images, summary.failed, summary.out) == (3, 40, 3, out)
    alone = tmp_path / f"alone{suffix}"
    score_files(scorer, inputs, alone)
    if suffix == ".csv":
        header, *rows = alone.read_bytes().splitlines(keepends=True)
        assert out.read_bytes() == b"".join([header, *sorted(rows, key=lambda r: r.split(b",")[0])])
    else:
        one, other = (pyarrow.parquet.read_table(path) for path in (out, alone))
        assert one.equals(other.sort_by("source"))
        assert one.schema.metadata == other.schema.metadata


def test_sorting_in_pieces(
    scorer: Scorer,
    inputs: list[str],
    whole: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sorting, "_CHUNK", 2000)
    monkeypatch.setattr(sorting, "_MOST", 3)
    score_all(scorer, inputs, tmp_path, 2)
    before = set(os.listdir(tmp_path))
    merge_shards(tmp_path)
    assert (tmp_path / "scores.jsonl").read_bytes() == whole
    assert set(os.listdir(tmp_path)) == before | {"scores.jsonl"}


def test_a_merge_is_not_replaced_unless_told(
    scorer: Scorer, inputs: list[str], tmp_path: Path
) -> None:
    score_all(scorer, inputs, tmp_path, 1)
    merge_shards(tmp_path)
    with pytest.raises(UserError, match="overwrite=True"):
        merge_shards(tmp_path)
    merge_shards(tmp_path, overwrite=True)
    with pytest.raises(UserError, match=r"\.jsonl, \.csv or \.parquet"):
        merge_shards(tmp_path, tmp_path / "x.txt")


def test_what_is_not_merged(scorer: Scorer, inputs: list[str], tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            merge_shards(tmp_path)
        assert not (tmp_path / "scores.jsonl").exists()

    refused("no shards")
    for index in (1, 3):
        score_shard(scorer, inputs, tmp_path, Shard(index, 3))
    refused("1 of 3 shards .* missing or have not ended: score 2/3")
    score_shard(scorer, inputs, tmp_path, Shard(2, 3))
    with open(file_of(tmp_path, Shard(1, 3)), "ab") as stream:
        stream.write(b"more")
    refused("score 1/3")
    score_shard(scorer, inputs, tmp_path, Shard(1, 3))
    score_shard(scorer, inputs[:2], tmp_path, Shard(3, 3))
    refused("shards 1/3 and 3/3 saw other inputs")
    score_shard(scorer, inputs, tmp_path, Shard(3, 3))
    merge_shards(tmp_path)


def test_shards_of_other_software_are_not_merged(
    scorer: Scorer, inputs: list[str], tmp_path: Path
) -> None:
    score_shard(scorer, inputs, tmp_path, Shard(1, 2))
    score_shard(scorer, inputs, tmp_path, Shard(2, 2))
    record = tmp_path / "shard-2-of-2.done.json"
    document = json.loads(record.read_text())
    record.write_text(json.dumps(document | {"fingerprint": "0" * 16}))
    with pytest.raises(UserError, match=f"fingerprints {scorer.fingerprint()} and {'0' * 16}"):
        merge_shards(tmp_path)
    record.write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        merge_shards(tmp_path)


def test_images_that_are_there_twice_are_not_merged(
    scorer: Scorer, inputs: list[str], tmp_path: Path
) -> None:
    score_all(scorer, inputs, tmp_path, 2)
    first, second = (file_of(tmp_path, Shard(i, 2)) for i in (1, 2))
    lines = first.read_bytes().splitlines(keepends=True)
    for extra, match in ((lines[:1], "is there twice"), ([b"{}\n"], "damaged")):
        whole = second.read_bytes()
        second.write_bytes(whole + b"".join(extra))
        record = tmp_path / "shard-2-of-2.done.json"
        before = record.read_text()
        changes = {"rows": whole.count(b"\n") + 1, "bytes": second.stat().st_size}
        record.write_text(json.dumps(json.loads(before) | changes))
        with pytest.raises(UserError, match=match):
            merge_shards(tmp_path)
        second.write_bytes(whole)
        record.write_text(before)


def test_rows_of_other_software_in_a_shard_are_not_merged(
    scorer: Scorer, inputs: list[str], tmp_path: Path
) -> None:
    score_all(scorer, inputs, tmp_path, 1)
    file = file_of(tmp_path, Shard(1, 1))
    ours, other = scorer.fingerprint().encode(), b"0" * 16
    file.write_bytes(file.read_bytes().replace(ours, other, 1))
    with pytest.raises(UserError, match=f"{scorer.fingerprint()} and {'0' * 16}: score it again"):
        merge_shards(tmp_path)


@pytest.mark.parametrize("source", [r'"\ud800"', "5", "null"])
def test_sources_that_no_run_writes_are_damage(
    source: str, scorer: Scorer, inputs: list[str], tmp_path: Path
) -> None:
    score_all(scorer, inputs[2:], tmp_path, 1)
    file = file_of(tmp_path, Shard(1, 1))
    first = json.dumps(json.loads(file.read_bytes().splitlines()[0])["source"])
    record = json.loads((tmp_path / "shard-1-of-1.done.json").read_text())
    file.write_bytes(file.read_bytes().replace(first.encode(), source.encode(), 1))
    record["bytes"] = file.stat().st_size
    (tmp_path / "shard-1-of-1.done.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="file of shard 1/1 is damaged"):
        merge_shards(tmp_path)
    if source != "5":  # what a file begins with is looked at first
        with pytest.raises(UserError, match=r"is not a score|holds no scores"):
            score_shard(scorer, inputs[2:], tmp_path, Shard(1, 1))


def test_a_merge_does_not_replace_a_shard(
    scorer: Scorer, inputs: list[str], tmp_path: Path
) -> None:
    score_all(scorer, inputs, tmp_path, 1)
    with pytest.raises(UserError, match="name of a shard's file"):
        merge_shards(tmp_path, file_of(tmp_path, Shard(1, 1)), overwrite=True)


def test_names_that_are_nearly_those_of_shards(tmp_path: Path) -> None:
    names = [
        "shard-1-of-2.jsonl",
        "shard-01-of-2.jsonl",
        "shard-0-of-2.jsonl",
        "shard-3-of-2.jsonl",
    ]
    assert shards_in([*names, "shard-2-of-02.jsonl", "x-shard-2-of-2.jsonl"]) == [Shard(1, 2)]
    assert shards_in(["shard-02-of-10.jsonl"]) == [Shard(2, 10)]


def test_a_run_that_begins_forgets_that_the_shard_was_complete(
    scorer: Scorer, inputs: list[str], tmp_path: Path
) -> None:
    score_shard(scorer, inputs, tmp_path, Shard(1, 1))
    forget_record(tmp_path, Shard(1, 1))
    with pytest.raises(UserError, match="have not ended: score 1/1"):
        merge_shards(tmp_path)


def test_a_folder_holds_shards_of_one_count(
    scorer: Scorer, inputs: list[str], tmp_path: Path
) -> None:
    score_shard(scorer, inputs, tmp_path, Shard(1, 2))
    with pytest.raises(UserError, match="holds shard 1/2, and this run is shard 1/1"):
        score_shard(scorer, inputs, tmp_path, Shard(1, 1))
    (tmp_path / "shard-1-of-9.jsonl").touch()
    with pytest.raises(UserError, match="shards of 2 and of 9"):
        merge_shards(tmp_path)


def test_a_shard_may_have_no_part(scorer: Scorer, inputs: list[str], tmp_path: Path) -> None:
    for index in range(1, 10):
        summary = score_files(scorer, inputs[2], tmp_path, shard=Shard(index, 9))
        assert summary.images in (0, 6)
    assert merge_shards(tmp_path).images == 6
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image"):
        score_files(scorer, tmp_path / "empty", tmp_path / "out", shard=Shard(1, 2))


@pytest.mark.parametrize(
    ("out", "shard", "match"),
    [
        (None, Shard(1, 2), "into a folder: pass out="),
        ("x.jsonl", Shard(1, 2), "name a folder"),
        (".", None, "is a folder, for shards"),
        ("new/", None, "is a folder, for shards"),
    ],
)
def test_where_shards_go(
    out: str | None,
    shard: Shard | None,
    match: str,
    scorer: Scorer,
    inputs: list[str],
    tmp_path: Path,
) -> None:
    place = None if out is None else os.path.join(tmp_path, out)
    with pytest.raises(UserError, match=match):
        score_files(scorer, inputs, place, shard=shard)
    assert os.listdir(tmp_path) == []
