"""Splits: by group, portable, files that are read strictly, the reduced protocols."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drexperts.data.dataset import Dataset, Sample, higher_is_better
from drexperts.data.splits import (
    Split,
    Splits,
    check_splits,
    make_splits,
    read_splits,
    reduced,
    whole,
    write_splits,
)
from drexperts.runtime.errors import DataError
from drexperts.runtime.manifest import ScoreScale


def rated(groups: int, each: int = 3, name: str = "live") -> Dataset:
    """`each` images of each of `groups` contents."""
    samples = tuple(
        Sample(f"{group:03}-{i}.png", float(group + i), f"content {group:03}")
        for group in range(groups)
        for i in range(each)
    )
    return Dataset(name, Path("data"), samples, ScoreScale(0.0, 100.0, higher_is_better=True))


def groups_of(names: tuple[str, ...]) -> set[str]:
    return {name[:3] for name in names}


@given(groups=st.integers(3, 60), each=st.integers(1, 3), seed=st.integers(0, 5))
def test_parts_are_groups_and_everything(groups: int, each: int, seed: int) -> None:
    dataset = rated(groups, each)
    made = make_splits(dataset, seed=seed, count=2)
    check_splits(made, dataset)
    for split in made.splits:
        parts = [split.train, split.validation, split.test]
        assert sorted(sum(parts, ())) == sorted(dataset.by_name)
        assert all(part == tuple(sorted(part)) and part for part in parts)
        train, validation, test = map(groups_of, parts)
        assert not train & validation | train & test | validation & test
        assert len(train) + len(validation) == round(0.8 * groups)
        assert len(validation) == max(1, round(0.1 * round(0.8 * groups)))


def test_every_split_and_every_seed_is_another() -> None:
    dataset = rated(20)
    all_of_them = [s.test for seed in (0, 1) for s in make_splits(dataset, seed=seed).splits]
    assert len(set(all_of_them)) == 20


def test_the_order_is_that_of_the_hashes() -> None:
    """Known from `printf "0:0:content 000" | sha256sum` and its like: no version changes it."""
    made = make_splits(rated(6, each=1), count=2)
    order = [[groups_of(part) for part in (s.train, s.validation, s.test)] for s in made.splits]
    assert order[0] == [{"000", "005", "001", "004"}, {"002"}, {"003"}]
    assert order[1] == [{"000", "005", "004", "003"}, {"001"}, {"002"}]


def test_the_order_of_the_samples_does_not_matter() -> None:
    dataset = rated(12)
    turned = Dataset("live", Path("elsewhere"), dataset.samples[::-1], dataset.scale)
    assert make_splits(dataset).splits == make_splits(turned).splits


def test_without_validation_its_images_are_trained_on() -> None:
    with_it, without = (make_splits(rated(20), validation=share).splits[3] for share in (0.1, 0.0))
    assert without.validation == ()
    assert sorted(with_it.train + with_it.validation) == list(without.train)
    assert with_it.test == without.test


@pytest.mark.parametrize(
    ("groups", "shares", "needed"),
    [(2, {}, 3), (1, {"train": 0.5, "validation": 0}, 2), (5, {"train": 0.95}, 11), (0, {}, 3)],
)
def test_too_few_groups(groups: int, shares: dict[str, Any], needed: int) -> None:
    with pytest.raises(DataError, match=f"{groups} groups.* {needed}"):
        make_splits(rated(groups), **shares)
    make_splits(rated(needed), **shares)


@pytest.mark.parametrize(
    "arguments", [{"train": 1.0}, {"validation": 1.0}, {"train": 0.0}, {"count": 0}, {"seed": -1}]
)
def test_invalid_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        make_splits(rated(10), **arguments)


def test_a_negative_seed_in_a_file() -> None:
    dataset = rated(9)
    with pytest.raises(DataError, match="-1"):
        check_splits(replace(make_splits(dataset), seed=-1), dataset)


def test_reduced_keeps_the_test_and_is_nested() -> None:
    dataset = rated(50)
    split = make_splits(dataset, count=1).splits[0]
    larger = split
    for share in (0.6, 0.4, 0.2):
        less = reduced(split, dataset, share)
        assert less.test == split.test
        train, validation = groups_of(less.train), groups_of(less.validation)
        assert len(train) + len(validation) == round(share * 50)
        assert len(validation) == share * 50 / 10
        assert set(less.train) < set(larger.train)
        assert set(less.validation) < set(larger.validation)
        larger = less
    assert reduced(split, dataset, 0.8) == split
    assert reduced(split, dataset, 0.2).digest == less.digest != split.digest


def test_reduced_without_validation() -> None:
    dataset = rated(10)
    split = make_splits(dataset, count=1, validation=0).splits[0]
    assert len(groups_of(reduced(split, dataset, 0.2).train)) == 2
    assert reduced(split, dataset, 0.2).validation == ()


@pytest.mark.parametrize("share", [0.9, 0.1, 0.0])
def test_reduced_refuses_shares_that_do_not_fit(share: float) -> None:
    dataset = rated(10)
    with pytest.raises(DataError, match=f"{share:g}"):
        reduced(make_splits(dataset, count=1).splits[0], dataset, share)


def test_whole() -> None:
    dataset = rated(4)
    assert whole(dataset) == Split((), (), tuple(sorted(dataset.by_name)))


def test_a_file_is_read_back(tmp_path: Path) -> None:
    made = make_splits(rated(9), seed=4)
    path = tmp_path / "splits.json"
    path.write_text("of another day")
    write_splits(made, path)
    assert read_splits(path) == made
    assert read_splits(path).digest == made.digest
    assert os.listdir(tmp_path) == ["splits.json"]


def test_the_digest_is_of_everything() -> None:
    made = make_splits(rated(9), count=2)
    split = made.splits[0]
    others = [
        Splits("csiq", made.data_digest, 0, made.splits),
        Splits("live", "0" * 16, 0, made.splits),
        Splits("live", made.data_digest, 1, made.splits),
        Splits("live", made.data_digest, 0, made.splits[::-1]),
        Splits("live", made.data_digest, 0, (split,)),
        Splits("live", made.data_digest, 0, (split, Split(split.train, (), split.test))),
    ]
    assert len({each.digest for each in [made, *others]}) == 7


def _document() -> dict[str, Any]:
    split = Split(("a", "b"), ("c",), ("d",))
    part = {"digest": split.digest, "train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    digest = Splits("live", "0", 0, (split,)).digest
    ratings = {"dataset": "live", "data_digest": "0", "seed": 0}
    return {"schema": 1, "digest": digest} | ratings | {"splits": [part]}


def _with_a_split(train: object, test: str) -> dict[str, Any]:
    return {"splits": [{"digest": "0", "train": train, "validation": [], "test": [test]}]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, "schema 2"),
        ({"schema": None}, "schema None"),
        ({"colour": 1}, "colour"),
        ({"seed": 1.0}, "seed"),
        ({"seed": True}, "seed"),
        ({"dataset": None}, "dataset"),
        ({"splits": {}}, "splits"),
        ({"splits": []}, "no split"),
        ({"splits": [[]]}, "split 0"),
        ({"splits": [{"train": ["a"], "test": ["b"]}]}, "validation"),
        (_with_a_split(["a", "a"], "b"), "train of split 0"),
        (_with_a_split(["b", "a"], "c"), "train of split 0"),
        (_with_a_split([1], "c"), "train of split 0"),
        (_with_a_split("ab", "c"), "train of split 0"),
        (_with_a_split(["a"], "a"), "split 0"),
    ],
)
def test_invalid_files(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(_document()))
    assert read_splits(path).splits[0].train == ("a", "b")
    path.write_text(json.dumps(_document() | change))
    with pytest.raises(DataError, match=reason):
        read_splits(path)


def test_files_changed_by_hand(tmp_path: Path) -> None:
    made = make_splits(rated(9), count=2)
    path = tmp_path / "splits.json"
    write_splits(made, path)
    text = path.read_text()
    document = json.loads(text)
    assert document["digest"] == made.digest
    assert [split["digest"] for split in document["splits"]] == [s.digest for s in made.splits]
    document["splits"][1]["train"].append("999-0.png")
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="split 1"):
        read_splits(path)
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DataError, match="it was changed"):
        read_splits(path)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}", b'{"schema": 1, ']
)
def test_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"splits\.json"):
        read_splits(path)
    with pytest.raises(DataError, match=r"missing\.json"):
        read_splits(tmp_path / "missing.json")


def test_splits_of_other_data() -> None:
    dataset = rated(9)
    made = make_splits(dataset)
    relabelled = Dataset(
        "live",
        Path("data"),
        tuple(Sample(s.name, s.label + 1, s.group) for s in dataset.samples),
        dataset.scale,
    )
    for other, reason in [
        (rated(9, name="csiq"), "live.* csiq"),
        (rated(8), r"3 images.* 008-0\.png"),
        (rated(10), r"3 images.* 009-0\.png"),
        (relabelled, "labels or groups"),
    ]:
        with pytest.raises(DataError, match=reason):
            check_splits(made, other)


def test_a_parted_group() -> None:
    dataset = rated(9)
    made = make_splits(dataset, count=1)
    split = made.splits[0]
    moved = Split(split.train[1:], split.validation, tuple(sorted([*split.test, split.train[0]])))
    parted = Splits(made.dataset, made.data_digest, made.seed, (split, moved))
    with pytest.raises(DataError, match=f"split 1 .*content {split.train[0][:3]}"):
        check_splits(parted, dataset)


def test_parts_that_leave_images_out() -> None:
    dataset = rated(9)
    made = make_splits(dataset, count=2)
    first, second = made.splits
    for split, reason in [
        (replace(second, validation=()), "split 1 lacks 3 images"),
        (reduced(second, dataset, 0.4), "split 1 lacks 9 images"),
        (replace(second, test=()), "split 1"),
    ]:
        with pytest.raises(DataError, match=reason):
            check_splits(replace(made, splits=(first, split)), dataset)
    check_splits(replace(made, splits=(second,)), dataset)


def test_mirrored_labels_have_the_same_splits() -> None:
    worse = ScoreScale(0.0, 100.0, higher_is_better=False)
    published = replace(rated(9), scale=worse)
    mirrored = higher_is_better(published)
    assert make_splits(mirrored) == make_splits(published)
    check_splits(make_splits(published), mirrored)
    check_splits(make_splits(mirrored), published)


def test_what_a_file_holds_is_quoted_shortly(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"schema": 1} | {f"\x1b{i}" * 100: i for i in range(10_000)}))
    with pytest.raises(DataError, match=r"splits\.json.*unknown fields") as caught:
        read_splits(path)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_a_file_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_splits(rated(10), count=1)
    write_splits(made, tmp_path / "splits.json")
    monkeypatch.setattr("drexperts.data.splits._LONGEST", 100)
    with pytest.raises(DataError, match=r"splits\.json.*100 characters"):
        read_splits(tmp_path / "splits.json")
