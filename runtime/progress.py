"""How library code reports what it is doing, without knowing who shows it."""

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of long work. The command line shows it on the terminal."""

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        """Say what the work does now.

        done, total: steps of this phase that are finished, and all of them; None if unknown
        """
        ...

    def note(self, message: str) -> None:
        """Say something that the user should still be able to read when the work has ended."""
        ...


class Silent:
    """Progress that nobody sees: the default of library functions."""

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        """Do nothing."""

    def note(self, message: str) -> None:
        """Do nothing."""


SILENT = Silent()


class Prefixed:
    """The progress of one part of the work: every message begins with the part's name."""

    def __init__(self, progress: Progress, part: str) -> None:
        self._progress, self._part = progress, part

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        """Pass the message on."""
        self._progress(f"{self._part}: {message}", done, total)

    def note(self, message: str) -> None:
        """Pass the message on."""
        self._progress.note(f"{self._part}: {message}")
