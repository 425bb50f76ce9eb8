"""The tree in docs/architecture.md names every folder, and nothing that does not exist."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
# Folders of data, and folders inside a named folder that mirror others.
UNNAMED = re.compile(r"tests/(?!support|fixtures)|tests/fixtures/.|docs/(?!hooks)|\.github/.")


def named() -> dict[str, str]:
    """Every path in the tree and what the page says of it; folders end in a slash."""
    section = PAGE.read_text(encoding="utf-8").split("## The tree")[1]
    block = section.split("```text\n")[1].split("```")[0]
    above: list[str] = []
    found = {}
    for line in block.splitlines():
        match = re.fullmatch(r"( *)(\S+)\s+(\S.*)", line)
        assert match, line
        depth = len(match[1]) // 2
        above[depth:] = [match[2]]
        found["".join(above)] = match[3]
    return found


def folders() -> set[str]:
    """Every folder of files that git tracks, links not followed."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    parents = {parent for name in listed.stdout.splitlines() for parent in Path(name).parents}
    return {f"{parent.as_posix()}/" for parent in parents if parent != Path(".")}


def test_everything_named_exists() -> None:
    for path in named():
        exists = (ROOT / path).is_dir if path.endswith("/") else (ROOT / path).is_file
        assert exists(), path


def test_every_folder_is_named() -> None:
    wanted = {folder for folder in folders() if not UNNAMED.match(folder)}
    assert wanted <= named().keys(), sorted(wanted - named().keys())
