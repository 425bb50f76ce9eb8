"""Training: pixels and labels in, a trained model out."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from drexperts.backbone import normalised
from drexperts.model import DRExperts
from drexperts.runtime.errors import ConfigError, UserError

# Where Smooth L1 turns from square to absolute, for labels of about 0..1.
BEND = 0.1

_CLIP_NORM = 1.0


class TrainingError(UserError):
    """Training that cannot go on. The message says what to change."""


class Step(NamedTuple):
    """What the progress callback is told after each step."""

    number: int  # from 1
    steps: int
    loss: float


Progress = Callable[[Step], None]
# A loss from ImageNet-normalised crops [B, 3, size, size] and their targets [B, ...].
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast. The rate rises linearly, then falls along a cosine to zero.

    Weight decay acts on matrices only. `seed` decides batches, crops and mirrorings.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    seed: int

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or self.warmup_steps < 0:
            raise ConfigError(f"training needs an epoch and a batch of at least one: {self}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0 <= `step` < `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


def train(
    model: DRExperts, pixels: Tensor, labels: Tensor, config: TrainConfig, progress: Progress
) -> list[float]:
    """Teach the model the labels with Smooth L1; the prior stays frozen. Ends in evaluation mode.

    Args:
        pixels: uint8 [N, 3, H, W], RGB, at least as large as the model's images.
        labels: float32 [N], of about 0..1; see `scale_scores` for any other range.

    Returns:
        The loss of each step.
    """

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        return F.smooth_l1_loss(model(images).score, targets, beta=BEND)

    model.train()
    losses = fit(model, loss, pixels, labels, model.config.encoder.image_size, config, progress)
    model.eval()
    return losses


def scale_scores(model: DRExperts, factor: float) -> None:
    """Multiply the model's scores by `factor`, inside its last layer."""
    with torch.no_grad():
        for parameter in model.score.parameters():
            parameter.mul_(factor)


def fit(
    module: nn.Module,
    loss: Loss,
    pixels: Tensor,
    targets: Tensor,
    size: int,
    config: TrainConfig,
    progress: Progress,
) -> list[float]:
    """Minimise a loss over the module's trainable parameters, and say how it went, step by step.

    Raises TrainingError where the loss is no longer finite.
    """
    optimizer = _optimizer(module, config)
    batches = list(_batches(len(pixels), config))
    generator = Generator().manual_seed(config.seed)
    losses = []
    for number, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = config.rate(number, len(batches))
        images = normalised(random_crops(pixels[batch], size, generator))
        losses.append(_step(optimizer, loss(images, targets[batch])))
        progress(Step(number + 1, len(batches), losses[-1]))
    return losses


def random_crops(pixels: Tensor, size: int, generator: Generator) -> Tensor:
    """A square from a random place of each image [B, 3, H, W], every second one mirrored."""
    count, _, height, width = pixels.shape
    if min(height, width) < size:
        raise ConfigError(f"{width}x{height} images are smaller than the model's {size}x{size}")
    rows = torch.randint(height - size + 1, (count,), generator=generator)
    columns = torch.randint(width - size + 1, (count,), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    places = zip(pixels, rows.tolist(), columns.tolist(), strict=True)
    crops = torch.stack([image[:, y : y + size, x : x + size] for image, y, x in places])
    return torch.where(mirrored[:, None, None, None], crops.flip(-1), crops)


def _optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _batches(count: int, config: TrainConfig) -> Iterator[Tensor]:
    """Indices of each batch; every epoch is a new order, whose incomplete end is left out."""
    generator = Generator().manual_seed(config.seed)
    size = min(config.batch_size, count)
    for _ in range(config.epochs):
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % size].view(-1, size)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss became {value}: lower the learning rate, and check images and labels"
        )
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
    optimizer.step()
    return value
