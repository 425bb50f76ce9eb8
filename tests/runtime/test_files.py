"""Files and folders that are whole or not there."""

import os
import shutil
from pathlib import Path

import pytest

from drexperts.runtime.files import folder_written_whole, written_whole


def fail_after_half(path: Path) -> None:
    path.write_text("half")
    raise ZeroDivisionError


def test_a_file_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with written_whole(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.parent == tmp_path
        assert aside.name.startswith(".report.json.part-")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_has_one_file_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with open(path) as reader:
        with written_whole(path) as aside:
            aside.write_text("new")
        assert reader.read() == "old"


def test_after_an_error_what_was_there_is_there_still(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), written_whole(path) as aside:
        fail_after_half(aside)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass
    assert path.read_text() == "old"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    with written_whole(path) as first, written_whole(path) as second:
        assert first != second
        first.write_text("a" * 1000)
        second.write_text("b")
    assert path.read_text() == "a" * 1000  # the last to end
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_its_place_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with folder_written_whole(out) as aside:
        (aside / "file").write_text("new")
        assert not out.exists()
    assert (out / "file").read_text() == "new"
    assert out.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if "partial" in str(source):
            raise OSError("it is in use")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="in use"), folder_written_whole(out):
        pass
    assert (out / "file").read_text() == "old"


def test_after_an_error_the_old_folder_is_there_still(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    with pytest.raises(FileNotFoundError), folder_written_whole(out) as aside:
        shutil.copy(tmp_path / "none", aside)
    assert (out / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
