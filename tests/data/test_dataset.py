"""Rated images, and their labels turned the right way up."""

from dataclasses import replace
from pathlib import Path

import pytest

from drexperts.data.dataset import Dataset, Sample, higher_is_better
from drexperts.runtime.errors import DataError
from drexperts.runtime.manifest import ScoreScale

DMOS = Dataset(
    "live",
    Path("anywhere"),
    (Sample("wn/img1.bmp", 20.0, "bikes.bmp"), Sample("wn/img2.bmp", 104.0, "house.bmp")),
    ScoreScale(0.0, 100.0, higher_is_better=False),
)


def test_dmos_is_mirrored_in_its_range() -> None:
    turned = higher_is_better(DMOS)
    assert [sample.label for sample in turned.samples] == [80.0, -4.0]
    assert turned.scale == ScoreScale(0.0, 100.0, higher_is_better=True)
    assert [(s.name, s.group) for s in turned.samples] == [(s.name, s.group) for s in DMOS.samples]


def test_labels_where_higher_is_better_stay() -> None:
    turned = higher_is_better(DMOS)
    assert higher_is_better(turned) is turned


def test_mirrored_labels_keep_the_digest_of_those_published() -> None:
    turned = higher_is_better(DMOS)
    assert turned.digest != DMOS.digest
    assert turned.published_digest == DMOS.published_digest == DMOS.digest


def test_the_digest_is_of_the_ratings_alone() -> None:
    assert replace(DMOS, root=Path("elsewhere"), skipped=("one",)).digest == DMOS.digest
    first, second = DMOS.samples
    for changed in (
        replace(first, name="wn/img3.bmp"),
        replace(first, label=20.5),
        replace(first, group="house.bmp"),
    ):
        assert replace(DMOS, samples=(changed, second)).digest != DMOS.digest


def test_samples_are_selected_in_the_order_asked_for() -> None:
    first, second = DMOS.samples
    assert DMOS.select([second.name, first.name]) == [second, first]
    assert DMOS.path(first) == Path("anywhere/wn/img1.bmp")


def test_a_name_of_other_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"2 images.* live .*a\.bmp"):
        DMOS.select(["wn/img1.bmp", "a.bmp", "b.bmp"])
