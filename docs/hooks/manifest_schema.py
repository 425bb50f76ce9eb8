"""Fills reference/manifest.md with every field of the dataclasses that make a manifest."""

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE, MARK = "reference/manifest.md", "<!-- schema -->"
# Of fields whose docstring does not describe them one by one.
MEANINGS = {
    "schema": "the version of this format",
    "preset": "`paper`, `official` or `custom`",
    "config": "the model's configuration, `DRExpertsConfig` in JSON",
    "preprocessing": "how an image becomes crops",
    "scale": "range and direction of the score",
    "distortions": "the names of the ten experts, in the order of `weights` and `maps`",
    "outputs": "what an engine returns: `score`, `weights` and perhaps `maps`",
    "engines": "the ways to compute scores, each with its proof",
    "created_with": "versions of the packages that made the bundle",
    "crop": "side of a crop, in pixels",
    "short_side_min": "an image whose shorter side is less is enlarged to this",
    "short_side_max": "an image whose shorter side is more is reduced to this",
    "crops_per_side": "most crops along each axis",
    "low": "lower end",
    "high": "upper end",
    "higher_is_better": "false for a DMOS, for example",
    "file": "its name in the bundle's folder",
    "sha256": "of the file: graph and weights together",
    "precision": "`fp32`, `fp16`, `bf16` or `int8`",
    "max_batch": "most crops per call",
    "versions": "of the libraries that it was made and measured with",
    "parity": "its agreement with the reference; null if not executed",
    "invariance": "whether a score depends on its batch; null if not executed",
    "profiles": "its optimisation profiles",
    "version_compatible": "whether later versions of the library can run it",
    "min": "smallest batch",
    "opt": "the batch it was optimised for",
    "max": "largest batch",
    "images": "how many images were scored",
    "pairs": "how many pairs of images were compared",
    "rows": "how many crops were scored",
    "reference": "what it was compared with",
    "passed": "whether all limits were kept",
}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs with the text of each page; returns the text to render."""
    if page.file.src_uri != PAGE:
        return markdown
    sys.path.insert(0, str(ROOT))
    from drexperts.runtime.manifest import Manifest

    return markdown.replace(MARK, "\n".join(map(section, reachable(Manifest))))


def reachable(first: type) -> Iterator[type]:
    """A dataclass and those that its fields hold, each once, in the order in which they are met."""
    waiting, met = [first], {first}
    while waiting:
        kind = waiting.pop(0)
        yield kind
        for hint in typing.get_type_hints(kind).values():
            found = [each for each in leaves(hint) if dataclasses.is_dataclass(each)]
            waiting += [each for each in found if each not in met]
            met.update(found)


def leaves(hint: Any) -> Iterator[Any]:
    """The types inside an annotation such as `tuple[Engine, ...] | None`."""
    arguments = typing.get_args(hint)
    if not arguments:
        yield hint
    for each in arguments:
        yield from leaves(each)


def section(kind: type) -> str:
    """A heading, the sentence that describes the class, and a table of its fields."""
    text = inspect.getdoc(kind) or ""
    described = descriptions(kind)
    lines = [f"## {kind.__name__}", "", text.split("\n\n")[0], "", "| field | JSON | meaning |"]
    lines.append("|---|---|---|")
    for name, hint in typing.get_type_hints(kind).items():
        needed = "" if required(kind, name) else ", optional"
        meaning = described.get(name, MEANINGS.get(name, ""))
        lines.append(f"| `{name}` | {json_type(hint)}{needed} | {meaning} |")
    return "\n".join([*lines, ""])


def required(kind: type, name: str) -> bool:
    (field,) = (each for each in dataclasses.fields(kind) if each.name == name)
    return field.default is field.default_factory is dataclasses.MISSING


def json_type(hint: Any) -> str:
    """An annotation in the words of JSON, with a link to the class it names."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if origin is tuple:
        return f"array of {json_type(arguments[0])}"
    if origin is dict:
        return f"object of {json_type(arguments[1])}"
    if len(arguments) > 1:
        return " or ".join(json_type(each) for each in arguments)
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    return names.get(hint, "any value")


def descriptions(kind: type) -> dict[str, str]:
    """What a docstring says of its fields, in lines such as `low, high: the ends`."""
    found: dict[str, str] = {}
    for parent in reversed([each for each in kind.__mro__ if dataclasses.is_dataclass(each)]):
        names: list[str] = []
        for line in (inspect.getdoc(parent) or "").split("\n"):
            named = re.match(r"\s*(\w+(?:, \w+)*): (.*)", line)
            if named and all(name in parent.__dataclass_fields__ for name in named[1].split(", ")):
                names = named[1].split(", ")
                found.update(dict.fromkeys(names, named[2].replace("|", "\\|")))
            elif names and line.startswith(" "):
                more = " " + line.strip().replace("|", "\\|")
                found.update({name: found[name] + more for name in names})
            else:
                names = []
    return found
