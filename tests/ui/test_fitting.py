"""Tables that fit the terminal."""

import io

import pytest
from rich.table import Table

from drexperts.ui.fitting import Name
from drexperts.ui.screen import _Console as Console

LONG = [f"{'photo-of-a-boat-' * 20}"[: length - 7] + f"{length:03}.jpg" for length in (12, 60, 200)]
SPACED = "my holiday " * 8 + "photo.jpg"


def shown(table: Table, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False, emoji=False, highlight=False).print(table)
    return stream.getvalue()


def scores(names: list[str]) -> Table:
    table = Table("image", "score", "strongest experts", title="scores")
    for i, name in enumerate(names):
        table.add_row(Name(name), f"{i}.12345", "motion-blurry +0.123, low-light -0.0456")
    return table


@pytest.mark.parametrize("width", [20, 40, 80, 120, 300])
@pytest.mark.parametrize("name", [*LONG, SPACED])
def test_no_name_and_no_number_is_broken(name: str, width: int) -> None:
    found = shown(scores(["a.png", name]), width)
    for word in (name, "a.png", "0.12345", "1.12345", "motion-blurry", "+0.123,", "-0.0456"):
        assert word in found
    if width > len(name) + 8:
        assert max(map(len, found.splitlines())) <= width


def test_a_grid_gives_each_column_what_it_needs() -> None:
    lines = shown(scores(LONG[:2])).splitlines()
    assert any("60.jpg" in line and "1.12345" in line for line in lines) == (60 + 25 < 80)
    lines = shown(scores(LONG[:1] * 2)).splitlines()
    assert len({len(line) for line in lines if line and line != "scores"}) == 1
    assert any(line.startswith("│ ") and "low-light -0.0456" in line for line in lines)


def test_words_of_a_narrow_column_are_not_broken_for_those_of_a_wide_one() -> None:
    table = Table("image", "error")
    table.add_row("x" * 30, "it is of an unknown format " * 5)
    table.add_row("short", "y" * 38)
    found = shown(table)
    assert "x" * 30 in found
    assert "y" * 38 in found
    assert all(len(line) <= 80 for line in found.splitlines())


def test_records_align_equal_headings() -> None:
    table = Table("variant", "p50 ms", "p99 ms", *[f"heading-{i}" for i in range(9)])
    table.add_row("engine", "1.5", "22.25", *["1"] * 9)
    table.add_row("eager", "100.5", "200", *["2"] * 9)
    first, second = [line for line in shown(table).splitlines() if "p50" in line]
    assert "p50 ms: 1.5 " in first
    assert first.index("p99 ms: 22.25") == second.index("p99 ms: 200")


def test_a_heading_is_broken_only_at_spaces() -> None:
    table = Table()
    for number in range(6):
        table.add_column(f"times the reference{number}", no_wrap=True)
    table.add_row(*["0.97 (0.95)"] * 6)
    found = shown(table, 100)
    assert "reference5" in found
    assert found.count("0.97 (0.95)") == 6
    assert all(len(line) <= 100 for line in found.splitlines())


def test_names_with_values_become_lines() -> None:
    table = Table("", "", show_header=False, title="bundle")
    table.add_row("digest of it", "sha256:" + "0" * 64)
    table.add_row("preset", "paper " * 30)
    lines = shown(table).splitlines()
    assert lines[:4] == ["", "bundle", "digest of it", "    sha256:" + "0" * 64]
    assert lines[4].startswith("preset        paper paper")
    assert lines[5].startswith("              paper")
    assert all(len(line) <= 80 for line in lines)


def test_control_characters_are_shown_in_every_form() -> None:
    for width in (20, 200):
        assert "a\\x1b]0;b" in shown(scores(["a\x1b]0;b", "c" * 30]), width)


def test_lines_of_text_are_left_to_the_terminal() -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(f"wrote {SPACED}")
    assert stream.getvalue() == f"wrote {SPACED}\n"
