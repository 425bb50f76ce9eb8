"""Tables that fit the terminal, and break no name and no number to do so.

Texts are broken at spaces only; a `Name`, and what is in a column with `no_wrap`, not at all. A
table that is still too wide is shown as records, one for each row, with every cell beside its
heading. What is longer than the terminal is wide stays whole: the terminal wraps it.
"""

import copy
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from drexperts.runtime.quoting import printable

_ENDLESS = 10**6  # characters
_GAP = 3  # spaces between two cells of a record
_INDENT = "  "


class Name(str):
    """A text that is never broken, although it may hold spaces, such as the name of a file."""

    __slots__ = ()


def fitted(table: Table, console: Console) -> RenderableType:
    """The table as a grid if its words fit the console, else as records.

    A table of two columns without headings becomes lines of names and values. Cells are texts.
    """
    width = console.width
    parts = [_body(table, console)]
    if table.title:
        parts.insert(0, _text(["", *_wrapped(_cell(table.title), width)], "table.title"))
    if table.caption:
        parts.append(_text(_wrapped(_cell(table.caption), width), "table.caption"))
    return Group(*parts)


def _body(table: Table, console: Console) -> RenderableType:
    if len(table.columns) == 2 and not table.show_header:
        return _text(_named_values(table, console.width))
    widths = _widths(table, console)
    return _text(_records(table, console.width)) if widths is None else _grid(table, widths)


def _text(lines: Iterable[str], style: str = "") -> Text:
    return Text("\n".join(lines), style, no_wrap=True, overflow="ignore")


def _cell(cell: object, column: Column | None = None) -> str:
    """A cell's text as it is shown, a `Name` if it must not be broken."""
    whole = isinstance(cell, Name) or (column is not None and column.no_wrap)
    shown = printable(str(cell), kept="\n")
    return Name(shown) if whole else shown


def _cells(column: Column) -> list[str]:
    return [_cell(cell, column) for cell in column.cells]


def _wrapped(text: str, width: int, first: str = "", later: str = "") -> list[str]:
    """Lines that are as wide as `width`, or wider for a word or a `Name` that is.

    first, later: what the lines begin with
    """
    if isinstance(text, Name):
        return [first + text]
    wrapper = textwrap.TextWrapper(
        max(1, width),
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text) or [first.rstrip()]


def _shortest(text: str) -> int:
    """The width of the longest part of a text that must not be broken."""
    return max(map(cell_len, [text] if isinstance(text, Name) else text.split()), default=0)


def _longest(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)


def _widths(table: Table, console: Console) -> list[int] | None:
    """The width of each column, without its padding; None if no grid fits."""
    texts = [[*_headings(column, table), *_cells(column)] for column in table.columns]
    least = [max(map(_shortest, column), default=0) for column in texts]
    most = [max(map(_longest, column), default=0) for column in texts]
    endless = console.options.update(max_width=_ENDLESS)
    borders = console.measure(table, options=endless).maximum - sum(most)
    left = console.width - borders - sum(least)
    return None if left < 0 else _shared(least, most, left)


def _headings(column: Column, table: Table) -> list[str]:
    return [_cell(column.header)] if table.show_header else []


def _shared(least: Sequence[int], most: Sequence[int], left: int) -> list[int]:
    """The least widths, and as much of what is left for each as it can use, evenly."""
    widths = list(least)
    by_need = sorted(range(len(least)), key=lambda i: most[i] - least[i])
    for place, i in enumerate(by_need):
        more = min(most[i] - least[i], left // (len(least) - place))
        widths[i] += more
        left -= more
    return widths


def _grid(table: Table, widths: Sequence[int]) -> Table:
    grid = copy.copy(table)
    grid.title = grid.caption = None
    grid.columns = [
        # Headings are broken here, because rich keeps to `no_wrap` in them as well.
        replace(column, width=width, header="\n".join(_wrapped(_cell(column.header), width)))
        for column, width in zip(table.columns, widths, strict=True)
    ]
    return grid


def _named_values(table: Table, width: int) -> Iterator[str]:
    names, values = map(_cells, table.columns)
    beside = min(width // 2, max(map(cell_len, names), default=0) + len(_INDENT))
    for name, value in zip(names, values, strict=True):
        if cell_len(name) >= beside or _shortest(value) > width - beside:
            yield name
            yield from _wrapped(value, width, _INDENT * 2, _INDENT * 2)
        else:
            yield from _wrapped(value, width, f"{name:<{beside}}", " " * beside)


def _records(table: Table, width: int) -> Iterator[str]:
    """The first cell of each row, and indented below it the others, equal headings aligned."""
    named = [
        [_beside_heading(cell, column, table) for cell in _cells(column)]
        for column in table.columns
    ]
    for first, *others in zip(*named, strict=True):
        if first:
            yield from _wrapped(first, width, later=_INDENT)
        yield from _record(others, [_aligned(column, width) for column in named[1:]], width)


def _beside_heading(cell: str, column: Column, table: Table) -> str:
    heading = "".join(f"{heading}: " for heading in _headings(column, table) if heading)
    shown = f"{heading}{cell}" if cell else ""
    return Name(shown) if isinstance(cell, Name) else shown


def _aligned(column: Sequence[str], width: int) -> int:
    """The width to which a column's cells are filled: that of the longest, unless it is long."""
    longest = max(map(cell_len, column))
    return longest if longest <= width // 3 else 0


def _record(cells: Sequence[str], aligned: Sequence[int], width: int) -> Iterator[str]:
    """Lines with as many cells as fit."""
    line = ""
    for cell, fill in zip(cells, aligned, strict=True):
        needed = cell_len(cell)
        if line and cell_len(line) + _GAP + needed > width:
            yield line.rstrip()
            line = ""
        if len(_INDENT) + needed > width:
            yield from _wrapped(cell, width, _INDENT, _INDENT * 2)
        elif needed or fill:
            line += (" " * _GAP if line else _INDENT) + cell + " " * (fill - needed)
    if line.strip():
        yield line.rstrip()
