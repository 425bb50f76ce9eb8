"""What the repository says about its own layout is true."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
LINKED = (
    "benchmarks",
    "export",
    "kernels",
    "runtime",
)  # folders at the root, linked into the package
NOT_IN_THE_WHEEL = "drexperts.benchmarks"


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages() -> set[str]:
    """Every folder with modules, by its dotted name."""
    roots = {"drexperts": ROOT / "drexperts"} | {f"drexperts.{n}": ROOT / n for n in LINKED}
    found: set[str] = set()
    for name, root in roots.items():
        found |= {".".join([name, *path.relative_to(root).parts]) for path in walk(root)}
    return found


def walk(root: Path) -> set[Path]:
    """A folder and those below it, where they hold modules. Links are not followed."""
    below = [p for p in root.iterdir() if p.is_dir() and not p.is_symlink()]
    own = {root} if any(root.glob("*.py")) else set()
    return own.union(*(walk(folder) for folder in below))


def test_every_package_is_in_the_wheel() -> None:
    setuptools = pyproject()["tool"]["setuptools"]
    shipped = {name for name in packages() if not name.startswith(NOT_IN_THE_WHEEL)}
    assert set(setuptools["packages"]) == shipped
    assert len(setuptools["packages"]) == len(set(setuptools["packages"]))


def test_every_package_has_an_init() -> None:
    for name in packages():
        folder = ROOT.joinpath(*name.removeprefix("drexperts.").split("."))
        if name == "drexperts" or not folder.is_dir():
            folder = ROOT.joinpath(*name.split("."))
        assert (folder / "__init__.py").is_file(), name


@pytest.mark.parametrize("name", LINKED)
def test_links(name: str) -> None:
    link = ROOT / "drexperts" / name
    if link.is_file():
        pytest.skip("links are text files in this checkout, as git makes them on Windows")
    assert link.is_symlink()
    assert link.resolve() == ROOT / name


def test_every_package_has_its_layer() -> None:
    (layers,) = [
        contract["layers"]
        for contract in pyproject()["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    named = {name for layer in layers for name in re.split(r"\s*\|\s*", layer)}
    assert named == {name.split(".")[1] for name in packages() if name != "drexperts"}


def test_no_file_changes_the_search_path() -> None:
    for folder in ("drexperts", *LINKED):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name == "workers.py":  # which gives this process's own to another
                continue
            assert "sys.path" not in path.read_text(), path


def test_the_lock_file_is_not_tracked() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "uv.lock"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    assert listed.stdout == ""
