"""What pages share: their style, their tables, and the escaping of what comes from outside."""

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de;
       --paper: #ffffff; --panel: #f6f8fa; --alarm: #fff3d6 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #a3adb8; --line: #3d4650; --paper: #0f1419; --panel: #182029;
       --alarm: #3b2f10 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2rem auto; padding: 0 1rem;
       color: var(--ink); background: var(--paper); overflow-wrap: anywhere }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.6rem }
table { border-collapse: collapse; font-size: .92rem }
td, th { padding: .25rem .65rem; border-bottom: 1px solid var(--line); text-align: left;
       vertical-align: top; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th { font-weight: 600; color: var(--soft) }
td.number, th.number { text-align: right; white-space: nowrap }
.scroll { overflow-x: auto } .scroll + .scroll { margin-top: 1.4rem }
img { max-width: 100%; border: 1px solid var(--line); margin: .4rem 0 }
svg.chart { max-width: 100%; height: auto; color: var(--ink) }
svg.chart text { fill: currentColor }
.note { color: var(--soft) }
"""

# An underscore within a word is one in Markdown too.
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_]))")


class Table(NamedTuple):
    """A table as text. Rows of a name and a value have no headings."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def document(title: str, style: str, body: Iterable[str]) -> str:
    """A whole HTML page, from parts that are HTML and a title that is not."""
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{view}<title>{escape(title)}</title><style>{style}</style>'
    content = "\n".join(body)
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{content}</body></html>\n'


def html_table(table: Table) -> str:
    """A table that scrolls by itself where it is wider than the page."""
    columns = zip(*table.rows, strict=True)
    classes = [' class="number"' if _is_numbers(column) else "" for column in columns]
    head = "".join(
        f'<th scope="col"{kind}>{escape(cell)}</th>'
        for cell, kind in zip(table.headings, classes, strict=False)
    )
    body = "".join(_html_row(row, classes, named=not table.headings) for row in table.rows)
    inside = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    label = escape(", ".join(table.headings) or "names and values")
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{inside}</div>'


def _html_row(row: tuple[str, ...], classes: Sequence[str], named: bool) -> str:
    if named:
        return f'<tr><th scope="row">{escape(row[0])}</th><td>{escape(row[1])}</td></tr>'
    cells = zip(row, classes, strict=True)
    return "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in cells) + "</tr>"


def _is_numbers(column: Iterable[str]) -> bool:
    return all(cell[:1].isdigit() or cell in ("", "-") for cell in column)


def markdown_table(table: Table) -> Iterator[str]:
    """The lines of a table whose cells are shown as they are, whatever is in them."""
    headings = table.headings or ("", "")
    yield _markdown_row(headings)
    yield f"|{' --- |' * len(headings)}"
    yield from map(_markdown_row, table.rows)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"


def markdown_text(text: str) -> str:
    """Text as one line in which nothing is Markdown or HTML."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
