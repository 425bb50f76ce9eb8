"""Results in a Parquet file: whole or absent, and continued."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from support.result_rows import AWKWARD, NAMES, scored

from drexperts.runtime.errors import MissingDependencyError, UserError
from drexperts.runtime.results import open_results
from drexperts.runtime.results.done import DoneSources
from drexperts.runtime.results.parquet_table import from_text


class KilledError(Exception):
    """Ends a run before it has written the Parquet file."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "r.parquet"


def write(path: Path, *scores: Any, killed: bool = False, **options: Any) -> DoneSources:
    given = {"fingerprint": "f" * 16, "distortions": NAMES} | options
    try:
        with open_results(path, **given) as results:
            for score in scores:
                results.append(score)
            if killed:
                raise KilledError
    except KilledError:
        pass
    return results.done


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def sources_of(path: Path) -> list[str]:
    return [from_text(row["source"]) for row in rows_of(path)]


def test_rows_hold_everything(path: Path) -> None:
    first = dataclasses.replace(scored("a.jpg"), enlarged=2.5, crops_per_side=2)
    write(path, first, scored("b.jpg", error="bad"), *map(scored, AWKWARD))
    good, bad, *rest = rows_of(path)
    assert (good["value"], good["std"], good["raw"]) == (first.value, first.std, list(first.raw))
    assert {name: good[name] for name in NAMES} == first.distortions
    assert (good["scale_low"], good["scale_high"], good["higher_is_better"]) == (0, 100, True)
    assert (good["enlarged"], good["crops_per_side"], good["error"]) == (2.5, 2, None)
    assert (bad["error"], bad["value"], bad["raw"], bad[NAMES[0]]) == ("bad", None, [], None)
    assert [from_text(row["source"]) for row in rest] == AWKWARD
    metadata = pyarrow.parquet.read_schema(path).metadata
    assert metadata[b"drexperts.fingerprint"] == b"f" * 16
    assert os.listdir(path.parent) == [path.name]


def test_a_killed_run_has_its_rows_beside_the_file(path: Path) -> None:
    write(path, *map(scored, AWKWARD), killed=True)
    assert os.listdir(path.parent) == ["r.parquet.jsonl"]
    done = write(path, scored("more.jpg"))
    assert len(done) == len(AWKWARD)
    assert sources_of(path) == [*AWKWARD, "more.jpg"]
    assert os.listdir(path.parent) == ["r.parquet"]


def test_a_later_run_goes_on(path: Path) -> None:
    write(path, *map(scored, AWKWARD))
    before = path.read_bytes()
    done = write(path)
    assert all(done.is_scored(source) for source in AWKWARD)
    assert path.read_bytes() == before
    write(path, scored("1.jpg"), killed=True)
    assert path.read_bytes() == before
    done = write(path, scored("2.jpg"))
    assert len(done) == len(AWKWARD) + 1
    assert sources_of(path) == [*AWKWARD, "1.jpg", "2.jpg"]


def test_a_kill_between_the_file_and_the_end_of_its_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, scored("a.jpg"), scored("b.jpg", error="no"))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *args, **kwargs: None)
        write(path, scored("c.jpg"), scored("b.jpg"), retry_errors=True)
    assert len(os.listdir(path.parent)) > 1
    for _ in range(2):
        done = write(path)
        assert len(done) == 3
        assert sources_of(path) == ["a.jpg", "c.jpg", "b.jpg"]


def test_retrying_errors_replaces_their_rows(path: Path) -> None:
    write(path, scored("a.jpg"), scored("b.jpg", error="no"), scored("c.jpg", error="no"))
    done = write(path, scored("b.jpg"), scored("c.jpg", error="still"), retry_errors=True)
    assert ["a.jpg" in done, "b.jpg" in done] == [True, False]
    assert [(row["source"], row["error"]) for row in rows_of(path)] == [
        ("a.jpg", None),
        ("b.jpg", None),
        ("c.jpg", "still"),
    ]
    write(path, retry_errors=True)  # a run that ended before it came to them
    assert len(rows_of(path)) == 3


def test_overwrite_starts_over(path: Path) -> None:
    write(path, scored("a.jpg"))
    write(path, scored("b.jpg", fingerprint="0"), fingerprint="0", overwrite=True, killed=True)
    assert len(write(path, fingerprint="0")) == 1
    assert sources_of(path) == ["b.jpg"]


def test_a_file_of_something_else_is_refused_and_kept(path: Path) -> None:
    write(path, scored("a.jpg"))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"fingerprint f{16}, this run makes 0{16}"):
        write(path, fingerprint="0" * 16)
    assert path.read_bytes() == before
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)
    with pytest.raises(UserError, match=r"fingerprint none.*overwrite=True"):
        write(path)
    path.write_bytes(b"junk")
    with pytest.raises(UserError, match="holds no scores"):
        write(path)
    assert path.read_bytes() == b"junk"


def test_a_second_writer_is_refused(path: Path) -> None:
    with open_results(path, fingerprint="f" * 16, distortions=NAMES) as results:
        results.append(scored("a.jpg"))
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            write(path)
    assert sources_of(path) == ["a.jpg"]


def test_without_pyarrow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match="parquet"):
        write(path)


def test_groups_of_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drexperts.runtime.results.parquet_table.ROWS_PER_GROUP", 3)
    write(path, *(scored(f"{i}.jpg") for i in range(8)))
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 3


SPELLED = [
    "a\\udcff.jpg",
    "a\udcff.jpg",
    "a\\x5cudcff.jpg",
    "\\x5c",
    "\\\\udcff",
    "\\\udcff\\udcff",
    "\\udcf",
    "\\",
]


def test_names_that_look_like_what_stands_for_a_byte(path: Path) -> None:
    """A name that came back as another would be scored in every run, and doubled."""
    write(path, *map(scored, SPELLED))
    assert sources_of(path) == SPELLED
    assert all(source in write(path) for source in SPELLED)


def test_a_damaged_file_is_refused_and_kept(path: Path) -> None:
    write(path, *(scored(f"{i}.jpg") for i in range(100)))
    data = bytearray(path.read_bytes())
    data[4:300] = bytes(296)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"r\.parquet' is damaged"):
        write(path, scored("more.jpg"))
    assert path.read_bytes() == data


def test_what_a_kill_left_of_the_file_is_overwritten(path: Path) -> None:
    write(path, scored("a.jpg"))
    (path.parent / ".r.parquet.part").write_bytes(bytes(10**6))
    write(path, scored("b.jpg"))
    assert sources_of(path) == ["a.jpg", "b.jpg"]
    assert os.listdir(path.parent) == ["r.parquet"]
