"""Rated images: the form of every data set once it is read."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from drexperts.runtime.errors import DataError
from drexperts.runtime.manifest import ScoreScale


@dataclass(frozen=True)
class Sample:
    """One rated image.

    name: its path below the data set's folder, with forward slashes; unique in the set
    label: its mean opinion score, on the data set's scale
    group: images that every split keeps together: the name of their reference image, in lower case
        and without surrounding white space, or else `name`
    """

    name: str
    label: float
    group: str


@dataclass(frozen=True)
class Dataset:
    """Rated images below a folder, sorted by name.

    name: "koniq10k" and so on, or "folder"
    scale: the range and the direction of the labels
    skipped: what was left out on request and why, one line each
    published: the digest before the labels were mirrored, None if they were not mirrored
    """

    name: str
    root: Path
    samples: tuple[Sample, ...]
    scale: ScoreScale
    skipped: tuple[str, ...] = ()
    published: str | None = None

    @cached_property
    def by_name(self) -> dict[str, Sample]:
        """The samples by name."""
        return {sample.name: sample for sample in self.samples}

    @cached_property
    def digest(self) -> str:
        """16 hex digits of names, labels and groups, whichever folder holds the images."""
        rows = [(sample.name, sample.label, sample.group) for sample in self.samples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    @property
    def published_digest(self) -> str:
        """The digest of the labels as published: mirrored labels have the same splits."""
        return self.digest if self.published is None else self.published

    def path(self, sample: Sample) -> Path:
        """The path of an image."""
        return self.root / sample.name

    def select(self, names: Iterable[str]) -> list[Sample]:
        """The samples of these names, in this order. Raises DataError for an unknown name."""
        names = list(names)
        missing = [name for name in names if name not in self.by_name]
        if missing:
            raise DataError(
                f"{len(missing)} images are not in {self.name} at {self.root}, first {missing[0]}: "
                "the split is of other data; make it again"
            )
        return [self.by_name[name] for name in names]


def higher_is_better(dataset: Dataset) -> Dataset:
    """The same images on a scale where higher is better: DMOS is mirrored in its range."""
    scale = dataset.scale
    if scale.higher_is_better:
        return dataset
    samples = tuple(
        replace(sample, label=scale.low + scale.high - sample.label) for sample in dataset.samples
    )
    turned = replace(scale, higher_is_better=True)
    return replace(dataset, samples=samples, scale=turned, published=dataset.digest)
