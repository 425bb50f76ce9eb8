"""Fills reference/drx.md with every verb and option, read from `drx`'s own argparse parser."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE, MARK = "reference/drx.md", "<!-- verbs -->"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs with the text of each page; returns the text to render."""
    if page.file.src_uri != PAGE:
        return markdown
    sys.path.insert(0, str(ROOT))
    from drexperts.cli.dispatch import parser

    return markdown.replace(MARK, "\n".join(verbs(parser())))


def verbs(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A section per verb: what it does, its usage, a table of its arguments."""
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, verb in subparsers.choices.items():
        yield from (f"## {name}", "", sentence(verb.description or ""), "")
        yield from ("```text", usage(verb), "```", "", "| argument | meaning |", "|---|---|")
        for action in verb._actions:
            if action.help != argparse.SUPPRESS and action.dest != "help":
                yield f"| {argument(action)} | {meaning(action)} |"
        yield ""


def sentence(text: str) -> str:
    text = cell(text[:1].upper() + text[1:])
    return text if text.endswith(".") else text + "."


def usage(verb: argparse.ArgumentParser) -> str:
    """The usage line as `drx VERB --help` prints it, 72 columns wide."""
    formatter = argparse.HelpFormatter(verb.prog, width=72)
    formatter.add_usage(verb.usage, verb._actions, verb._mutually_exclusive_groups)
    return formatter.format_help().strip()


def argument(action: argparse.Action) -> str:
    """Its flags, or its name where it is positional, and the value it takes."""
    value = "" if action.nargs == 0 else value_of(action)
    if not action.option_strings:
        return f"`{value}`"
    return ", ".join(f"`{flag} {value}`".replace(" `", "`") for flag in action.option_strings)


def value_of(action: argparse.Action) -> str:
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    return action.metavar or (action.dest.upper() if action.option_strings else action.dest)


def meaning(action: argparse.Action) -> str:
    """The help text, then whether it is required, its choices and its default, where unsaid."""
    told = [cell((action.help or "").replace("%(default)s", str(action.default)))]
    if action.required and action.option_strings:
        told.append("required")
    if action.choices is not None:
        told.append(f"one of {', '.join(f'`{choice}`' for choice in action.choices)}")
    plain = isinstance(action.default, (str, int, float, Path)) and action.nargs != 0
    if plain and "default" not in told[0] and action.default != argparse.SUPPRESS:
        told.append(f"default: `{action.default}`")
    return "; ".join(filter(None, told))


def cell(text: str | None) -> str:
    """One line of Markdown that a table can hold."""
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")
