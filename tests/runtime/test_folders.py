import os
import shutil

import pytest

from drexperts.runtime.folders import folder_aside


def test_it_takes_its_place_whole(tmp_path):
    out = tmp_path / "new" / "out"
    with folder_aside(out) as aside:
        (aside / "file").write_text("new")
        assert not out.exists()
    assert (out / "file").read_text() == "new"
    assert out.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_was_there_comes_back_when_the_new_cannot_take_its_place(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    replace = os.replace

    def failing(source, target):
        if "partial" in str(source):
            raise OSError("it is in use")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="in use"), folder_aside(out):
        pass
    assert (out / "file").read_text() == "old"


def test_what_was_there_stays_when_the_block_fails(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    with pytest.raises(FileNotFoundError), folder_aside(out) as aside:
        shutil.copy(tmp_path / "none", aside)
    assert (out / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
