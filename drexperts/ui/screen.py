"""The terminal: where a verb prints, and how it shows the progress of long work."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from drexperts.runtime.errors import OutputError
from drexperts.runtime.progress import Progress
from drexperts.runtime.quoting import printable
from drexperts.ui.fitting import fitted
from drexperts.ui.pace import Pace, per_second

# Seconds between two progress lines where there is no terminal. They grow with the time that has
# passed: a run of days writes a line per minute into its log.
_QUIET, _QUIETEST, _SHARE = 5.0, 60.0, 0.05


class _Console(Console):
    """A console that shows control characters, and raises OutputError where rich would exit."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Called by rich for every string, in tables as well. Line ends alone are obeyed."""
        return super().render_str(printable(text, kept="\n"), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print tables as `fitted`, and texts without a line break of ours: they hold names."""
        shown = [fitted(each, self) if isinstance(each, Table) else each for each in objects]
        try:
            super().print(*shown, **{"soft_wrap": True} | options)
        except OSError as cause:
            raise OutputError(cause) from cause

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError that is being handled


class Screen:
    """Where a verb prints: tables on stdout, notes and progress on stderr.

    json_last: print tables on stderr too, because stdout is for a JSON document
    quiet: print nothing, because another process of a distributed run does
    """

    def __init__(self, json_last: bool = False, quiet: bool = False) -> None:
        self.tables, self.notes = (
            # File names are not markup: `[a]` and `:smile:` stay as they are.
            _Console(stderr=stderr, markup=False, emoji=False, highlight=False, quiet=quiet)
            for stderr in (json_last, True)
        )

    def note(self, message: str) -> None:
        """Print one line about what is going on."""
        self.notes.print(message, style="dim")

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show the progress of long work: a bar on a terminal, else a line every few seconds."""
        if not self.notes.is_terminal:
            yield _ProgressLines(self)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=self.notes, transient=True) as bar:
            yield _ProgressBar(self, bar, bar.add_task("", total=None))


class _ProgressBar:
    def __init__(self, screen: Screen, bar: Bar, task: TaskID) -> None:
        self._screen, self._bar, self._task = screen, bar, task

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        description = printable(message)
        self._bar.update(self._task, description=description, completed=done, total=total)

    def note(self, message: str) -> None:
        self._screen.note(message)


class _RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text(per_second(task.speed) if task.speed else "", style="progress.data.speed")


class _ProgressLines:
    def __init__(self, screen: Screen) -> None:
        self._screen, self._last, self._start = screen, -math.inf, time.monotonic()
        self._pace = Pace()

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        now = time.monotonic()
        if now - self._last < min(max(_QUIET, _SHARE * (now - self._start)), _QUIETEST):
            return
        self._last = now
        self._pace.report(message, done, now)
        counted = done or total is not None
        self.note(f"{message}, {self._pace.text(done, total)}" if counted else message)

    def note(self, message: str) -> None:
        self._screen.note(message)
