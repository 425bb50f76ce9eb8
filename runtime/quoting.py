"""Text from files and strangers, as messages may show it: short, and without terminal codes."""

import unicodedata
from typing import Any

_INVISIBLE = {"Cc", "Cs", "Zl", "Zp"}  # control characters, lone surrogates, line separators


def quoted(value: Any, most: int = 80) -> str:
    """`repr(value)` in at most `most` characters. Text is cut before it is copied."""
    if isinstance(value, str | bytes):
        value = value[:most]
    return shortened(repr(value), most)


def shortened(text: str, most: int = 80) -> str:
    """The beginning and the end of a text, at most `most` characters, with what was cut marked."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 3]}...{text[len(text) - end :]}"


def printable(text: str) -> str:
    """A text whose control characters, other than line ends and tabs, are shown as escapes."""
    if text.isprintable():
        return text
    return "".join(
        ascii(c)[1:-1] if c not in "\n\t" and unicodedata.category(c) in _INVISIBLE else c
        for c in text
    )
