"""What a training found after each epoch, as lines that stay on the screen and in a log file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from drexperts.training.result import Epoch, TrainingSoFar
    from drexperts.ui.screen import Screen

_HEADINGS = "  epoch    SRCC    PLCC  loss: validation  training  best so far"
_BLOCKS = "▁▂▃▄▅▆▇█"
_SHORTEST = 4  # epochs of a curve


class EpochLines:
    """Prints one line per epoch, and on a terminal the curve up to it where that fits.

    It serves one training after another.
    """

    def __init__(self, screen: "Screen") -> None:
        self._screen = screen
        self._printed: tuple[Epoch, ...] = ()

    def __call__(self, so_far: "TrainingSoFar") -> None:
        """Print the epochs that were not printed yet."""
        known = len(self._printed)
        if len(so_far.epochs) <= known or so_far.epochs[:known] != self._printed:
            known = 0
        if not known:
            self._screen.note(f"the epoch to keep is {so_far.choice}")
            self._print(_HEADINGS)
        for count in range(known + 1, len(so_far.epochs) + 1):
            line = _line(so_far.up_to(count))
            self._print(line + self._curve(so_far.up_to(count), len(line)))
        self._printed = so_far.epochs

    def _print(self, line: str) -> None:
        self._screen.notes.print(Text(line), soft_wrap=True)

    def _curve(self, so_far: "TrainingSoFar", used: int) -> str:
        """The chosen correlation of the last epochs as a row of blocks, behind a line."""
        console = self._screen.notes
        room = console.width - used - 3
        blocks = console.is_terminal and console.encoding.startswith("utf")
        if not blocks or room < _SHORTEST:
            return ""
        values = [getattr(epoch, so_far.selected_by) for epoch in so_far.epochs]
        return "  " + sparkline(values[-room:])


def _line(so_far: "TrainingSoFar") -> str:
    epoch, best = so_far.epochs[-1], so_far.best
    value = "-"
    if best is not None:
        found = getattr(so_far.epochs[best - 1], so_far.selected_by)
        value = f"{found:.4f} in {best}"
    return (
        f"{f'{epoch.epoch}/{so_far.total}':>7} {_correlation(epoch.srcc):>7} "
        f"{_correlation(epoch.plcc):>7} {_loss(epoch.validation_loss):>17} "
        f"{_loss(epoch.training_loss):>9}  {value:<11}"
    )


def _correlation(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def sparkline(values: Sequence[float | None]) -> str:
    """One block per value, the lowest at the bottom; a space where there is none."""
    known = [value for value in values if value is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    heights = (None if v is None else (v - low) / span if span else 0.5 for v in values)
    return "".join(
        " " if height is None else _BLOCKS[round(height * (len(_BLOCKS) - 1))] for height in heights
    )
