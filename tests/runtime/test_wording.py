"""Messages name options to those who type commands, and arguments to those who call Python."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from drexperts.runtime.wording import rebuild, remedy, speaking_drx

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
ARGUMENT = re.compile(r"\b[a-z_]+=(True|False|None|\.\.\.|\W|$)|\ballow_unverified\b")
# Options of pip, of tar and, in the README of a model repository, of its server.
NOT_OURS = (
    "--hard-dereference",
    'pip install --upgrade "drexperts[',
    "--model-repository",
    "--backend-config",
    " --python ",
)


def test_the_tool_in_use_is_spoken_to():
    assert remedy("--trust", "trust=True") == "trust=True"
    with speaking_drx():
        assert remedy("--trust", "trust=True") == "--trust"
        assert "drx build BUNDLE --backend tensorrt" in rebuild("tensorrt")
    assert "build_engine(bundle, 'tensorrt')" in rebuild("tensorrt")
    with pytest.raises(ZeroDivisionError), speaking_drx():
        raise ZeroDivisionError
    assert remedy("--trust", "trust=True") == "trust=True"


def texts(tree: ast.Module) -> Iterator[tuple[int, str, str | None]]:
    """The line and text of strings that are no docstrings, and the role of those in `remedy`."""
    roles: dict[int, str] = {}
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "remedy":
            for role, argument in zip(("drx", "python"), node.args, strict=True):
                roles |= {id(part): role for part in ast.walk(argument)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in skipped:
            continue
        if isinstance(text := node.value, str):
            yield node.lineno, text, roles.get(id(node))


MODULES = [
    path for folder in ("runtime", "export") for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_and_arguments_are_named_only_to_those_who_can_give_them(path):
    for line, text, role in texts(ast.parse(path.read_text(encoding="utf-8"))):
        if any(part in text for part in NOT_OURS) or not (" " in text or role):
            continue  # a single word is no message
        where = f"{path.name}:{line}: {text!r}"
        assert role == "drx" or not OPTION.search(text), where
        assert role == "python" or not ARGUMENT.search(text), where
