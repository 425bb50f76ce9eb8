"""The metadata of our checkpoints: JSON beside the weights, checked before a model is made."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from drexperts.model.config import DRExpertsConfig
from drexperts.model.field_types import check_fields
from drexperts.runtime.errors import ConfigError
from drexperts.runtime.json_document import decode, without_duplicates
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.quoting import quoted
from drexperts.runtime.training import Training

PARTS = ("config", "preprocessing", "scale", "trained")

_LONGEST = 65536  # characters of one part; ours have under a thousand
_SCALE_LIMITS = {"low": (-1e9, 1e9), "high": (-1e9, 1e9)}


class Metadata(NamedTuple):
    """What a checkpoint says of its model. None: it does not say."""

    config: DRExpertsConfig
    scale: ScoreScale | None
    preprocessing: Preprocessing
    trained: Training | None


def read_metadata(texts: Mapping[str, str]) -> Metadata:
    """The metadata in the JSON texts under `PARTS`, of which older files lack `trained`.

    Raises a ConfigError that names the part or the field which is missing, unknown or invalid.
    """
    if unknown := sorted(texts.keys() - set(PARTS)):
        raise ConfigError(f"unknown metadata {quoted(unknown)}")
    texts = {"trained": "null", **texts}
    parts = {name: _json_object(name, texts.get(name)) for name in PARTS}
    if parts["config"] is None or parts["preprocessing"] is None:
        raise ConfigError("config and preprocessing must be JSON objects, got null")
    scale, trained = parts["scale"], parts["trained"]
    return Metadata(
        DRExpertsConfig.from_dict(parts["config"]),
        None if scale is None else _record("scale", ScoreScale, scale, _SCALE_LIMITS),
        _record("preprocessing", Preprocessing, parts["preprocessing"], {}),
        None if trained is None else _training(trained),
    )


def _training(values: dict[str, Any]) -> Training:
    try:
        training: Training = decode(Training, values, "trained")
    except OverflowError as error:  # of an integer that no float can hold
        raise ConfigError(f"trained has a number that is too large: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"trained: {error}") from error
    return training


def _record(part: str, kind: Any, values: dict[str, Any], limits: dict[str, Any]) -> Any:
    check_fields(kind, values, f"{part}.", limits)
    try:
        return kind(**values)
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{part}: {error}") from error


def _json_object(name: str, text: str | None) -> dict[str, Any] | None:
    if text is None or len(text) > _LONGEST:
        found = "it is missing" if text is None else f"it has {len(text)} characters"
        raise ConfigError(f"{name} must be JSON of at most {_LONGEST} characters, but {found}")
    try:
        # Not with `parse`, which refuses numbers that `check_fields` refuses by their field's name.
        content = json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, ConfigError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid JSON: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{name} must be a JSON object, got {quoted(content)}")
    return content
