"""The arguments and declarations that verbs share."""

import argparse

import pytest

from drexperts.cli.arguments import DONE, Outcome, add_scale, add_verb, scale_of
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("0:100", ScoreScale(0.0, 100.0, higher_is_better=True)),
        ("-1:5.5:lower-is-better", ScoreScale(-1.0, 5.5, higher_is_better=False)),
        ("1e1:2e1", ScoreScale(10.0, 20.0, higher_is_better=True)),
    ],
)
def test_scales(text: str, scale: ScoreScale) -> None:
    assert scale_of(text) == scale


@pytest.mark.parametrize(
    "text", ["", ":", "1", "a:b", "0:inf", "nan:1", "0:1:better", "0:1:lower-is-better:", "0:1:2"]
)
def test_texts_that_are_no_scale(text: str) -> None:
    with pytest.raises(UserError, match="--scale takes LOW:HIGH or LOW:HIGH:lower-is-better, not"):
        scale_of(text)


@pytest.mark.parametrize("text", ["5:1", "3:3"])
def test_ends_of_a_scale_in_order(text: str) -> None:
    with pytest.raises(UserError, match="scale"):
        scale_of(text)


def test_a_verb_has_its_function_its_extra_and_json() -> None:
    def run(arguments: argparse.Namespace, screen: object) -> Outcome:
        return Outcome(DONE, {"scale": arguments.scale})

    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    add_scale(add_verb(verbs, "look", run, "looks", "train"))
    found = parser.parse_args(["look", "--json", "--scale=-1:1"])
    assert (found.json, found.extra, found.scale) == (True, "train", "-1:1")
    assert found.run(found, None) == Outcome(0, {"scale": "-1:1"})
    assert not parser.parse_args(["look"]).json
