import sys
from pathlib import Path

import pytest

from drexperts.runtime.places import cache_folder, state_folder


@pytest.mark.parametrize(
    ("platform", "state", "cache"),
    [
        ("linux", "/home/me/.local/state", "/home/me/.cache"),
        ("darwin", "/home/me/Library/Application Support", "/home/me/Library/Caches"),
        ("win32", "/home/me/AppData/Local", "/home/me/AppData/Local"),
    ],
)
def test_by_custom(platform, state, cache, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", "/home/me")
    for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, "relative/folder")
    assert state_folder() == Path(state, "drexperts")
    assert cache_folder() == Path(cache, "drexperts")


@pytest.mark.parametrize(("platform", "variables"), [("linux", "XDG"), ("win32", "LOCALAPPDATA")])
def test_by_variable(platform, variables, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, f"/{variable}")
    state = state_folder().parent.name
    cache = cache_folder().parent.name
    if variables == "XDG":
        assert (state, cache) == ("XDG_STATE_HOME", "XDG_CACHE_HOME")
    else:
        assert state == cache == "LOCALAPPDATA"


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_without_a_home_there_is_no_folder(platform, monkeypatch):
    """As for a user of a container who has no entry among the users: `~` stays as it is."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    for folder in (state_folder, cache_folder):
        with pytest.raises(OSError, match="set HOME"):
            folder()
