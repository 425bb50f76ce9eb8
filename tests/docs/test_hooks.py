"""The reference is generated from the code, and leaves nothing of it out."""

import argparse
import dataclasses
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from drexperts import runtime
from drexperts.cli.dispatch import parser
from drexperts.runtime.manifest import Manifest

ROOT = Path(__file__).parents[2]


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rendered(name: str, page: str) -> str:
    """A page of the reference as its hook fills it."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    about = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    filled: str = hook(name).on_page_markdown(text, page=about)
    return filled


def test_every_option_of_every_verb_is_in_the_reference() -> None:
    (verbs,) = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    sections = rendered("command_line", "reference/drx.md").split("\n## ")[1:]
    assert [section.split("\n")[0] for section in sections] == list(verbs.choices)
    for verb, section in zip(verbs.choices.values(), sections, strict=True):
        flags = [flag for a in verb._actions for flag in a.option_strings if a.dest != "help"]
        assert [flag for flag in flags if f"`{flag}" not in section] == []


def test_every_field_of_the_manifest_is_in_the_reference() -> None:
    page = rendered("manifest_schema", "reference/manifest.md")
    kinds = list(hook("manifest_schema").reachable(Manifest))
    assert runtime.Preprocessing in kinds
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert hook("manifest_schema").MEANINGS.keys() <= names
    for kind in kinds:
        section = page.split(f"\n## {kind.__name__}\n")[1].split("\n## ")[0]
        assert [f.name for f in dataclasses.fields(kind) if f"`{f.name}`" not in section] == []
        assert not re.search(r"(?<!\\)\| *\|$", section, re.MULTILINE), "a field without a meaning"


def test_every_public_name_is_in_the_reference() -> None:
    page = rendered("python_reference", "reference/python.md")
    for package in hook("python_reference").PACKAGES:
        names = getattr(importlib.import_module(f"drexperts.{package}"), "__all__", [])
        assert [name for name in names if f"heading: {package}.{name}\n" not in page] == []


def test_docstrings_become_lists_and_code() -> None:
    pytest.importorskip("griffe", reason="it comes with the group docs")
    text = "What it does.\n\ndevice: where\n    it runs\nbatch: how many\n\nExample:\n    call(1)"
    assert hook("docstrings").rewritten(text, {"device", "batch"}) == (
        "What it does.\n\n- **device**: where\n    it runs\n- **batch**: how many\n\n"
        "**Example**\n\n```python\ncall(1)\n```\n"
    )
