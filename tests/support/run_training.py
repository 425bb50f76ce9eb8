"""Small trainings. As a script, `FOLDER_OF_DATA OUT BATCH [STEPS]`, one that can be killed.

Given a number of steps, the script holds after it logged the last of them and before it saves it.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from drexperts.data.layouts import open_dataset
from drexperts.data.recipes import RECIPES
from drexperts.data.splits import make_splits
from drexperts.model.config import ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.model.dr_experts import DRExperts, new_model
from drexperts.runtime.errors import StoppedError
from drexperts.runtime.progress import Silent
from drexperts.training import run as training
from drexperts.training.result import TrainingResult
from drexperts.training.run_folder import RunFolder, State
from drexperts.training.settings import Resources, Run
from drexperts.training.trainer import TrainConfig


def tiny_model(preset: str = "paper") -> DRExperts:
    encoder = EncoderConfig(image_size=64, patch_size=16, width=32, depth=2, heads=2)
    controller = ControllerConfig(48, 16, width=48, depth=2, heads=3, embedding=24)
    return new_model(getattr(DRExpertsConfig, preset)().with_sizes(encoder, controller))


def run_of(root: Path, **changes: Any) -> Run:
    """Three epochs of a few steps, on the first split of a miniature LIVE-C."""
    dataset = open_dataset("livec", root)
    split = make_splits(dataset).splits[0]
    recipe = replace(RECIPES["livec"], train_crops=2, test_crops=2)
    config = TrainConfig(**({"batch": 8, "epochs": 3} | changes))
    return Run(dataset=dataset, split=split, recipe=recipe, config=config)


class Printed(Silent):
    """Progress whose notes are printed."""

    def note(self, message: str) -> None:
        print(message)


def train(
    run: Run, out: Path, make: Callable[[], DRExperts] = tiny_model, **changes: Any
) -> TrainingResult:
    asked: dict[str, Any] = {"device": "cpu", "workers": 0, "save_minutes": 0.0} | changes
    return training.train(run, make, str(out), resources=Resources(**asked), progress=Printed())


def hold_after(steps: int) -> None:
    save_state = RunFolder.save_state

    def held(self: RunFolder, state: State) -> None:
        if state.values["done"] == steps:
            print("held", flush=True)
            sys.stdin.read()
        save_state(self, state)

    RunFolder.save_state = held  # type: ignore[method-assign]


if __name__ == "__main__":
    if len(sys.argv) > 4:
        hold_after(int(sys.argv[4]))
    try:
        train(run_of(Path(sys.argv[1]), batch=int(sys.argv[3])), Path(sys.argv[2]))
    except StoppedError as error:
        print(error)
        sys.exit(error.status)
