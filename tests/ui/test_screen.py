import io

import pytest
from rich.table import Table

from drexperts.ui.screen import Screen
from drexperts.ui.screen import _Console as Console

HOSTILE = "a\x1b]0;title\x07\x9b31m\u202eb\rc[red]:smile:"
SHOWN = r"a\x1b]0;title\x07\x9b31m\u202eb\rc[red]:smile:"


def hostile_table():
    table = Table("image", HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE, "1")
    return table


@pytest.mark.parametrize("what", [HOSTILE, hostile_table()])
def test_a_console_shows_what_a_terminal_would_obey(what):
    stream = io.StringIO()
    console = Console(file=stream, width=200, markup=False, emoji=False, highlight=False)
    console.print(what)
    assert SHOWN in stream.getvalue()
    assert stream.getvalue().replace("\n", "").isprintable()


def test_notes_and_progress_too(capsys):
    screen = Screen()
    screen.note(HOSTILE)
    with screen.progress() as progress:
        progress(HOSTILE, 1, 2)
    shown = capsys.readouterr().err
    assert shown.replace("\n", "").isprintable()
    assert shown.count(r"\x1b]0;title") == 2


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    screen = Screen()
    screen.notes = Console(file=stream, width=200, force_terminal=True, color_system=None)
    with screen.progress() as progress:
        progress("scoring " + HOSTILE, 1, 2)
    assert "\x1b]0" not in stream.getvalue()
    assert "[red]:smile:" in stream.getvalue()


def test_lines_in_a_log_have_rate_and_time_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Screen().progress() as progress:
        for done in range(2001):
            progress("scoring", done, 2000)
            now[0] += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "scoring, 0 of 2000"
    assert lines[1] == "scoring, 5 of 2000, 1/s, 33 min 15 s left"
    assert len(lines) < 100  # fewer and fewer, to one per minute


def test_a_bar_shows_the_rate(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    screen = Screen()
    screen.notes = Console(file=stream, width=200, force_terminal=True, color_system=None)
    with screen.progress() as progress:
        for done in range(3):
            progress("scoring", done)
    assert "/s" in stream.getvalue()
