"""What the tests of `drx train`, `eval`, `reproduce`, `synth` and `explain` share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from support.run_training import tiny_model

SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)
CROPS = Preprocessing(crop=64, short_side_min=64, short_side_max=64, crops_per_side=1)
SHORT = ["--epochs", "1", "--batch", "8", "--crops", "1", "--device", "cpu", "--workers", "0"]


class Ended(NamedTuple):
    """How a verb ended."""

    status: int
    document: dict[str, Any]
    error: str  # stderr, which with --json has everything for people


Call = Callable[..., Ended]


def refused(ended: Ended, *named: object) -> None:
    """It ended with the user's mistake, reported once and without a traceback."""
    assert ended.status == 2
    for text in named:
        assert str(text) in ended.document["error"]
    assert "Traceback" not in ended.error
    assert ended.error.endswith(" ".join(f"drx: {ended.document['error']}".split()))


def saved_checkpoint(
    path: Path, preset: str = "paper", scale: ScoreScale | None = SCALE, *, broken: bool = False
) -> Path:
    """A tiny model with random weights; broken: whose scores are NaN."""
    torch.manual_seed(0)
    model = tiny_model(preset)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if broken:
            model.score.weight.fill_(torch.nan)
    save_checkpoint(Checkpoint(model.eval(), scale, CROPS), path)
    return path
