"""Checks that the fields of a dataclass hold what its annotations say."""

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from drexperts.runtime.errors import ConfigError
from drexperts.runtime.quoting import quoted

_KINDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "a text"}

Limits = Mapping[str, tuple[float, float]]


def check_fields(dataclass: Any, values: Mapping[str, Any], prefix: str, limits: Limits) -> None:
    """Raise a ConfigError that names the first field of a wrong type or outside its limits.

    A boolean is no integer, an integer may stand for a float, and a float must be finite.

    values: fields of the dataclass by name; others, and those that are missing, are not looked at
    prefix: what the fields' names begin with in the message
    limits: the least and the largest value of fields, by name
    """
    for name, kind in get_type_hints(dataclass).items():
        if name not in values:
            continue
        value = values[name]
        if get_origin(kind) is Literal:
            _check_choice(prefix + name, value, get_args(kind))
            continue
        if get_origin(kind) is UnionType:
            if value is None:
                continue
            (kind,) = set(get_args(kind)) - {NoneType}
        _check_value(prefix + name, value, kind, limits.get(name))


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name}={quoted(value)}: choose {' or '.join(choices)}")


def _check_value(name: str, value: Any, kind: Any, limits: tuple[float, float] | None) -> None:
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits or (kind is float and not abs(value) < math.inf):
        wanted = _KINDS.get(kind, f"a {kind}")
        raise ConfigError(f"{name} must be {wanted}, got {quoted(value)}")
    if limits is not None and not limits[0] <= value <= limits[1]:
        least, most = limits
        raise ConfigError(f"{name} must be {least:g} to {most:g}, got {quoted(value)}")
