"""The result of a training: the content of `result.json`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

from drexperts.evaluation.metrics import Metrics, json_ready, metrics_from_json
from drexperts.runtime.training import choice

Criterion = Literal["srcc", "plcc"]


class Epoch(NamedTuple):
    """What was found after an epoch, on the images that choose one.

    plcc, srcc: None where a correlation is not defined, as of constant scores
    training_loss: the mean over the steps of the epoch
    validation_loss: the same loss of whole images; None without such images
    """

    epoch: int  # from 1
    plcc: float | None
    srcc: float | None
    training_loss: float
    validation_loss: float | None


def best_epoch(epochs: Sequence[Epoch], by: Criterion) -> int | None:
    """The number of the epoch with the highest correlation; None if it is defined in none.

    Small sets give many ties, which the other correlation decides, then the earlier epoch.
    """

    def rank(epoch: Epoch) -> tuple[float, ...]:
        values = (epoch.srcc, epoch.plcc) if by == "srcc" else (epoch.plcc, epoch.srcc)
        # Equal rank correlations may differ in their last digits.
        return tuple(-math.inf if value is None else round(value, 9) for value in values)

    defined = [epoch for epoch in epochs if getattr(epoch, by) is not None]
    return max(defined, key=rank).epoch if defined else None


@dataclass(frozen=True)
class TrainingSoFar:
    """A training after some of its epochs.

    total: epochs when it is done
    selected_on: the images that choose the epoch to keep, see `TrainingResult`
    selected_by: the correlation that chooses it
    """

    epochs: tuple[Epoch, ...]
    total: int
    selected_on: str
    selected_by: Criterion

    def up_to(self, count: int) -> "TrainingSoFar":
        """The training after the first `count` epochs."""
        return replace(self, epochs=self.epochs[:count])

    @property
    def best(self) -> int | None:
        """The number of the best epoch so far, see `best_epoch`."""
        return best_epoch(self.epochs, self.selected_by)

    @property
    def choice(self) -> str:
        """How the epoch is chosen, in words."""
        alone = self.selected_on == "last epoch"
        return choice(self.selected_on, None if alone else self.selected_by)


# Called after every epoch, and at the start of a training that continues or is done.
Watch = Callable[[TrainingSoFar], None]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The result of a training on one split.

    settings: everything that decided it, as in `run.json`
    images: how many images were trained on, validated on and tested on
    selected_on: the images that chose the epoch, "validation" or "test"; "last epoch" if none did
    selected_by: the correlation that chose it; None if the last epoch was taken
    processes: how many processes trained together
    skipped: why each unreadable image was left out on request, one line each
    test: the best model's metrics on the test images
    epochs: what was found after each epoch; `best_epoch` is counted from 1
    versions: of Python and of the packages that matter
    """

    settings: Mapping[str, Any]
    images: tuple[int, ...]
    selected_on: str
    selected_by: str | None
    processes: int
    skipped: tuple[str, ...]
    test: Metrics
    epochs: tuple[Epoch, ...]
    best_epoch: int
    versions: Mapping[str, str]

    @property
    def split_digest(self) -> str:
        """See `Split.digest`."""
        return str(self.settings["split_digest"])

    @property
    def choice(self) -> str:
        """How the epoch was chosen, in words."""
        return choice(self.selected_on, self.selected_by)

    @property
    def so_far(self) -> TrainingSoFar:
        """The training after all its epochs."""
        by: Criterion = "plcc" if self.settings["selected_by"] == "plcc" else "srcc"
        return TrainingSoFar(self.epochs, len(self.epochs), self.selected_on, by)

    def as_json(self) -> dict[str, Any]:
        """The content of `result.json`; undefined numbers are None."""
        own: dict[str, Any] = json_ready(self)
        settings: dict[str, Any] = own.pop("settings")
        return settings | own

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of `as_json`. Raises KeyError, TypeError, ValueError or AttributeError."""
        own = ("processes", "skipped", "test", "epochs", "best_epoch", "versions")
        settings = {name: value for name, value in document.items() if name not in own}
        return cls(
            settings=settings,
            images=tuple(document["images"]),
            selected_on=document["selected_on"],
            selected_by=document["selected_by"],
            processes=document["processes"],
            skipped=tuple(document["skipped"]),
            test=metrics_from_json(document["test"]),
            epochs=tuple(Epoch(**each) for each in document["epochs"]),
            best_epoch=document["best_epoch"],
            versions=dict(document["versions"]),
        )
