"""The user's folders for state and cache, by the conventions of the platform."""

import errno
import os
import sys
from pathlib import Path


def state_folder() -> Path:
    """The folder for records that cannot be made again. Raises OSError if the user has none."""
    return _folder("XDG_STATE_HOME", "~/.local/state", "~/Library/Application Support")


def cache_folder() -> Path:
    """The folder for files that can be made again. Raises OSError if the user has none."""
    return _folder("XDG_CACHE_HOME", "~/.cache", "~/Library/Caches")


def _folder(variable: str, otherwise: str, on_macos: str) -> Path:
    if sys.platform == "win32":
        variable, otherwise = "LOCALAPPDATA", "~/AppData/Local"
    given = os.environ.get(variable, "")
    # The specification says to ignore a relative path, which depends on the working directory.
    base = on_macos if sys.platform == "darwin" else given if os.path.isabs(given) else otherwise
    folder = os.path.expanduser(base)
    if not os.path.isabs(folder):
        # It stays "~/..." for a user without a home. Whoever can write into the working directory
        # would decide what is read there.
        raise FileNotFoundError(
            errno.ENOENT, f"this user has no home folder: set HOME or {variable} to a full path"
        )
    return Path(folder) / "drexperts"
