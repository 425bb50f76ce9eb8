"""Text from files and strangers, as messages may show it: short, and without terminal codes."""

import unicodedata
from typing import Any


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


def printable(text: str, kept: str = "") -> str:
    """The text with escapes such as `\\x1b` in place of every character that is not printable.

    Those are control characters, line separators, marks of direction and surrogates, which a
    terminal may obey. Spaces of any width, and the characters in `kept`, stay.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) or c in kept else ascii(c)[1:-1] for c in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"
