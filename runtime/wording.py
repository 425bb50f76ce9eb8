"""How a message names what the user can do: as it is typed for `drx`, or as Python calls it."""

from collections.abc import Iterator
from contextlib import contextmanager

EXPORT_AGAIN = "export the bundle again with `drx export`"

_spoken = False  # whether the command line runs in this process


def remedy(drx: str, python: str) -> str:
    """The first text where the user types commands, otherwise the second.

    remedy("pass --trust", "pass trust=True")
    """
    return drx if _spoken else python


def rebuild(backend: str) -> str:
    """How an engine of a bundle is built again."""
    python = f"drexperts.export.build_engine(bundle, {backend!r})"
    return f"rebuild it with `{remedy(f'drx build BUNDLE --backend {backend}', python)}`"


def drx_is_spoken() -> bool:
    """Whether messages are for someone who types commands."""
    return _spoken


@contextmanager
def speaking_drx(spoken: bool = True) -> Iterator[None]:
    """Until the end of the `with`, messages are for someone who types commands, or are not."""
    global _spoken
    before, _spoken = _spoken, spoken
    try:
        yield
    finally:
        _spoken = before
