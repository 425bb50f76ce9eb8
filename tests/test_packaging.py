"""What the repository says of itself is true."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("export", "kernels", "runtime")


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_of_the_package_is_in_the_wheel() -> None:
    setuptools = pyproject()["tool"]["setuptools"]
    expected = {"drexperts"} | {f"drexperts.{name}" for name in FOLDERS}
    assert set(setuptools["packages"]) == expected
    for name, folder in setuptools["package-dir"].items():
        assert (ROOT / folder / "__init__.py").is_file(), name
        below = [p for p in (ROOT / folder).iterdir() if p.is_dir() and not p.is_symlink()]
        assert [p.name for p in below if any(p.glob("*.py"))] == [], "folders are flat"


@pytest.mark.parametrize("name", FOLDERS)
def test_links(name: str) -> None:
    link = ROOT / "drexperts" / name
    if link.is_file():
        pytest.skip("links are text files in this checkout, as git makes them on Windows")
    assert link.is_symlink()
    assert link.resolve() == ROOT / name


def test_every_module_has_its_layer() -> None:
    (layers,) = [
        contract["layers"]
        for contract in pyproject()["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    named = {name for layer in layers for name in re.split(r"\s*\|\s*", layer)}
    modules = {p.stem for p in (ROOT / "drexperts").glob("*.py")} - {"__init__"}
    assert named == modules | set(FOLDERS)


def tree_in_the_readme() -> set[str]:
    block = (ROOT / "README.md").read_text().split("```text")[1].split("```")[0]
    folder, files = "", set()
    for line in block.splitlines():
        if match := re.match(r"^(\w+)/", line):
            folder = match.group(1) + "/"
        elif match := re.match(r"^  (\w+\.py)\s+\S", line):
            files.add(folder + match.group(1))
    return files


def test_the_readme_lists_every_file() -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in ("drexperts", "export", "kernels", "runtime", "benchmarks")
        for path in (ROOT / folder).glob("*.py")
        if path.name != "__init__.py"
    }
    assert tree_in_the_readme() == wanted


def test_the_lock_file_is_not_tracked() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "uv.lock"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert listed.stdout == ""
