"""Quoted text is short and shows no terminal codes; messages of all errors are so."""

import pytest

from drexperts.runtime.errors import DataError, DrexpertsError, InternalError, StoppedError
from drexperts.runtime.quoting import printable, quoted, shortened


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a.png", "'a.png'"),
        (3.5, "3.5"),
        (None, "None"),
        ("\x1b[31m", "'\\x1b[31m'"),
        (b"\0", "b'\\x00'"),
    ],
)
def test_a_short_value_is_quoted_whole(value, text):
    assert quoted(value) == text


@pytest.mark.parametrize("value", ["a" * 10**6, ["\0"] * 10**5, "\U0010ffff" * 1000, b"\0" * 1000])
def test_a_long_value_is_cut(value):
    assert len(quoted(value)) <= 80
    assert "..." in quoted(value) or isinstance(value, str)


def test_the_beginning_and_the_end_of_a_text_are_kept():
    assert shortened("a" * 100 + "b" * 100, 40) == "a" * 27 + "..." + "b" * 10
    assert shortened("short", 5) == "short"


def test_control_characters_are_escaped_and_lines_kept():
    hostile = "one\ntwo\tä\u3000\x1b[2J\u2028\u202e\x00"
    assert printable(hostile, kept="\n\t") == "one\ntwo\tä\u3000\\x1b[2J\\u2028\\u202e\\x00"
    assert printable("a\nb") == "a\\nb"
    assert printable("\ud800").encode() == b"\\ud800"


def test_the_message_of_an_error_is_bounded_and_keeps_its_remedy():
    error = DataError(f"{'x' * 10**6} is wrong: do this")
    assert len(str(error)) <= 4000
    assert str(error).endswith("is wrong: do this")
    assert str(DrexpertsError("\x1b]0;title\x07")) == "\\x1b]0;title\\x07"
    assert str(InternalError("a" * 10**6)).endswith("please report it")
    assert str(StoppedError("stopped", 2)) == "stopped"
