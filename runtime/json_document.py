"""A JSON document of a stranger, checked while it is read, and its form as dataclasses."""

import dataclasses
import functools
import json
import re
import types
from typing import Any, get_args, get_origin, get_type_hints

from drexperts.runtime.errors import ConfigError

_MAX_INT = 2**53  # beyond it JSON readers disagree about the value
_MAX_DEPTH = 16
_MAX_COMMAS = 20_000  # a bundle of a dozen engines has about 2,500
_MAX_TEXT = 1000  # characters
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,:()/+_-]{0,199}")


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_plain(what: str, *texts: str) -> None:
    """Raise ConfigError unless each text is plain: letters, digits, spaces and some of .,:()/+_-

    Such a text means nothing to Markdown, a terminal, a spreadsheet or protobuf's text format.
    """
    for text in texts:
        plain = _PLAIN.fullmatch(text) is not None
        require(plain, f"{what} {text!r:.80} is not plain: use letters, digits and .,:()/+_-")


def parse(text: str) -> Any:
    """The value of a JSON text. Raises ConfigError, ValueError or RecursionError.

    Refused are what JSON readers understand differently (an object with the same key twice, NaN,
    infinities, integers beyond 2**53), more than 20,000 commas, which bound the number of values,
    nesting deeper than 16, and strings that are longer than 1000 characters or hold a character
    that is not printable: control characters, line separators and marks of direction change what a
    terminal or another format shows.
    """
    require(text.count(",") <= _MAX_COMMAS, f"it has more than {_MAX_COMMAS} commas")
    value = json.loads(
        text,
        parse_int=_parse_int,
        parse_float=_parse_float,
        parse_constant=_parse_float,
        object_pairs_hook=without_duplicates,
    )
    _check_strings(value, _MAX_DEPTH)
    return value


def _parse_int(digits: str) -> int:
    require(len(digits) <= 17 and abs(int(digits)) <= _MAX_INT, "an integer is beyond 2**53")
    return int(digits)


def _parse_float(text: str) -> float:
    value = float(text)
    require(abs(value) < float("inf"), f"{text:.40} is not a finite number")
    return value


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these keys and values. Raises ConfigError if a key occurs twice."""
    found = dict(pairs)
    require(len(found) == len(pairs), "an object has the same key twice")
    return found


def _check_strings(value: Any, depth: int) -> None:
    if isinstance(value, str):
        require(len(value) <= _MAX_TEXT, f"a string is longer than {_MAX_TEXT} characters")
        require(value.isprintable(), f"{value!r:.80} has a character that is not printable")
    elif isinstance(value, (dict, list)):
        require(depth > 0, f"it is nested deeper than {_MAX_DEPTH}")
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        for part in parts:
            _check_strings(part, depth - 1)


def decode(kind: Any, value: Any, where: str) -> Any:
    """Convert a parsed JSON value to the type `kind`.

    Supports dataclasses, X | None, tuple[X, ...], dict[str, X], Any, bool, int, float and str.
    Raises ConfigError, which names the place.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if value is None else decode(arguments[0], value, where)
    if origin is tuple:
        items = _checked(list, value, where)
        return tuple(decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if origin is dict:
        entries = _checked(dict, value, where)
        return {key: decode(arguments[1], v, f"{where}[{key!r}]") for key, v in entries.items()}
    if kind is float:
        return float(_checked((int, float), value, where))
    return _checked(kind, value, where)


_type_hints = functools.cache(get_type_hints)  # which takes a third of the time


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    entries = _checked(dict, value, where)
    hints = _type_hints(kind)
    # Fields that were added later have defaults, so that older manifests can be read.
    required = {field.name for field in dataclasses.fields(kind) if not has_default(field)}
    missing, unknown = required - entries.keys(), entries.keys() - hints.keys()
    require(not missing, f"{where} lacks {sorted(missing)}")
    require(not unknown, f"{where} has unknown fields {sorted(unknown)!s:.200}")
    return kind(**{name: decode(hints[name], entries[name], f"{where}.{name}") for name in entries})


def _checked(kinds: Any, value: Any, where: str) -> Any:
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    # By type, not isinstance: in Python a bool is an int, in a manifest it is a mistake.
    if type(value) not in wanted:
        names = " or ".join(kind.__name__ for kind in wanted)
        raise ConfigError(f"{where} must be {names}, got {type(value).__name__}")
    return value


def canonical(value: Any) -> Any:
    """A value of dataclasses as JSON, without the fields that have their default.

    So a field that a later version adds changes no document that does not use it. A whole number is
    written as one, whether it is a float or not.
    """
    if dataclasses.is_dataclass(value):
        return {
            field.name: canonical(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not has_default(field) or getattr(value, field.name) != _default(field)
        }
    if isinstance(value, dict):
        return {key: canonical(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [canonical(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def has_default(field: "dataclasses.Field[Any]") -> bool:
    """Whether a field of a dataclass may be left out."""
    return not field.default is field.default_factory is dataclasses.MISSING


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
