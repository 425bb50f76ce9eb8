"""Turns the lines `name: what it is` of our docstrings into lists, and examples into code blocks.

A griffe extension, which mkdocstrings loads: our docstrings are written to be read in the source.
"""

import re
from typing import Any

import griffe

_NAMED = re.compile(r"(\w+(?:, \w+)*): (?=\S)")
_EXAMPLE = re.compile(r"^Examples?:\n((?:(?:    .*)?\n)*(?:    .*)\n?)", re.MULTILINE)


class ReadableDocstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value, names_of(obj))


def names_of(obj: griffe.Object) -> set[str]:
    """What a line of its docstring may describe: a function's parameters, a class's members."""
    parameters = getattr(obj, "parameters", ())
    return {parameter.name for parameter in parameters} | set(obj.members)


def rewritten(text: str, names: set[str]) -> str:
    text = _EXAMPLE.sub(fenced, text.rstrip() + "\n")
    return "\n\n".join(listed(paragraph, names) for paragraph in text.split("\n\n"))


def fenced(match: re.Match[str]) -> str:
    code = "\n".join(line.removeprefix("    ") for line in match[1].rstrip().split("\n"))
    return f"**Example**\n\n```python\n{code}\n```\n"


def listed(paragraph: str, names: set[str]) -> str:
    """A list where the paragraph describes names, one per line; otherwise the paragraph."""
    lines = paragraph.split("\n")
    if not described(lines[0], names):
        return paragraph
    return "\n".join(item(line) if described(line, names) else line for line in lines)


def item(line: str) -> str:
    names, _, meaning = line.partition(": ")
    return f"- **{names}**: {meaning}"


def described(line: str, names: set[str]) -> bool:
    match = _NAMED.match(line)
    return match is not None and set(match[1].split(", ")) <= names
