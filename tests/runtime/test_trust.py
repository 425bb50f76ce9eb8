import shutil

import pytest

from drexperts.runtime import trust
from drexperts.runtime.places import state_folder

ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_only_what_was_noted_was_built_here():
    assert not trust.built_here(ONE)
    trust.note_built_here(ONE)
    assert trust.built_here(ONE)
    assert not trust.built_here(TWO)
    assert not trust.built_here(ONE[:32])
    trust.note_built_here(TWO)
    assert trust.built_here(ONE)
    assert trust.built_here(TWO)


def test_a_line_that_was_cut_off_costs_only_itself():
    trust.note_built_here(ONE)
    with open(state_folder() / "engines-built-here", "a") as stream:
        stream.write("2" * 10)
    trust.note_built_here(TWO)
    assert trust.built_here(ONE)
    assert trust.built_here(TWO)


def test_notes_that_cannot_be_read_are_no_trust():
    trust.note_built_here(ONE)
    notes = state_folder() / "engines-built-here"
    notes.write_bytes(b"\xff\xfe" + ONE.encode())
    assert not trust.built_here(ONE)


def test_without_a_home_nothing_was_built_here(tmp_path, monkeypatch):
    trust.note_built_here(ONE)
    planted = tmp_path / "~" / ".local" / "state" / "drexperts"
    planted.mkdir(parents=True)
    shutil.copy(state_folder() / "engines-built-here", planted)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert not trust.built_here(ONE)
    with pytest.raises(OSError, match="no home folder"):
        trust.note_built_here(TWO)
