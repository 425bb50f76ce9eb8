"""What `gpu_model.py` runs, and the model that it runs it on."""

from dataclasses import dataclass
from pathlib import Path

import torch

from drexperts.benchmarks.gpu_contenders import PLAN, Contender
from drexperts.model.checkpoint import load_checkpoint
from drexperts.model.config import ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.model.dr_experts import DRExperts, new_model
from drexperts.runtime.manifest import ScoreScale

BATCHES = (1, 64, 8, 32)  # the most telling first


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        without: words; a contender whose name has one is left out.
    """

    preset: str = "official"
    checkpoint: Path | None = None
    images: Path | None = None
    batches: tuple[int, ...] = BATCHES
    without: tuple[str, ...] = ()
    device: str = "cuda"
    quick: bool = False

    @property
    def trial(self) -> bool:
        return self.quick or self.device != "cuda"

    def plan(self) -> list[Contender]:
        return [c for c in PLAN if not any(word in c.name for word in self.without)]

    def model(self) -> tuple[DRExperts, ScoreScale]:
        """In float32. Without a checkpoint weights are random, which cost the same."""
        if self.checkpoint is not None:
            found = load_checkpoint(self.checkpoint)
            return found.model, found.scale or RANDOM_SCALE
        config = DRExpertsConfig.preset_named(self.preset)
        return random_model(config.with_sizes(*TINY) if self.quick else config), RANDOM_SCALE


RANDOM_SCALE = ScoreScale(-1.0, 1.0, higher_is_better=True)
TINY = (
    EncoderConfig(image_size=64, patch_size=16, width=32, depth=2, heads=2),
    ControllerConfig(48, 16, width=48, depth=2, heads=3, embedding=24),
)


def random_model(config: DRExpertsConfig) -> DRExperts:
    """Every parameter is away from its initial value, as training would leave it."""
    torch.manual_seed(0)
    model = new_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model
