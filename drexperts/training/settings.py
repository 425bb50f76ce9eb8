"""What decides the result of a training, and what only decides how fast it comes."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drexperts.data.dataset import Dataset
from drexperts.data.recipes import Protocol, Recipe
from drexperts.data.splits import Split
from drexperts.runtime.errors import ConfigError
from drexperts.training.trainer import TrainConfig


@dataclass(frozen=True)
class Run:
    """Everything that decides a result, but for the rounding of sums over several processes.

    split_digest: of the split, or of the file it is from
    protocol: how images are brought to size, and validated and tested
    select_on_test: choose the epoch by the test images, as the released code does; the result
        says so. Otherwise by the validation images, or without such the last epoch.
    variant: "full", or an ablation of `drexperts.model.ablations`
    fresh: the head is untrained; its scores start at the mean of the training labels
    """

    dataset: Dataset
    split: Split
    split_digest: str
    recipe: Recipe
    config: TrainConfig
    protocol: Protocol = "grid"
    select_on_test: bool = False
    variant: str = "full"
    fresh: bool = False

    @property
    def selected_on(self) -> str:
        """What chose the epoch, in words for the result."""
        if self.select_on_test:
            return "test"
        return "validation" if self.split.validation else "last epoch"

    def settings(self) -> dict[str, Any]:
        """JSON-ready; what two runs that are to have equal results must agree in."""
        names = ("recipe", "config")
        return {name: asdict(getattr(self, name)) for name in names} | {
            "dataset": self.dataset.name,
            "data_digest": self.dataset.digest,
            "scale": asdict(self.dataset.scale),
            "split_digest": self.split_digest,
            "ratings_skipped": list(self.dataset.skipped),
            "images": [len(part) for part in asdict(self.split).values()],
            "protocol": self.protocol,
            "selected_on": self.selected_on,
            "variant": self.variant,
            "fresh": self.fresh,
        }


@dataclass(frozen=True)
class Resources:
    """What decides how fast a run is, and nothing else.

    device: "auto", "cpu", "cuda" or such as "cuda:1"
    workers: processes that decode beside this one; None is one for two cores, at most 8
    cache: a folder for decoded images
    save_minutes: between two states, of which each epoch's end has one besides
    skip_bad: leave unreadable images out; the result then says which
    tensorboard: also write events for TensorBoard
    """

    device: str = "auto"
    workers: int | None = None
    cache: Path | None = None
    save_minutes: float = 10.0
    skip_bad: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if not self.save_minutes >= 0:
            raise ConfigError(f"--save-minutes {self.save_minutes}: give 0 or more")

    def processes(self) -> int:
        """Decoding processes."""
        half = (os.cpu_count() or 1) // 2
        return min(max(half, 1), 8) if self.workers is None else self.workers
