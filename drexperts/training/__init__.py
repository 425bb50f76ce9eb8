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
    from drexperts.training.result import TrainingResult
    from drexperts.training.run import train
    from drexperts.training.settings import Resources, Run
    from drexperts.training.trainer import StepSchedule, TrainConfig

__all__ = ["Resources", "Run", "StepSchedule", "TrainConfig", "TrainingResult", "train"]

__getattr__ = lazy_exports(
    __name__,
    {
        "Resources": "settings",
        "Run": "settings",
        "StepSchedule": "trainer",
        "TrainConfig": "trainer",
        "TrainingResult": "result",
        "train": "run",
    },
)
