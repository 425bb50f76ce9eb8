"""Tables as text, which HTML pages and Markdown documents share, and the escaping for Markdown."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

# An underscore inside a word means nothing in Markdown.
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_]))")


class Table(NamedTuple):
    """A table as text. Without headings, a row is a name and its value."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds only numbers, signed or not, "-" and empty cells.

        Raises ValueError where rows differ in length.
        """
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.headings or ("", ""))
        return [all(map(_is_number, column)) for column in columns]


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.lstrip("+-")[:1].isdigit()


def markdown_table(table: Table) -> Iterator[str]:
    """The lines of a Markdown table that shows each cell as it is, whatever characters it holds."""
    headings = table.headings or ("", "")
    yield _row(headings)
    yield f"|{' --- |' * len(headings)}"
    yield from map(_row, table.rows)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"


def markdown_text(text: str) -> str:
    """The text on one line, with all Markdown and HTML syntax in it escaped."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
