"""What decides the result of a training, and what only decides how fast it comes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drexperts.data.dataset import Dataset
from drexperts.data.recipes import Protocol, Recipe
from drexperts.data.splits import Split
from drexperts.runtime.cpus import available_cpus
from drexperts.runtime.errors import ConfigError
from drexperts.training.from_nothing import PriorTraining
from drexperts.training.result import Criterion, Epoch, TrainingSoFar
from drexperts.training.trainer import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides a result, up to the rounding of sums over several processes.

    protocol: how images are resized and cropped for validation and test
    split_seed: the seed of the split's order; `splits.json` names it, nothing depends on it
    select_by: the correlation that chooses the epoch
    select_on_test: choose the epoch by the test images, as the released code does, which the result
        states. Otherwise the validation images choose, or the last epoch is taken without them.
    variant: "full", or an ablation of `drexperts.model.ablations`
    fresh: the head is untrained, so its scores start at the mean of the training labels
    prior: how the prior of a model that starts from nothing is trained before; None: it has one
    """

    dataset: Dataset
    split: Split
    recipe: Recipe
    config: TrainConfig
    protocol: Protocol = "grid"
    split_seed: int = 0
    select_by: Criterion = "srcc"
    select_on_test: bool = False
    variant: str = "full"
    fresh: bool = False
    prior: PriorTraining | None = None

    @property
    def selected_on(self) -> str:
        """What chooses the epoch, as the result states it."""
        if self.select_on_test:
            return "test"
        return "validation" if self.split.validation else "last epoch"

    def so_far(self, epochs: Sequence[Epoch]) -> TrainingSoFar:
        """The training after these epochs."""
        return TrainingSoFar(tuple(epochs), self.config.epochs, self.selected_on, self.select_by)

    def settings(self) -> dict[str, Any]:
        """The content of `run.json`: two runs with equal settings have equal results."""
        # Only where there is one: runs of older versions continue.
        prior = {} if self.prior is None else {"prior": asdict(self.prior)}
        return prior | {
            "recipe": asdict(self.recipe),
            "config": asdict(self.config),
            "dataset": self.dataset.name,
            "data_digest": self.dataset.digest,
            "scale": asdict(self.dataset.scale),
            "split_digest": self.split.digest,
            "ratings_skipped": list(self.dataset.skipped),
            "images": [len(part) for part in asdict(self.split).values()],
            "protocol": self.protocol,
            "selected_on": self.selected_on,
            "selected_by": None if self.selected_on == "last epoch" else self.select_by,
            "variant": self.variant,
            "fresh": self.fresh,
        }


@dataclass(frozen=True)
class Resources:
    """What decides how fast a run is, and nothing else.

    device: "auto", "cpu", "cuda" or one GPU such as "cuda:1"
    workers: decoding processes beside this one; None takes one per two CPUs that this
        process may use, at most 8
    cache: a folder for decoded images; None decodes each image whenever it is used
    save_minutes: minutes between two saved states; each epoch also ends with one
    skip_bad: leave unreadable images out, which the result then names
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
            raise ConfigError(f"--save-minutes must be 0 or greater, got {self.save_minutes}")

    def processes(self) -> int:
        """The number of decoding processes."""
        half = available_cpus() // 2
        return min(max(half, 1), 8) if self.workers is None else self.workers
