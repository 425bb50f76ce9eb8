"""The options of a build."""

import pytest

from drexperts.export.engines.options import EngineOptions, parse_profiles
from drexperts.runtime.errors import ConfigError, UserError
from drexperts.runtime.manifest import BatchProfile


def test_profiles():
    assert parse_profiles(["1:8:64"]) == (BatchProfile(1, 8, 64),)
    assert parse_profiles(["4:8:64", "1", "2:2:3"]) == (
        BatchProfile(4, 8, 64),
        BatchProfile(1, 1, 1),
        BatchProfile(2, 2, 3),
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there is no profile"),
        (["2:4:8"], "a batch of 1,"),
        (["1", "4:4:8"], "a batch of 2,"),
        (["1:1:2", "5:6:7"], "a batch of 3, .* 7: add the profile 3:3:7"),
        (["1:2"], "1:2.*: give MIN:OPT:MAX"),
        (["a"], "give MIN:OPT:MAX"),
        (["1:-2:3"], "give MIN:OPT:MAX"),
        (["\u0661"], "give MIN:OPT:MAX"),
        (["1:9:8"], "min <= opt <= max"),
        (["0:1:8"], "min <= opt <= max"),
    ],
)
def test_invalid_profiles(texts, message):
    with pytest.raises(UserError, match=message):
        parse_profiles(texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimization_level": 6}, "0 to 5"),
        ({"workspace": 0}, "got 0"),
        ({"hardware_compatibility": "ampere"}, "none, ampere. or same-capability"),
        ({"plugin": "on"}, "require, prefer or off"),
    ],
)
def test_invalid_options(change, message):
    with pytest.raises(ConfigError, match=message):
        EngineOptions(**change)
