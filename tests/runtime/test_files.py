"""Files and folders that are whole or not there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drexperts.runtime import files
from drexperts.runtime.errors import UserError
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
    monkeypatch.setattr(files, "_exchanged", lambda first, second: False)
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two names at once")
def test_a_folder_is_replaced_in_one_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    monkeypatch.setattr(files, "_replace_in_two_steps", lambda *_: pytest.fail("two renames"))
    with folder_written_whole(out) as aside:
        (aside / "file").write_text("new")
    assert (out / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


WRITER = """
import sys
from pathlib import Path
from drexperts.runtime.errors import UserError
from drexperts.runtime.files import folder_written_whole
while True:
    with folder_written_whole(Path(sys.argv[1])) as aside:
        (aside / "file").write_text("whole")
    print(flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two names at once")
def test_killed_writers_leave_a_whole_folder_at_every_moment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with folder_written_whole(out) as aside:
        (aside / "file").write_text("whole")
    for kill in range(20):
        command = [sys.executable, "-P", "-c", WRITER, str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(200 + 37 * kill):  # so that kills come at other moments
                assert (out / "file").read_text() == "whole"
            process.kill()
        assert (out / "file").read_text() == "whole"
    with folder_written_whole(out) as aside:
        (aside / "file").write_text("last")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_kill_between_two_renames_left_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.old-0").mkdir()
    (tmp_path / ".out.old-0" / "file").write_text("old")
    (tmp_path / ".out.partial-0").mkdir()
    with pytest.raises(ZeroDivisionError), folder_written_whole(out) as aside:
        fail_after_half(aside / "file")
    assert (out / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with folder_written_whole(out) as aside:
        with pytest.raises(UserError, match="process"), folder_written_whole(out):
            pass
        (aside / "file").write_text("new")
    assert (out / "file").read_text() == "new"
