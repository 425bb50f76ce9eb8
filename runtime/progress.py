"""How library code reports progress, without knowing how it is shown."""

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of long work; `drexperts.ui` implements it for the terminal."""

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        """Report the current phase.

        done, total: finished steps of this phase, and all of its steps; None if unknown
        """
        ...

    def note(self, message: str) -> None:
        """Report something that stays readable after the work has ended."""
        ...


class Silent:
    """Progress that is not shown: the default of library functions."""

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        """Do nothing."""

    def note(self, message: str) -> None:
        """Do nothing."""


SILENT = Silent()


class Prefixed:
    """Progress of one part of the work: every message begins with the name of the part."""

    def __init__(self, progress: Progress, part: str) -> None:
        self._progress, self._part = progress, part

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        """Pass the message on."""
        self._progress(f"{self._part}: {message}", done, total)

    def note(self, message: str) -> None:
        """Pass the message on."""
        self._progress.note(f"{self._part}: {message}")
