"""The README and the pages of docs/ are of the size and in the places that they promise."""

import argparse
import re
from pathlib import Path

import pytest

from drexperts.cli.dispatch import parser

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples/README.md"])


def test_the_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 200
    assert readme.index("uv run drx demo") < readme.index("uv run pytest") < 2000
    assert "<!-- measured -->" in readme
    assert "<!-- end of measured -->" in readme


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_site_has_every_page() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in site, page


def test_every_command_that_a_page_shows_is_one_of_drx() -> None:
    """Each `drx VERB --option` in a code block exists; the values are not tried."""
    (verbs,) = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    shown = 0
    for page in PAGES:
        blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        lines = "".join(blocks).replace("\\\n", " ").splitlines()
        for verb, rest in re.findall(r"\bdrx ([a-z-]+)([^#\n]*)", "\n".join(lines)):
            known = {flag for a in verbs.choices[verb]._actions for flag in a.option_strings}
            assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= known, (page.name, verb, rest)
            shown += 1
    assert shown > 30
