"""What a model was trained on: only plain and possible values are taken."""

from dataclasses import replace

import pytest

from drexperts.runtime.errors import ConfigError
from drexperts.runtime.manifest import digest, read_manifest, write_manifest
from drexperts.runtime.training import Training, utc_now

TRAINING = Training(
    dataset="folder",
    data_digest="0123456789abcdef",
    split_digest="0123456789ab",
    images=(451, 50, 126),
    selected_on="validation",
    selected_by="srcc",
    epoch=7,
    when="2026-11-28T20:00:00Z",
    srcc=0.61,
    plcc=0.63,
)


def test_it_says_what_chose_the_epoch():
    assert TRAINING.choice == "chosen by the SRCC of the validation images"
    last = replace(TRAINING, selected_on="last epoch", selected_by=None)
    assert last.choice == "the last, as there is nothing to choose it by"


def test_the_time_is_one_that_is_taken():
    assert replace(TRAINING, when=utc_now()).when.endswith("Z")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", ""),
        ("dataset", "<b>"),
        ("dataset", "x" * 201),
        ("data_digest", "0123"),
        ("data_digest", "g" * 16),
        ("split_digest", "0" * 65),
        ("images", (1, 2)),
        ("images", (1, 2, -1)),
        ("images", (1, 2, 10**10)),
        ("selected_on", "training"),
        ("selected_by", "krcc"),
        ("selected_by", None),
        ("epoch", 0),
        ("epoch", 10**10),
        ("srcc", 1.5),
        ("plcc", float("nan")),
        ("when", "yesterday"),
        ("when", "2026-02-30T00:00:00Z"),
        ("when", "2026-11-28T20:00:00"),
        ("when", "2026-1-2T20:00:00Z"),
    ],
)
def test_a_value_that_is_not_possible_is_named(name, value):
    with pytest.raises(ConfigError, match=name):
        replace(TRAINING, **{name: value})


def test_a_manifest_without_it_keeps_its_digest(toy_bundle, tmp_path):
    manifest = read_manifest(toy_bundle)
    assert manifest.trained is None
    trained = replace(manifest, trained=TRAINING)
    write_manifest(trained, tmp_path)
    assert read_manifest(tmp_path).trained == TRAINING
    assert digest(trained) != digest(manifest)
    text = (toy_bundle / "manifest.json").read_text().replace('"trained": null,\n', "")
    (tmp_path / "manifest.json").write_text(text)
    assert digest(read_manifest(tmp_path)) == digest(manifest)
