"""Splits into training, validation and test, as files."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from drexperts.data.dataset import Dataset
from drexperts.runtime.errors import DataError
from drexperts.runtime.files import written_whole
from drexperts.runtime.quoting import quoted, shortened

SCHEMA = 1

_LONGEST = 2**28  # characters of a file; ten splits of LIVE-FB have sixteen million
_AGAIN = "make the splits again"
_BY_HAND = "was changed by hand: its digest does not match its content"


@dataclass(frozen=True)
class Split:
    """One division of a data set: sorted names of samples. No group is in two parts."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """12 hex digits of the three parts."""
        return _digest(asdict(self))


@dataclass(frozen=True)
class Splits:
    """The content of a split file.

    dataset, data_digest: the data it was made for, see `Dataset.published_digest`
    seed: for the order of the groups
    """

    dataset: str
    data_digest: str
    seed: int
    splits: tuple[Split, ...]

    @cached_property
    def digest(self) -> str:
        """12 hex digits of all fields."""
        return _digest(asdict(self))


def make_splits(
    dataset: Dataset,
    *,
    count: int = 10,
    seed: int = 0,
    train: float = 0.8,
    validation: float = 0.1,
) -> Splits:
    """Random splits by group, the same on every machine and with every version of every library.

    Split i sorts the groups by the SHA-256 of "seed:i:group". The first round(train * groups) are
    for training and validation, as in the released code, and the rest are for the test.

    Args:
        train: share of the groups for training and validation together.
        validation: share of these for validation, at least one group; 0 for none.

    Raises:
        DataError: there are too few groups, or a share, the count or the seed is invalid.
    """
    if not (0 < train < 1 and 0 <= validation < 1 and count >= 1):
        raise DataError(
            f"invalid splits: count {count}, train {train:g}, validation {validation:g}; choose a "
            "count of at least 1, and shares from 0 to below 1"
        )
    _check_seed(seed)
    groups = {sample.group for sample in dataset.samples}
    counts = _counts(len(groups), train, validation)
    if counts is None:
        more = itertools.count(len(groups) + 1)
        needed = next(n for n in more if _counts(n, train, validation) is not None)
        raise DataError(
            f"{dataset.name} at {dataset.root} has {len(groups)} groups of images, but the split "
            f"needs at least {needed}: use more images, or other shares"
        )
    orders = (_ordered(groups, f"{seed}:{i}") for i in range(count))
    splits = tuple(_cut(dataset, order, *counts) for order in orders)
    return Splits(dataset.name, dataset.published_digest, seed, splits)


def reduced(split: Split, dataset: Dataset, share: float) -> Split:
    """The data-efficiency protocol: fewer images to train on, and the same test images.

    Training and validation together keep round(share * groups) groups, in their proportion. A
    smaller share is a subset of a larger one.

    `share` refers to the groups of the whole data set. The paper can be read in two ways: in one
    place it reduces the training part to 60, 40 and 20 % of its size, in another the training part
    has 20, 40 and 60 % of the images. This is the second reading, with 100 % meaning all images.

    Raises DataError if that is more than the split has, or leaves a part empty.
    """
    parts = [_groups_of(split.train, dataset), _groups_of(split.validation, dataset)]
    here = sum(map(len, parts))
    kept = round(share * len({sample.group for sample in dataset.samples}))
    validated = max(1, round(kept * len(parts[1]) / here)) if parts[1] else 0
    if not validated < kept <= here:
        raise DataError(
            f"{share:g} of {dataset.name} is {kept} groups for training and validation, but the "
            f"split has {here} and needs at least {2 if parts[1] else 1}: choose another share"
        )
    orders = [_ordered(part, split.digest) for part in parts]
    train, validation = orders[0][: kept - validated], orders[1][:validated]
    return Split(_names(dataset, train), _names(dataset, validation), split.test)


def whole(dataset: Dataset) -> Split:
    """A split in which every image is a test image, for models trained on other data."""
    return Split((), (), tuple(sorted(dataset.by_name)))


def write_splits(splits: Splits, path: str | Path) -> None:
    """Write a split file atomically. Raises OSError."""
    parts = [{"digest": split.digest} | asdict(split) for split in splits.splits]
    content = asdict(splits) | {"splits": parts}
    text = json.dumps({"schema": SCHEMA, "digest": splits.digest} | content, indent=1)
    with written_whole(Path(path)) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def read_splits(path: str | Path) -> Splits:
    """Read a split file. Raises DataError, and nothing else, if it is invalid."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise DataError(f"it has more than {_LONGEST} characters")
        return _from_document(json.loads(text))
    except (OSError, ValueError, RecursionError, DataError) as cause:
        raise DataError(f"{path} is not a valid split file: {cause}; {_AGAIN}") from cause


def check_splits(splits: Splits, dataset: Dataset) -> None:
    """Raise DataError unless the splits fit the data, and say what differs.

    Splits do not fit if they are of other data, leave out images, divide a group, or have no test
    images. Labels may be mirrored or as published.
    """
    where = f"{dataset.name} at {dataset.root}"
    if splits.dataset != dataset.name:
        raise DataError(f"the splits are of {splits.dataset}, not of {dataset.name}: {_AGAIN}")
    if splits.data_digest != dataset.published_digest:
        raise DataError(f"the splits are not of {where}: {_difference(splits, dataset)}; {_AGAIN}")
    _check_seed(splits.seed)
    for number, split in enumerate(splits.splits):
        _check_parts(f"split {number}", split, dataset)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise DataError(f"the split seed must be 0 or greater, got {seed}")


def _check_parts(which: str, split: Split, dataset: Dataset) -> None:
    if not split.test:
        raise DataError(f"{which} has no image to test on: {_AGAIN}")
    names = asdict(split).values()
    parts = [_groups_of(part, dataset) for part in names]
    for first, second in itertools.combinations(parts, 2):
        if both := sorted(first & second):
            raise DataError(
                f"{which} has {len(both)} groups in two parts, such as {quoted(both[0])}: {_AGAIN}"
            )
    if lost := sorted(dataset.by_name.keys() - {name for part in names for name in part}):
        raise DataError(f"{which} lacks {len(lost)} images, first {lost[0]}: {_AGAIN}")


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _counts(groups: int, train: float, validation: float) -> tuple[int, int] | None:
    """The numbers of groups for training and validation; None if a part would be empty."""
    learnt = round(train * groups)
    validated = max(1, round(validation * learnt)) if validation else 0
    return (learnt - validated, validated) if validated < learnt < groups else None


def _ordered(groups: Iterable[str], salt: str) -> list[str]:
    return sorted(groups, key=lambda g: hashlib.sha256(f"{salt}:{g}".encode()).digest())


def _cut(dataset: Dataset, order: list[str], train: int, validation: int) -> Split:
    learnt = train + validation
    parts = (order[:train], order[train:learnt], order[learnt:])
    return Split(*(_names(dataset, part) for part in parts))


def _names(dataset: Dataset, groups: Iterable[str]) -> tuple[str, ...]:
    chosen = set(groups)
    return tuple(sorted(sample.name for sample in dataset.samples if sample.group in chosen))


def _groups_of(names: Iterable[str], dataset: Dataset) -> set[str]:
    return {sample.group for sample in dataset.select(names)}


def _from_document(document: object) -> Splits:
    entries = _entries(document, "it", {"schema", "digest", *(f.name for f in fields(Splits))})
    if type(entries["seed"]) is not int or not isinstance(entries["splits"], list):
        raise DataError("its seed must be a whole number, and its splits a list")
    if not isinstance(entries["dataset"], str) or not isinstance(entries["data_digest"], str):
        raise DataError("its dataset and its data_digest must be text")
    splits = tuple(_split(entry, f"split {i}") for i, entry in enumerate(entries["splits"]))
    if not splits:
        raise DataError("it has no split")
    made = Splits(entries["dataset"], entries["data_digest"], entries["seed"], splits)
    if entries["digest"] != made.digest:
        raise DataError(f"it {_BY_HAND}")
    return made


def _entries(document: object, where: str, wanted: set[str]) -> dict[str, Any]:
    """The fields of a JSON object. Raises DataError unless they are exactly those wanted."""
    if not isinstance(document, dict):
        raise DataError(f"{where} is not a JSON object")
    # Checked before the fields, because another schema has other fields.
    if "schema" in wanted and document.get("schema") != SCHEMA:
        raise DataError(f"{where} has the schema {quoted(document.get('schema'))}, not {SCHEMA}")
    if document.keys() != wanted:
        wrong = sorted(document.keys() ^ wanted)
        raise DataError(f"{where} has missing or unknown fields: {shortened(str(wrong), 300)}")
    return document


def _split(document: object, where: str) -> Split:
    entries = _entries(document, where, {"digest", *(f.name for f in fields(Split))})
    digest = entries.pop("digest")
    for part, names in entries.items():
        plain = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not plain or names != sorted(set(names)):
            raise DataError(f"{part} of {where} is not a sorted list of unique names")
    split = Split(**{part: tuple(names) for part, names in entries.items()})
    everything = [*split.train, *split.validation, *split.test]
    if len(set(everything)) < len(everything):
        raise DataError(f"{where} has an image in two parts")
    if digest != split.digest:
        raise DataError(f"{where} {_BY_HAND}")
    return split


def _difference(splits: Splits, dataset: Dataset) -> str:
    """Why the digest of the data differs from that in the splits."""
    named = {n for split in splits.splits for part in asdict(split).values() for n in part}
    for less, more, text in (
        (dataset.by_name.keys(), named, "are missing"),
        (named, dataset.by_name.keys(), "are in no split"),
    ):
        if missing := sorted(set(more) - set(less)):
            return f"{len(missing)} images {text}, first {missing[0]}"
    return "labels or groups have changed"
