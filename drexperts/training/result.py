"""The result of a training: the content of `result.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from drexperts.evaluation.metrics import Metrics, json_ready, metrics_from_json


class Epoch(NamedTuple):
    """What was found after an epoch. A correlation is None where it is not defined."""

    epoch: int  # from 1
    plcc: float | None
    srcc: float | None


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The result of a training on one split.

    settings: everything that decided it, as in `run.json`
    images: how many images were trained on, validated on and tested on
    selected_on: what chose the epoch: "validation", "test" or "last epoch"
    processes: how many processes trained together
    skipped: why each unreadable image was left out on request, one line each
    test: the best model's metrics on the test images
    epochs: the correlations after each epoch; `best_epoch` is counted from 1
    versions: of Python and of the packages that matter
    """

    settings: Mapping[str, Any]
    images: tuple[int, ...]
    selected_on: str
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
            processes=document["processes"],
            skipped=tuple(document["skipped"]),
            test=metrics_from_json(document["test"]),
            epochs=tuple(Epoch(**each) for each in document["epochs"]),
            best_epoch=document["best_epoch"],
            versions=dict(document["versions"]),
        )
