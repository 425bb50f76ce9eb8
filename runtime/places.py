"""The user's own folders, by the platform's custom."""

import os
import sys
from pathlib import Path


def state_folder() -> Path:
    """Where programs keep what they noted."""
    return _folder("XDG_STATE_HOME", "~/.local/state", "~/Library/Application Support")


def cache_folder() -> Path:
    """Where programs keep what they can make again."""
    return _folder("XDG_CACHE_HOME", "~/.cache", "~/Library/Caches")


def _folder(variable: str, otherwise: str, on_macos: str) -> Path:
    if sys.platform == "win32":
        variable, otherwise = "LOCALAPPDATA", "~/AppData/Local"
    given = os.environ.get(variable, "")
    # A relative path is to be ignored: it would name another folder from each working directory.
    base = on_macos if sys.platform == "darwin" else given if os.path.isabs(given) else otherwise
    return Path(os.path.expanduser(base)) / "drexperts"
