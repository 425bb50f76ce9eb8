"""What `reproduce` returns, and what its page and its JSON file show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from drexperts.evaluation.metrics import Metrics, json_ready
from drexperts.paper.cells import Training

# In the words that a reader sees. A cell with some of its splits finished also has their medians.
CellState = Literal[
    "not asked for", "data missing", "not run yet", "running", "failed", "partly done", "done"
]


@dataclass(frozen=True)
class MeasuredRun:
    """A finished training and its tests.

    images: how many the training, validation and test parts have
    selected_on: the images that chose the epoch: "test", "validation", or "last epoch"
    skipped: why each unusable image was left out
    used: how many images of each data set could be used
    tests: the metrics on each set of test images
    """

    split_digest: str
    images: Sequence[int]
    best_epoch: int
    selected_on: str
    skipped: Sequence[str]
    split: int
    used: Mapping[str, int]
    tests: Mapping[str, Metrics]


@dataclass(frozen=True)
class Median:
    """The medians over the finished splits; NaN where one has no correlation, or without splits."""

    splits: int
    srcc: float
    plcc: float


@dataclass(frozen=True)
class MeasuredCell:
    """A cell of the table with all that was measured for it.

    name: the name of the training
    state: what became of it, or what will
    medians: by what was tested on
    """

    row: str
    column: str
    training: Training
    target: str | None
    name: str
    state: CellState
    medians: Mapping[str, Median]
    runs: tuple[MeasuredRun, ...]


@dataclass(frozen=True)
class Failure:
    """A training or a test that failed, and why."""

    job: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A table of the paper with what was measured here.

    start: what the trainings start from, in words
    published: whether those are the weights that the authors started from
    schedules: the epochs and learning rates of the trainings, in words
    selected_on, selected_by: the images that choose an epoch, and the correlation
    splits: how many trainings a cell has when all are finished
    """

    table: str
    title: str
    source: str
    start: str
    published: bool
    schedules: tuple[str, ...]
    protocol: str
    selected_on: str
    selected_by: str
    splits: int
    cells: tuple[MeasuredCell, ...]
    failures: tuple[Failure, ...]

    def as_json(self) -> dict[str, Any]:
        """The content of `<table>.json`: the fields by name, None for NaN."""
        document: dict[str, Any] = json_ready(self)
        return document
