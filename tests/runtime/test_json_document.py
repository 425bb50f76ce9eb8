import dataclasses
import json

import pytest

from drexperts.runtime.errors import ConfigError
from drexperts.runtime.json_document import canonical, parse, require_plain

CONTROLS = ["\n", "\r", "\t", "\0", "\x1b", "\x7f", "\x85", "\x9b"]
BIDI = ["\u200e", "\u200f", "\u061c", "\u202a", "\u202e", "\u2066", "\u2069"]
OTHERS = ["\u2028", "\u2029", "\ufeff", "\ud800", "\ue000", "\U000e0041"]


@pytest.mark.parametrize("character", CONTROLS + BIDI + OTHERS)
def test_characters_that_are_not_printable_are_refused_anywhere(character):
    for value in (f"a{character}b", [[character]], {"a": {"b": [character]}}, {f"k{character}": 1}):
        with pytest.raises(ConfigError, match="printable") as refused:
            parse(json.dumps(value))
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("text", ["", "plain", "Größe 100 %", "模糊", '"quoted" [red]'])
def test_printable_text_is_read(text):
    assert parse(json.dumps({"a": [text]})) == {"a": [text]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 1}', "twice"),
        ('[{"b": {"a": 1, "\\u0061": 2}}]', "twice"),
        ("NaN", "finite"),
        ("[-Infinity]", "finite"),
        ("1e999", "finite"),
        ("-1e999", "finite"),
        (str(2**53 + 1), r"2\*\*53"),
        ("-1" + "0" * 5000, r"2\*\*53"),
        ('"' + "a" * 1001 + '"', "longer"),
        ('{"' + "a" * 1001 + '": 1}', "longer"),
        ("[" * 17 + "]" * 17, "nested"),
        ("[" + "1," * 20_001 + "1]", "commas"),
        ('{"a":' * 17 + "1" + "}" * 17, "nested"),
    ],
)
def test_what_readers_understand_differently_is_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        parse(text)


def test_the_bounds_themselves():
    assert parse(str(-(2**53))) == -(2**53)
    assert parse('"' + "a" * 1000 + '"') == "a" * 1000
    assert parse("[" * 16 + "]" * 16)
    assert len(parse("[" + "1," * 20_000 + "1]")) == 20_001


@pytest.mark.parametrize("text", ["fp32", "PyTorch float32 eager, CLS-row form", "blocks.3/fc1"])
def test_plain_text(text):
    require_plain("a name", text)


@pytest.mark.parametrize(
    "text", ["", " a", "a\n", "=1+1", "-a", "[red]", "a|b", "<b>", "`a`", 'a"b', "é", "a" * 201]
)
def test_text_that_is_not_plain(text):
    with pytest.raises(ConfigError, match="a name"):
        require_plain("a name", "fine", text)


@dataclasses.dataclass(frozen=True)
class Inner:
    size: float
    later: str = "unused"


@dataclasses.dataclass(frozen=True)
class Outer:
    parts: tuple[Inner, ...]
    table: dict[str, float]
    later: tuple[int, ...] = ()


def test_the_canonical_form_leaves_out_what_is_not_used():
    plain = Outer((Inner(1.0), Inner(0.5, "used")), {"a": 2.0})
    parts = [{"size": 1}, {"size": 0.5, "later": "used"}]
    assert canonical(plain) == {"parts": parts, "table": {"a": 2}}
    assert json.dumps(canonical(plain)) == json.dumps({"parts": parts, "table": {"a": 2}})
    assert canonical(dataclasses.replace(plain, later=(1,)))["later"] == [1]
