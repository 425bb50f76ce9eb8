"""Training a model on rated images.

Example:
    from drexperts.data import RECIPES, make_splits, open_dataset
    from drexperts.model import DRExpertsConfig, new_model
    from drexperts.training import Run, TrainConfig, train

    dataset = open_dataset("koniq10k", "KonIQ-10k")
    recipe = RECIPES["koniq10k"]
    run = Run(
        dataset=dataset,
        split=make_splits(dataset).splits[0],
        recipe=recipe,
        config=TrainConfig(batch=recipe.batch),
    )
    result = train(run, lambda: new_model(DRExpertsConfig.paper()), "runs/koniq10k")
    print(result.test.srcc, result.best_epoch)
"""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.training.from_nothing import PriorTraining, untrained_model
    from drexperts.training.result import TrainingResult
    from drexperts.training.run import train
    from drexperts.training.settings import Resources, Run
    from drexperts.training.trainer import StepSchedule, TrainConfig

__all__ = [
    "PriorTraining",
    "Resources",
    "Run",
    "StepSchedule",
    "TrainConfig",
    "TrainingResult",
    "train",
    "untrained_model",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "PriorTraining": "from_nothing",
        "Resources": "settings",
        "Run": "settings",
        "StepSchedule": "trainer",
        "TrainConfig": "trainer",
        "TrainingResult": "result",
        "train": "run",
        "untrained_model": "from_nothing",
    },
)
