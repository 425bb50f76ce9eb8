"""Which TensorRT engines were built here.

Deserialising a plan can run its maker's code: a plan can hold machine code, which TensorRT does not
check. The SHA-256 in a manifest says that a plan is unchanged, but not who made it. So `drx build`
records each engine that it writes in a file of the user, and any other engine needs `trust=True`.
"""

from pathlib import Path

from drexperts.runtime.manifest import TENSORRT_BACKENDS, Engine
from drexperts.runtime.places import state_folder
from drexperts.runtime.wording import rebuild, remedy

_FILE = "engines-built-here"


def objection(engine: Engine) -> str | None:
    """Why an engine is not to be run unless its maker is trusted; None if it can be."""
    if engine.backend not in TENSORRT_BACKENDS or built_here(engine.sha256):
        return None
    take = remedy(
        "pass --trust, which `drx score`, `drx verify` and `drx triton-repo` take",
        "pass trust=True, which `runtime.load` takes",
    )
    return (
        "it was not built here, and a TensorRT engine can run its maker's code: "
        f"{rebuild(engine.backend)}, or {take}, if you trust its source"
    )


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
