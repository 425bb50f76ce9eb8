"""A progress that records what it is told, and can act at a chosen moment."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recorder:
    """Records messages and notes.

    at: called with each message and the steps of its phase
    """

    at: Callable[[str, int, int | None], None] = lambda message, done, total: None
    messages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        self.messages.append(message)
        self.at(message, done, total)

    def note(self, message: str) -> None:
        self.notes.append(message)
