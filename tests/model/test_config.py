"""The presets and their switches."""

from dataclasses import fields, replace
from typing import Any

import pytest

from drexperts.model.config import (
    DISTORTIONS,
    PRESETS,
    SIZES,
    ControllerConfig,
    DRExpertsConfig,
    EncoderConfig,
)
from drexperts.runtime.errors import ConfigError

# The table of the two presets: switch -> (official, paper).
SWITCHES = {
    "clip_norm": ("twice", "once"),
    "clip_antialias": (False, True),
    "distortion_source": ("pooled", "tokens"),
    "distortion_keys": ("hidden", "embedding"),
    "projections": ("shared", "per_expert"),
    "semantic_norm": ("iterated", "single"),
    "value_order": ("distortion_first", "semantic_first"),
    "alpha": ("shared", "per_expert"),
    "group_features": ("refined", "distortion"),
    "score_bias": ("outside", "inside"),
    "warmup_epochs": (3, 0),
    "grid": (24, None),
}


def test_presets_differ_in_the_tabled_switches_only():
    official, paper = DRExpertsConfig.official(), DRExpertsConfig.paper()
    assert paper == DRExpertsConfig()
    for field in fields(DRExpertsConfig):
        values = getattr(official, field.name), getattr(paper, field.name)
        if field.name in SWITCHES:
            assert values == SWITCHES[field.name]
        else:
            assert values[0] == values[1], field.name


def test_ten_distortions_in_the_papers_order():
    assert len(DISTORTIONS) == 10
    assert DISTORTIONS[::9] == ("motion-blurry", "uncompleted")
    assert DISTORTIONS[3] == "low-light"


@pytest.mark.parametrize(
    ("size", "image_size", "width", "grid"),
    [
        ("small", 384, 384, 24),
        ("small", 224, 384, 14),
        ("base", 384, 768, 24),
        ("base", 224, 768, 14),
    ],
)
def test_sizes(size, image_size, width, grid):
    encoder = DRExpertsConfig.paper(size, image_size).encoder
    assert (encoder.width, encoder.grid, encoder.heads) == (width, grid, width // 64)
    assert encoder.architecture == f"deit3_{size}_patch16_{image_size}"


def test_official_at_224_names_both_grids():
    with pytest.raises(ConfigError, match=r"24x24.*14x14"):
        DRExpertsConfig.official("small", 224)


@pytest.mark.parametrize("name", [n for n, (a, _) in SWITCHES.items() if isinstance(a, str)])
def test_an_unknown_choice_is_named_with_the_known_ones(name):
    change: dict[str, Any] = {name: "nonsense"}
    with pytest.raises(ConfigError, match=f"{name}='nonsense'.* or "):
        DRExpertsConfig(**change)


def test_an_unknown_size_or_preset_is_named():
    with pytest.raises(ConfigError, match="large"):
        DRExpertsConfig.paper("large")
    with pytest.raises(ConfigError, match=r"draft.*paper or official"):
        DRExpertsConfig.preset_named("draft")


@pytest.mark.parametrize("preset", PRESETS)
def test_dictionary_round_trip(preset):
    config = DRExpertsConfig.preset_named(preset)
    assert config == getattr(DRExpertsConfig, preset)()
    assert DRExpertsConfig.from_dict(config.as_dict()) == config
    assert config.preset == preset
    with pytest.raises(ConfigError, match="colour"):
        DRExpertsConfig.from_dict({"colour": "blue"})


def test_preset_name_survives_other_sizes_but_no_other_switch():
    config = DRExpertsConfig.official().with_sizes(
        EncoderConfig(image_size=64, width=36), ControllerConfig(width=48)
    )
    assert (config.preset, config.grid) == ("official", 4)
    assert replace(config, clip_antialias=True).preset == "custom"


@pytest.mark.parametrize(
    ("name", "value"), [("width", 0), ("depth", 2.0), ("image_size", 385), ("heads", 5)]
)
def test_an_impossible_size_is_named(name, value):
    with pytest.raises(ConfigError, match=f"encoder.*{name}.* {value}"):
        DRExpertsConfig(encoder=replace(EncoderConfig(), **{name: value}))


def test_only_the_published_sizes_have_a_published_name():
    small = EncoderConfig()
    assert (small.name, small.weights) == ("deit3_small_patch16_384", "fb_in22k_ft_in1k")
    toy = EncoderConfig(image_size=64, width=64, depth=2, heads=2)
    assert (toy.architecture, toy.weights, toy.published) == ("custom", "none", None)
    assert toy.name == "ViT of 2 blocks, width 64, patches of 16 px, 64 px images"
    # Published weights can be resampled to another image size, which no published encoder has.
    other = DRExpertsConfig.paper("base", 128).encoder
    assert (other.architecture, other.published) == ("custom", "deit3_base_patch16")
    changes: list[dict[str, Any]] = [{"heads": 12}, {"depth": 11}, {"patch_size": 32}]
    for change in [*changes, {"image_size": 400}]:
        assert "deit3" not in replace(small, **change).name


def test_a_published_size_that_starts_from_nothing_is_not_taken_for_its_weights():
    parts = DRExpertsConfig.from_nothing("small", 384).parts
    assert parts["encoder"] == "deit3_small_patch16_384, without published weights"


def test_an_old_configuration_that_named_a_published_encoder_in_any_size_is_read():
    config = DRExpertsConfig.from_nothing("tiny", 128)
    old = config.as_dict()
    old["encoder"] |= {"architecture": "deit3_small_patch16_384", "weights": "fb_in22k_ft_in1k"}
    assert DRExpertsConfig.from_dict(old) == config
    assert "deit3" not in str(DRExpertsConfig.from_dict(old).as_dict())


def test_only_da_clips_sizes_are_called_da_clip():
    assert ControllerConfig().name == "DA-CLIP ViT-B/32"
    for change in ({"depth": 11}, {"image_size": 256}, {"embedding": 64}, {"heads": 6}):
        prior = replace(ControllerConfig(), **change)
        assert prior.name.startswith("a small prior trained on synthetic distortions: ViT of ")
        assert all(word in prior.words for word in DISTORTIONS)
    parts = DRExpertsConfig.paper().parts
    assert parts["prior"] == "DA-CLIP ViT-B/32"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [128, 176, 384])
def test_every_size_starts_from_nothing_at_many_image_sizes(size, image_size):
    config = DRExpertsConfig.from_nothing(size, image_size)
    assert (config.encoder.image_size, config.controller.image_size) == (image_size, image_size)
    assert (config.preset, config.encoder.weights) == ("paper", "none")
    assert not config.controller.is_daclip
    assert DRExpertsConfig.from_dict(config.as_dict()) == config
    assert config.encoder.width == DRExpertsConfig.paper(size, image_size).encoder.width


@pytest.mark.parametrize(
    ("size", "image_size", "near"),
    [
        ("tiny", 136, "128 or 144"),
        ("tiny", 127, "such as 128"),
        ("tiny", -8, "such as 128"),
        ("small", 200, "192 or 208"),
        ("base", 64, "such as 128"),
    ],
)
def test_an_impossible_image_size_names_those_near(size, image_size, near):
    with pytest.raises(ConfigError, match=rf"{image_size} px.*{size}.*{near}$"):
        DRExpertsConfig.from_nothing(size, image_size)


def test_an_image_size_beyond_all_memory_is_refused():
    with pytest.raises(ConfigError, match="2048"):
        DRExpertsConfig.from_nothing("small", 16 * 10**6)
