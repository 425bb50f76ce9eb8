"""Which TensorRT engines were built here.

Deserialising a plan is as good as running a program of its maker: a plan can hold machine code, and
TensorRT does not check it. Its SHA-256 in a manifest says that it was not changed since, not who
made it. So `drx build` notes each engine it writes in a file of the user's own, and any other
engine is opened only for who says `trust=True`.
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
    """Add an engine to those built here. Raises OSError."""
    notes = _notes()
    notes.parent.mkdir(parents=True, exist_ok=True)
    with open(notes, "a", encoding="ascii") as stream:
        stream.write(f"\n{sha256}\n")  # a line of its own, whatever a full disk cut off before


def _notes() -> Path:
    return state_folder() / _FILE
