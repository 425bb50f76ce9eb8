"""Fills reference/python.md with the public names of each package, so that none is forgotten."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE, MARK = "reference/python.md", "<!-- api -->"
# In the order of the page, with what a reader looks for there.
PACKAGES = {
    "runtime": "Score images. Needs numpy, Pillow and one inference library.",
    "training": "Fine-tune a model: what `drx train` does. Extra `train`.",
    "evaluation": "Evaluate and explain models: `drx eval`, `drx explain`. Extra `train`.",
    "data": "Rated and synthetic data sets: `drx synth`. Extra `train`.",
    "export": "Make, extend and verify bundles: `drx export`, `build`, `verify`, `triton-repo`. "
    "Extra `export`.",
    "bench": "Measure a bundle or a training step: `drx bench`. Extra `export`.",
    "paper": "Reproduce the paper's tables: `drx reproduce`. Extra `train`.",
    "demo": "Every stage on a small model: `drx demo`. Extra `export`.",
    "model": "The model, its configuration and its checkpoints. Extra `train`.",
    "kernels": "The two operations, in Triton and in PyTorch. Needs torch.",
}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs with the text of each page; returns the text to render."""
    if page.file.src_uri != PAGE:
        return markdown
    return markdown.replace(MARK, "\n".join(line for name in PACKAGES for line in section(name)))


def section(package: str) -> Iterator[str]:
    """A heading, what the package is for, and a mkdocstrings block for each of its names."""
    homes = public_names(package)
    if homes:
        yield from (f"## drexperts.{package}", "", PACKAGES[package], "")
        for name, module in homes.items():
            yield f"::: drexperts.{package}.{module}.{name}"
            # The heading is where it is imported from, not the module that defines it.
            yield from ("    options:", f"      heading: {package}.{name}", "")


def public_names(package: str) -> dict[str, str]:
    """The module of each name in a package's `__all__`, in alphabetic order, functions first.

    Read from its `__init__.py` without importing it: from the imports there, those under
    TYPE_CHECKING included, and from the dictionary that it gives to `lazy_exports`.
    """
    tree = ast.parse((ROOT / "drexperts" / package / "__init__.py").read_text(encoding="utf-8"))
    exported: set[str] = set()
    homes: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("drexperts."):
            module = (node.module or "").removeprefix(f"drexperts.{package}.")
            homes.update({alias.name: module for alias in node.names})
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            exported = {str(each) for each in ast.literal_eval(node.value)}
        elif isinstance(node, ast.Dict) and node.keys and all(map(is_text, node.keys)):
            homes.update(ast.literal_eval(node))
    return {name: homes[name] for name in sorted(exported, key=order) if name in homes}


def is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def order(name: str) -> tuple[int, str]:
    """Functions, then classes, then errors."""
    kind = 2 if name.endswith("Error") else int(name[0].isupper())
    return kind, name
