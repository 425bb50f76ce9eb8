"""Pages and Markdown tables show what is in them as it is."""

import re
from html import unescape

import pytest
from jinja2 import UndefinedError
from markdown_it import MarkdownIt
from support import sample_reports

from drexperts.ui.markdown import Table, markdown_table, markdown_text
from drexperts.ui.pages import environment

HOSTILE = (
    "a|b",
    "<b>bold</b>",
    "**bold** _it_ ~~no~~ a_b __c__ x_y_",
    "[text](http://a)",
    "`code` \\| \\",
    "&amp;",
)


def cells(html: str) -> list[str]:
    """What a reader sees in the table's cells; fails on markup inside one."""
    found = re.findall(r"<t[dh](?: [^>]*)?>(.*?)</t[dh]>", html, re.DOTALL)
    assert not any("<" in cell for cell in found)
    return [unescape(cell) for cell in found]


def html_table(table: Table) -> str:
    source = "{% from 'macros.html.j2' import table %}{{ table(content) }}"
    return environment().from_string(source).render(content=table)


def test_markdown_shows_cells_as_they_are() -> None:
    table = Table(HOSTILE, [HOSTILE[::-1], ("",) * len(HOSTILE)])
    shown = MarkdownIt("gfm-like", {"linkify": False}).render("\n".join(markdown_table(table)))
    assert cells(shown) == [*HOSTILE, *HOSTILE[::-1], *[""] * len(HOSTILE)]


def test_html_shows_cells_as_they_are() -> None:
    assert cells(html_table(Table(HOSTILE, [HOSTILE]))) == [*HOSTILE, *HOSTILE]
    assert cells(html_table(Table((), [HOSTILE[:2]]))) == [*HOSTILE[:2]]


def test_markdown_text_is_one_line() -> None:
    said = markdown_text(sample_reports.HOSTILE)
    assert "\n" not in said
    shown = MarkdownIt("gfm-like", {"linkify": False}).render(f"- {said}")
    text = re.sub(r"</?(ul|li)>", "", shown).strip()
    assert unescape(text) == " ".join(sample_reports.HOSTILE.split())


def test_columns_of_numbers_are_aligned_right() -> None:
    html = html_table(Table(("name", "value"), [("3x", "1.5"), ("x", "-"), ("1", "")]))
    assert html.count('class="number"') == 4


def test_rows_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        html_table(Table(("a", "b"), [("1", "2"), ("1",)]))


def test_a_page_escapes_its_values_and_needs_them_all() -> None:
    page = environment().from_string(
        "{% extends 'base.html.j2' %}{% block body %}{{ text }}{% endblock %}"
    )
    html = page.render(title="<b>", text=HOSTILE[1])
    assert "<title>&lt;b&gt;</title>" in html
    assert "&lt;b&gt;bold" in html
    assert html.startswith("<!doctype html>")
    with pytest.raises(UndefinedError, match="text"):
        page.render(title="")
