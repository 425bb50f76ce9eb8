"""The metadata of a checkpoint: what is read of it, and that nothing else comes of anything."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drexperts.model.config import DRExpertsConfig
from drexperts.model.metadata import Metadata, read_metadata
from drexperts.runtime.errors import ConfigError
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.training import Training

TRAINED = Training(
    dataset="livec",
    data_digest="0123456789abcdef",
    split_digest="0123456789ab",
    images=(837, 93, 232),
    selected_on="validation",
    selected_by="srcc",
    epoch=3,
    when="2026-11-28T20:00:00Z",
    srcc=0.8,
)
VALID: dict[str, Any] = {
    "config": DRExpertsConfig.official().as_dict(),
    "scale": asdict(ScoreScale(0.0, 100.0, higher_is_better=True)),
    "preprocessing": asdict(Preprocessing(384, 384, 768, 3)),
    "trained": asdict(TRAINED),
}
FIELDS = [
    *((part, name) for part in VALID for name in VALID[part]),
    *((part, inner) for part in ("encoder", "controller") for inner in VALID["config"][part]),
]


def texts_with(part: str, field: str, value: Any) -> dict[str, str]:
    """The metadata with one field changed; `encoder` and `controller` are inside `config`."""
    changed = json.loads(json.dumps(VALID))
    (changed[part] if part in changed else changed["config"][part])[field] = value
    return {name: json.dumps(content) for name, content in changed.items()}


def test_what_was_written_is_read():
    texts = {name: json.dumps(content) for name, content in VALID.items()}
    read = read_metadata(texts)
    assert read.config == DRExpertsConfig.official()
    assert read.scale == ScoreScale(0.0, 100.0, higher_is_better=True)
    assert read.preprocessing == Preprocessing(384, 384, 768, 3)
    assert read.trained == TRAINED
    assert read_metadata(texts | {"scale": "null"}).scale is None
    del texts["trained"]  # as in the files of earlier versions
    assert read_metadata(texts).trained is None


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("encoder", "architecture", "hf-hub:someone/model"),
        ("encoder", "architecture", "hf_hub:someone/model"),
        ("encoder", "architecture", "local-dir:/etc"),
        ("encoder", "architecture", "vit_base_patch16_224"),
        ("encoder", "architecture", ["deit3_small_patch16_384"]),
        ("encoder", "weights", "../../other"),
        ("encoder", "depth", 100000),
        ("encoder", "depth", True),
        ("encoder", "depth", -1),
        ("encoder", "width", 64000),
        ("encoder", "width", 384.0),
        ("encoder", "width", "384"),
        ("encoder", "width", [384]),
        ("encoder", "heads", None),
        ("encoder", "patch_size", 1),
        ("controller", "depth", 10**400),
        ("controller", "embedding", 1e300),
        ("config", "attention_scale", 1e300),
        ("config", "attention_scale", float("inf")),
        ("config", "alpha_init", "0.5"),
        ("config", "lambda_init", float("nan")),
        ("config", "clip_antialias", 1),
        ("config", "grid", 24.0),
        ("config", "warmup_epochs", -1),
        ("config", "unknown", 1),
        ("config", "clip_norm", {"a": 1}),
        ("scale", "low", float("-inf")),
        ("scale", "high", float("nan")),
        ("scale", "high", 10**400),
        ("scale", "high", "100"),
        ("scale", "higher_is_better", 1),
        ("scale", "unit", "MOS"),
        ("preprocessing", "crop", 160.5),
        ("preprocessing", "crop", "384"),
        ("preprocessing", "crops_per_side", True),
        ("preprocessing", "short_side_max", 10**9),
        ("trained", "dataset", "=cmd()"),
        ("trained", "images", [1, 2, "3"]),
        ("trained", "images", 3),
        ("trained", "epoch", True),
        ("trained", "epoch", 10**400),
        ("trained", "srcc", float("nan")),
        ("trained", "plcc", "high"),
        ("trained", "when", "now"),
        ("trained", "unknown", 1),
    ],
)
def test_a_field_of_another_type_or_size_is_named(part, field, value):
    with pytest.raises(ConfigError) as caught:
        read_metadata(texts_with(part, field, value))
    assert field in str(caught.value)


def test_strings_instead_of_all_numbers_of_a_scale():
    """They compare like numbers: "0" < "100"."""
    texts = texts_with("scale", "low", "0") | {
        "scale": '{"low": "0", "high": "1", "higher_is_better": true}'
    }
    with pytest.raises(ConfigError, match=r"scale\.low"):
        read_metadata(texts)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("config", "[" * 60000),
        ("config", '{"a":' * 10000),
        ("config", " " * 10**6),
        ("config", '"' + "x" * 60000 + '"'),
        ("config", "null"),
        ("config", "1e999"),
        ("preprocessing", "null"),
        ("preprocessing", "{}"),
        ("scale", '{"low": 0, "low": 1, "high": 2, "higher_is_better": true}'),
        ("scale", "9" * 5000),
        ("trained", "{}"),
        ("trained", "[]"),
        ("trained", json.dumps(asdict(TRAINED) | {"srcc": 10**400})),
    ],
)
def test_a_text_that_is_not_its_part_is_named_shortly(part, text):
    valid = {name: json.dumps(content) for name, content in VALID.items()}
    with pytest.raises(ConfigError) as caught:
        read_metadata(valid | {part: text})
    assert part in str(caught.value)
    assert len(str(caught.value)) < 500


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5) | (
    st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
)


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_gives_metadata_or_an_error(place, value):
    read, message = None, ""
    try:
        read = read_metadata(texts_with(place[0], place[1], value))
    except ConfigError as error:
        message = str(error)
    assert isinstance(read, Metadata) or 0 < len(message) < 1000


@settings(max_examples=200, deadline=None)
@given(texts=st.dictionaries(st.sampled_from(list(VALID)) | st.text(), st.text()))
def test_any_text_gives_metadata_or_an_error(texts):
    with pytest.raises(ConfigError):
        read_metadata(texts)
