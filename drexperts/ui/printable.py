"""Text from outside as it may be printed: a file name can hold what a terminal obeys."""


def printable(text: str, kept: str = "") -> str:
    """The text with escapes such as `\\x1b` in place of every character that is not printable.

    Those are control characters, line separators, marks of direction and surrogates. `kept` are
    characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)
