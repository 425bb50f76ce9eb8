"""Fills reference/python.md with the public names of each package, so that none is forgotten."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE, MARK = "reference/python.md", "<!-- api -->"
# In the order of the page, with what each needs and the verbs that call it.
PACKAGES = {
    "runtime": "numpy, Pillow and one inference library (`cpu` or `gpu`); `drx score`, `info`",
    "training": "the extra `train`; `drx train`",
    "evaluation": "the extra `train`, or `report` to compare; `drx eval`, `compare`, `explain`",
    "data": "the extra `train`; `drx synth`",
    "export": "the extra `export`; `drx export`, `build`, `verify`, `triton-repo`",
    "bench": "the extras `export` and `report`; `drx bench`",
    "serve": "the extra `serve`; `drx serve`",
    "scale": "the extra `parquet`, or `ray`; `drx score --ray`",
    "paper": "the extra `train`; `drx reproduce`",
    "demo": "the extras `export` and `report`; `drx demo`",
    "model": "the extra `train`; `drx convert-prior`",
    "kernels": "torch, and triton on a GPU",
}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs with the text of each page; returns the text to render."""
    if page.file.src_uri != PAGE:
        return markdown
    return markdown.replace(MARK, "\n".join(line for name in PACKAGES for line in section(name)))


def section(package: str) -> Iterator[str]:
    """A mkdocstrings block for the package's own docstring, and one for each of its names."""
    homes = public_names(package)
    if homes:
        needs, _, verbs = PACKAGES[package].partition("; ")
        yield from block(
            f"drexperts.{package}", f"drexperts.{package}", "heading_level: 2", "members: []"
        )
        yield from (f"Needs {needs}." + (f" Used by {verbs}." if verbs else ""), "")
        for name, module in homes.items():
            # The heading is where it is imported from, not the module that defines it.
            yield from block(f"drexperts.{package}.{module}.{name}", f"{package}.{name}")


def block(identifier: str, heading: str, *options: str) -> Iterator[str]:
    """The lines that make mkdocstrings describe one object."""
    lines = (f"heading: {heading}", *options)
    yield from (f"::: {identifier}", "    options:", *(f"      {line}" for line in lines), "")


def public_names(package: str) -> dict[str, str]:
    """The module of each public name of a package: functions, then classes, then errors.

    Read from its `__init__.py` without importing it. Public is what `__all__` has or, without it,
    what is imported under its own name (`from m import x as x`). Where a name is defined is said
    by the imports, those under TYPE_CHECKING included, and by the table for `lazy_exports`.
    """
    tree = ast.parse((ROOT / "drexperts" / package / "__init__.py").read_text(encoding="utf-8"))
    exported: set[str] = set()
    homes: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("drexperts."):
            module = (node.module or "").removeprefix(f"drexperts.{package}.")
            homes.update({alias.name: module for alias in node.names})
            exported.update(alias.name for alias in node.names if alias.asname == alias.name)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            exported.update(ast.literal_eval(node.value))
        elif isinstance(node, ast.Dict) and all(map(is_text, [*node.keys, *node.values])):
            homes.update(ast.literal_eval(node))
    return {name: homes[name] for name in sorted(exported, key=order) if name in homes}


def is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def order(name: str) -> tuple[int, str]:
    """Functions, then classes, then errors."""
    kind = 2 if name.endswith("Error") else int(name[0].isupper())
    return kind, name
