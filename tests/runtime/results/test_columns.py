"""Result files as rows and as columns: every format says the same."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.memory_bucket import memory_bucket
from support.result_files import result_file
from support.result_rows import AWKWARD, NAMES, scored

from drexperts.runtime.digests import identity_of
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.results import open_results
from drexperts.runtime.results.columns import read_columns
from drexperts.runtime.results.rows import Contract, ResultRow, result_rows

FORMATS = pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
SCORES: dict[str, float | str] = {
    **{name: 10.0 * i + 1 / 3 for i, name in enumerate(AWKWARD)},
    'bad, "scale": {.jpg': 'cannot read "it", "scale": {',
    "-1.jpg": -1.5e-07,
}
SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)


@FORMATS
def test_rows_are_those_that_were_written(tmp_path: Path, suffix: str) -> None:
    path = result_file(tmp_path / f"r{suffix}", SCORES, crops_per_side=2)
    rows = dict(result_rows(str(path)))
    assert list(rows) == list(range(len(SCORES)))
    assert [row.source for row in rows.values()] == list(SCORES)
    for row, value in zip(rows.values(), SCORES.values(), strict=True):
        assert row.contract == Contract("f" * 16, SCALE, 2)
        assert (row.error or row.value) == value
        assert np.isnan(row.value) == (row.error is not None)


@FORMATS
def test_only_the_wanted_rows(tmp_path: Path, suffix: str) -> None:
    path = result_file(tmp_path / f"r{suffix}", SCORES)
    found = list(result_rows(str(path), {1, 6}))
    assert [number for number, _ in found] == [1, 6]
    assert [row.source for _, row in found] == [AWKWARD[1], "-1.jpg"]


@FORMATS
def test_columns(tmp_path: Path, suffix: str) -> None:
    found = read_columns(result_file(tmp_path / f"r{suffix}", SCORES))
    assert found.contract == Contract("f" * 16, SCALE, None)
    values = [np.nan if isinstance(value, str) else value for value in SCORES.values()]
    np.testing.assert_array_equal(found.values, values)
    identities = np.array([identity_of(source) for source in SCORES])
    assert (found.identities == identities).all()


@FORMATS
def test_weights(tmp_path: Path, suffix: str) -> None:
    path = result_file(tmp_path / f"r{suffix}", {"a.jpg": 1.0, "b.jpg": "no"})
    names = (NAMES[3], NAMES[1])
    assert [row.weights for _, row in result_rows(str(path), names=names)] == [(3 / 7, 1 / 7), ()]
    assert not any(row.weights for _, row in result_rows(str(path)))


@FORMATS
def test_videos_are_left_out(tmp_path: Path, suffix: str) -> None:
    scores = {"v.mp4/0.000": 1.0, "v.mp4/1.000": 2.0, "v.mp4": 1.5, "w.mp4": "no", "x/0.000": 3.0}
    path = tmp_path / f"r{suffix}"
    with open_results(path, fingerprint="f" * 16, distortions=NAMES) as results:
        for source, value in scores.items():
            frames = {"v.mp4": 2, "w.mp4": 0}.get(source)
            error = value if isinstance(value, str) else None
            score = replace(scored(source, error), frames=frames)
            results.append(score if error else replace(score, value=value))
    rows = [row for _, row in result_rows(str(path))]
    assert [row.frames for row in rows] == [None, None, 2, 0, None]
    found = read_columns(path)
    assert found.values.tolist() == [1.0, 2.0, 3.0]
    assert found.videos.tolist() == [2, 3]
    sources = {place: row.source for place, row in found.rows([2, 0]).items()}
    assert sources == {2: "x/0.000", 0: "v.mp4/0.000"}


def test_a_file_of_videos_only(tmp_path: Path) -> None:
    path = result_file(tmp_path / "r.jsonl", {"v.mp4": "no"}, frames=0)
    with pytest.raises(UserError, match="holds no row of an image"):
        read_columns(path)


@FORMATS
def test_a_url(tmp_path: Path, suffix: str) -> None:
    path = result_file(tmp_path / f"r{suffix}", SCORES)
    url = f"memory://bucket/r{suffix}"
    with memory_bucket() as system:
        system.pipe_file(url, path.read_bytes())
        np.testing.assert_array_equal(read_columns(url).values, read_columns(path).values)
        with pytest.raises(UserError, match="check the address"):
            read_columns(f"memory://bucket/missing{suffix}")


def test_a_source_is_known_by_every_spelling_of_its_path(tmp_path: Path) -> None:
    spellings = ("a.jpg", "./a.jpg", os.path.abspath("a.jpg"))
    files = [result_file(tmp_path / f"{i}.csv", {s: 1.0}) for i, s in enumerate(spellings)]
    assert len({bytes(read_columns(file).identities[0]) for file in files}) == 1


def test_json_of_another_order_is_read_as_well(tmp_path: Path) -> None:
    path = result_file(tmp_path / "r.jsonl", SCORES)
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    other = tmp_path / "other.jsonl"
    lines = (json.dumps(dict(reversed(row.items())), separators=(",", ":")) for row in rows)
    other.write_text("".join(f"{line}\n" for line in lines))

    def comparable(row: ResultRow) -> tuple[object, ...]:
        return row.source, row.error, repr(row.value), row.contract

    ours, others = (map(comparable, dict(result_rows(str(p))).values()) for p in (path, other))
    assert list(ours) == list(others)


def test_json_that_another_program_wrote_in_utf8(tmp_path: Path) -> None:
    path = result_file(tmp_path / "r.jsonl", {"caf\u00e9.jpg": 1.0, "a.jpg": "\u00e9"})
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    found = [(row.source, row.error) for _, row in result_rows(str(path))]
    assert found == [("caf\u00e9.jpg", None), ("a.jpg", "\u00e9")]


def test_a_file_of_an_earlier_version(tmp_path: Path) -> None:
    path = result_file(tmp_path / "r.csv", {"a.jpg": 1.0})
    text = path.read_bytes().replace(b",enlarged,crops_per_side,frames", b"")
    path.write_bytes(text.replace(b",,,\r\n", b"\r\n"))
    assert read_columns(path).contract.crops_per_side is None


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_last_row_that_is_incomplete_is_passed_over(tmp_path: Path, suffix: str) -> None:
    path = result_file(tmp_path / f"r{suffix}", {"a.jpg": 1.0, "b.jpg": 2.0})
    path.write_bytes(path.read_bytes()[:-10])
    assert read_columns(path).values.tolist() == [1.0]


@FORMATS
@pytest.mark.parametrize(
    "content", [b"", b"\0\xff\n" * 3, b"source,label\na,1\n", b"[1]\n", b"{}\n"]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"r{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="holds no"):
        read_columns(path)


@pytest.mark.parametrize(
    "change",
    [
        (b'"source": "a.jpg"', b'"source": 3'),
        (b'"value": 1.0', b'"value": "1.0"'),
        (b'"value": 1.0', b'"value": 1.0.0'),
        (b'"low": 0.0', b'"low": 100.0'),
        (b'"low"', b'"least"'),
        (b'"fingerprint"', b'"made by"'),
        (b'"error": null', b'"error": 5'),
        (b'"source": "a.jpg"', b'"source": "\\ud800"'),
        (b'"value": 1.0', b'"value": -2e100'),
        (b'"high": 100.0', b'"high": 1e-300'),
        (b'"high": 100.0', b'"high": 1e300'),
        (b'"higher_is_better": true', b'"higher_is_better": "yes"'),
        (b'"crops_per_side": null', b'"crops_per_side": "2"'),
        (b'"fingerprint": "ffffffffffffffff"', b'"fingerprint": 5'),
    ],
)
def test_damage_is_named_with_its_row(tmp_path: Path, change: tuple[bytes, bytes]) -> None:
    path = result_file(tmp_path / "r.jsonl", {"b.jpg": 2.0, "a.jpg": 1.0})
    before, after = path.read_bytes().splitlines(keepends=True)
    assert change[0] in after
    path.write_bytes(before + after.replace(*change))
    with pytest.raises(UserError, match="near row 2"):
        read_columns(path)


def test_other_suffixes_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("")
    with pytest.raises(UserError, match=r"r\.txt' is not a file of scores: name a \.jsonl"):
        read_columns(tmp_path / "r.txt")
    with pytest.raises(FileNotFoundError):
        read_columns(tmp_path / "r.csv")


@FORMATS
def test_two_rows_of_an_image_are_refused(tmp_path: Path, suffix: str) -> None:
    path = result_file(tmp_path / f"r{suffix}", {"b.jpg": 1.0, "a.jpg": 1.0, "./b.jpg": 2.0})
    with pytest.raises(UserError, match=r"'\./b\.jpg' twice, again in row 3"):
        read_columns(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_of_two_runs_are_refused(tmp_path: Path, suffix: str) -> None:
    path = result_file(tmp_path / f"r{suffix}", {"a.jpg": 1.0})
    other = result_file(tmp_path / f"o{suffix}", {"b.jpg": 1.0}, "e" * 16)
    with open(path, "ab") as stream:
        stream.write(other.read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(UserError, match=f"row 2 is {'e' * 16}, of row 1 {'f' * 16}"):
        read_columns(path)


def test_scores_on_two_scales_are_refused(tmp_path: Path) -> None:
    path = result_file(tmp_path / "r.csv", {"a.jpg": 1.0, "b.jpg": 1.0})
    first, second = path.read_bytes().rsplit(b",100.0,", 1)
    path.write_bytes(first + b",10.0," + second)
    with pytest.raises(UserError, match=r": scale of row 2 is 0 to 10, .*, of row 1 0 to 100, "):
        read_columns(path)
