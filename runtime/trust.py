"""Which TensorRT engines were built here.

Deserialising a plan can run its maker's code: a plan can hold machine code, which TensorRT does not
check. The SHA-256 in a manifest says that a plan is unchanged, but not who made it. So `drx build`
records each engine that it writes in a file of the user, and any other engine needs `trust=True`.
"""

from pathlib import Path

from drexperts.runtime.places import state_folder

_FILE = "engines-built-here"


def built_here(sha256: str) -> bool:
    """Whether this user's `drx build` wrote the file with this SHA-256."""
    try:
        return sha256 in _notes().read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return False


def note_built_here(sha256: str) -> None:
    """Record an engine as built here. Raises OSError."""
    notes = _notes()
    notes.parent.mkdir(parents=True, exist_ok=True)
    with open(notes, "a", encoding="ascii") as stream:
        stream.write(f"\n{sha256}\n")  # on its own line, even after a line that a full disk cut off


def _notes() -> Path:
    return state_folder() / _FILE
