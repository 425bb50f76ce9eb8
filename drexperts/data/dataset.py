"""Rated images: what every data set is once it is read."""

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
    label: its mean opinion, on the data set's scale
    group: images that no split may part: the reference image's name where there is one, without
        regard to case and to white space around it, else `name`
    """

    name: str
    label: float
    group: str


@dataclass(frozen=True)
class Dataset:
    """Rated images below a folder, in the order of their names.

    name: "koniq10k" and so on, or "folder"
    scale: the range and the direction of the labels
    skipped: what was left out on request, and why, one line each
    published: the digest before the labels were mirrored, None if they were not
    """

    name: str
    root: Path
    samples: tuple[Sample, ...]
    scale: ScoreScale
    skipped: tuple[str, ...] = ()
    published: str | None = None

    @cached_property
    def by_name(self) -> dict[str, Sample]:
        """Each sample by its name."""
        return {sample.name: sample for sample in self.samples}

    @cached_property
    def digest(self) -> str:
        """16 hex digits of names, labels and groups: equal for the same ratings, wherever kept."""
        rows = [(sample.name, sample.label, sample.group) for sample in self.samples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    @property
    def published_digest(self) -> str:
        """That of the labels as published: splits are the same for mirrored ones."""
        return self.digest if self.published is None else self.published

    def path(self, sample: Sample) -> Path:
        """Where an image is."""
        return self.root / sample.name

    def select(self, names: Iterable[str]) -> list[Sample]:
        """The samples of these names, in their order. Raises DataError for a name not in it."""
        names = list(names)
        missing = [name for name in names if name not in self.by_name]
        if missing:
            raise DataError(
                f"{len(missing)} images are not in {self.name} at {self.root}, first {missing[0]}: "
                "the split was made for other data; make it again"
            )
        return [self.by_name[name] for name in names]


def higher_is_better(dataset: Dataset) -> Dataset:
    """The same images on a scale on which higher is better: DMOS is mirrored in its range."""
    scale = dataset.scale
    if scale.higher_is_better:
        return dataset
    samples = tuple(
        replace(sample, label=scale.low + scale.high - sample.label) for sample in dataset.samples
    )
    turned = replace(scale, higher_is_better=True)
    return replace(dataset, samples=samples, scale=turned, published=dataset.digest)
