"""Lines of epochs on a terminal of 80 columns, and in a log file."""

import io

import pytest

from drexperts.cli.epochs import EpochLines, sparkline
from drexperts.training.result import Epoch, TrainingSoFar
from drexperts.ui.screen import Screen, _Console

EPOCHS = (
    Epoch(1, 0.31, 0.25, 14.25, 12.5),
    Epoch(2, None, None, 13.5, 12.25),
    Epoch(3, 0.4, 0.35, 12.125, 11.5),
    Epoch(4, 0.39, 0.30, 11.0, 11.75),
    Epoch(5, 0.41, 0.33, 10.5, 11.625),
)


def so_far(count: int, total: int = 9, on: str = "validation") -> TrainingSoFar:
    return TrainingSoFar(EPOCHS[:count], total, on, "srcc")


def printed(terminal: bool, *calls: TrainingSoFar) -> list[str]:
    screen, stream = Screen(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    screen.notes = _Console(
        file=stream, force_terminal=terminal, width=80, markup=False, no_color=True
    )
    lines = EpochLines(screen)
    for call in calls:
        lines(call)
    stream.seek(0)
    return stream.read().splitlines()


def test_a_line_has_the_figures_of_its_epoch_and_the_best_so_far() -> None:
    lines = printed(False, *(so_far(count) for count in range(1, 6)))
    assert len(lines) == 2 + 5
    assert "SRCC of the validation images" in lines[0]
    assert lines[2].split() == ["1/9", "0.2500", "0.3100", "12.5", "14.25", "0.2500", "in", "1"]
    assert lines[3].split() == ["2/9", "-", "-", "12.25", "13.5", "0.2500", "in", "1"]
    assert lines[6].split()[-3:] == ["0.3500", "in", "3"]


def test_the_curve_is_for_a_terminal_on_which_it_fits() -> None:
    lines = printed(True, *(so_far(count) for count in range(1, 6)))
    assert lines[-1].endswith("▁ █▅▇")
    assert max(map(len, lines)) <= 80
    assert not set("".join(printed(False, so_far(5)))) & set("▁▂▃▄▅▆▇█")


def test_a_training_that_continues_shows_what_it_had() -> None:
    assert len(printed(False, so_far(3), so_far(4))) == 2 + 4


def test_the_next_training_begins_again() -> None:
    other = TrainingSoFar((Epoch(1, 0.1, 0.2, 1.0, None),) * 4, 4, "test", "plcc")
    lines = printed(False, so_far(2), other, other)
    assert len(lines) == (2 + 2) + (2 + 4) + (2 + 4)
    assert "PLCC of the test images" in lines[4]
    last = printed(False, so_far(1, on="last epoch"))[0]
    assert last == "the epoch to keep is the last, as there is nothing to choose it by"


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], ""), ([None], " "), ([0.5, 0.5], "▅▅"), ([-1.0, None, 1.0], "▁ █")],
)
def test_a_sparkline_of_few_or_equal_values(values: list[float | None], drawn: str) -> None:
    assert sparkline(values) == drawn
