"""Writes the table of layouts into docs/concepts/preprocessing.md, where GitHub shows it too.

python docs/hooks/layout_table.py
"""

from pathlib import Path

from drexperts.runtime.decoding.layouts import LAYOUTS

PAGE = Path(__file__).parents[1] / "concepts" / "preprocessing.md"
START, END = "<!-- layouts -->\n", "<!-- end of layouts -->\n"


def filled(page: str) -> str:
    """The page with the table of what is read between its marks."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return before + START + "\n" + _table() + "\n" + END + after


def _table() -> str:
    rows = [(layout.format, layout.samples, layout.answer) for layout in LAYOUTS]
    lines = ["| format | what is stored | what becomes of it |", "|---|---|---|"]
    return "".join(f"{line}\n" for line in [*lines, *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
