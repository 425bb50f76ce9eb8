"""Models with random weights, which cost the same time and memory as trained ones."""

import torch

from drexperts.model.checkpoint import Checkpoint, default_preprocessing
from drexperts.model.config import DRExpertsConfig
from drexperts.model.dr_experts import DRExperts, new_model
from drexperts.runtime.manifest import ScoreScale

SCALE = ScoreScale(-1.0, 1.0, higher_is_better=True)


def random_model(config: DRExpertsConfig) -> DRExperts:
    """A model whose parameters all differ from their initial values, as after training."""
    torch.manual_seed(0)
    model = new_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def random_checkpoint(preset: str) -> Checkpoint:
    """A full-size model of a preset, which is "paper" or "official"."""
    model = random_model(getattr(DRExpertsConfig, preset)())
    return Checkpoint(model, SCALE, default_preprocessing(model.config))
