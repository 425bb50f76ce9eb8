"""Models that start from nothing: no published weights, but a start that learns from few pictures.

The prior stands in for DA-CLIP: before the training, the controller learns to recognise synthetic
distortions of the pictures that the model is trained on. It never saw the text or the images of
DA-CLIP.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from drexperts.data.dataset import Sample
from drexperts.data.distortions import distort
from drexperts.data.images import ImageStore
from drexperts.data.synthetic_set import LUMA, to_uint8
from drexperts.model.backbones import normalised
from drexperts.model.config import DISTORTIONS, DRExpertsConfig
from drexperts.model.dr_experts import DRExperts, new_model
from drexperts.model.weight_files import (
    load_strictly,
    read_safetensors,
    subset,
    write_safetensors,
)
from drexperts.training.trainer import CosineSchedule, Loss, Step, TrainConfig, Trainer

FORMAT = "drexperts-start-1"

# Synthetic distortions, and the prompt of DA-CLIP that is closest to each. None is close to haze,
# rain, raindrops or shadows.
PROMPT_OF = {
    "gaussian_blur": "motion-blurry",
    "lens_blur": "motion-blurry",
    "motion_blur": "motion-blurry",
    "jpeg": "jpeg-compressed",
    "jpeg2000": "jpeg-compressed",
    "darken": "low-light",
    "white_noise": "noisy",
    "ycbcr_noise": "noisy",
    "multiplicative_noise": "noisy",
    "impulse_noise": "snowy",
    "pixelate": "uncompleted",
    "colour_block": "uncompleted",
}
# Below this level the prior cannot tell distortions from none.
LEAST_LEVEL, MOST_LEVEL = 2, 5

_CHROMA = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # ITU-R BT.601
_SMALL = 0.1  # of what starts small, beside the usual random weights
_PARTS = ("encoder.", "controller.")  # what a start changes of an untrained model

# The optimisation of models without published weights; the log says what else was tried.
EPOCHS, RATE, WARMUP_STEPS = 10, 1e-3, 50

Tell = Callable[[Step], None]


@dataclass(frozen=True)
class PriorTraining:
    """How long the prior of a model that starts from nothing is trained.

    squares: distorted pieces of training pictures, each of the model's image size
    epochs: passes over them
    """

    squares: int = 3000
    epochs: int = 3
    batch: int = 32
    rate: float = 2e-3

    def config(self, seed: int) -> TrainConfig:
        """The optimisation that they describe."""
        schedule = CosineSchedule(self.rate, warmup_steps=50)
        return TrainConfig(self.batch, self.epochs, schedule, clip_norm=1.0, seed=seed)


class Squares(NamedTuple):
    """Squares of distorted pictures.

    pixels: uint8 [N, 3, H, W]
    prompts: int64 [N], the index of the distortion's prompt
    """

    pixels: Tensor
    prompts: Tensor


def untrained_model(config: DRExpertsConfig) -> DRExperts:
    """A model with random weights, and prompts that are orthogonal: distortions are unrelated."""
    model = new_model(config)
    prompts = torch.empty(len(DISTORTIONS), config.controller.embedding, dtype=torch.float64)
    model.prompts.load_state_dict({"prompts": nn.init.orthogonal_(prompts)})
    return model


def keep_start(
    model: DRExperts,
    training: PriorTraining,
    store: ImageStore,
    samples: Sequence[Sample],
    path: Path,
    seed: int,
    tell: Callable[[str, int, int], None],
) -> None:
    """Prepare an untrained model and write what changed to `path`, unless that is done already.

    Args:
        samples: images to distort, of the training part.
        tell: called with a text, how much is done, and of how much.
    """
    facts = [asdict(training), model.config.as_dict(), seed, store.digest]
    made_from = json.dumps([*facts, [sample.name for sample in samples]])
    if path.exists() and read_safetensors(path)[1].get("made_from") == made_from:
        return
    side = model.config.encoder.image_size
    squares = distorted_squares(store, samples, side, training.squares, seed, tell)
    initialise(model, squares.pixels[::10])

    def of_step(step: Step) -> None:
        tell(f"training the prior, loss {step.loss:.4f}", step.number, step.steps)

    train_prior(model, squares, training.config(seed), of_step)
    state = {k: v for k, v in model.state_dict().items() if k.startswith(_PARTS)}
    write_safetensors(state, {"format": FORMAT, "made_from": made_from}, path)


def load_start(model: DRExperts, path: Path) -> None:
    """Load what `keep_start` wrote. Raises WeightsError if it is damaged or does not fit."""
    state, _ = read_safetensors(path)
    for name in _PARTS:
        load_strictly(model.get_submodule(name[:-1]), subset(state, name), str(path))


def distorted_squares(
    store: ImageStore,
    samples: Sequence[Sample],
    side: int,
    count: int,
    seed: int,
    tell: Callable[[str, int, int], None],
) -> Squares:
    """About `count` squares of random places and pictures, under distortions of random levels."""
    generator = Generator().manual_seed(seed)
    order = torch.randperm(len(samples), generator=generator).tolist()[:count]
    each = -(-count // len(order))
    pixels, prompts = [], []
    for done, number in enumerate(order, 1):
        picture = torch.tensor(store.pixels(samples[number])).permute(2, 0, 1)
        for square in random_crops(picture.expand(each, -1, -1, -1), side, generator):
            kind, level = _drawn(generator)
            pixels.append(to_uint8(distort(square.float() / 255, kind, level, generator)))
            prompts.append(DISTORTIONS.index(PROMPT_OF[kind]))
        tell("distorting pictures for the prior", done, len(order))
    return Squares(torch.stack(pixels), torch.tensor(prompts))


def _drawn(generator: Generator) -> tuple[str, int]:
    """A random distortion at a random level."""
    kinds, levels = list(PROMPT_OF), range(LEAST_LEVEL, MOST_LEVEL + 1)
    kind, level = torch.rand(2, generator=generator).tolist()
    return kinds[int(kind * len(kinds))], levels[int(level * len(levels))]


def initialise(model: DRExperts, pixels: Tensor) -> None:
    """Initialise a model so that few images are enough to train it.

    pixels: uint8 [N, 3, size, size], squares like those that it will be trained on
    """
    device = next(model.parameters()).device
    with torch.no_grad():
        images = normalised(pixels.to(device))
        _reset_layer_scales(model.encoder.vit)
        _set_cosine_filters(model.encoder.vit.get_submodule("patch_embed.proj"), images)
        _set_energy_blocks(model.encoder.vit)
        _set_cosine_filters(model.controller.visual.conv1, model.controller_input(images))


def _reset_layer_scales(encoder: nn.Module) -> None:
    """Set LayerScale to 1: DeiT-III's 1e-6 is for deep networks and long trainings."""
    for name, parameter in encoder.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)


def _set_cosine_filters(embedding: nn.Module, images: Tensor) -> None:
    """Initialise a patch embedding as a cosine transform, with unit variance per frequency.

    Distortions change the high frequencies, which in photographs are thousands of times weaker
    than the low ones. A training as short as ours does not find them from random filters.
    """
    assert isinstance(embedding, nn.Conv2d)
    filters = frequency_filters(embedding.kernel_size[0], embedding.out_channels).to(images)
    response = F.conv2d(images, filters, stride=embedding.stride)
    mean, std = response.mean((0, 2, 3)), response.std((0, 2, 3))
    embedding.weight.copy_(filters / std[:, None, None, None])
    if embedding.bias is not None:
        embedding.bias.copy_(-mean / std)


def _set_energy_blocks(vit: nn.Module) -> None:
    """Initialise the first two blocks so that every token holds the mean |x| of each frequency.

    Quality shows in how strong a frequency is, whatever its sign, and the mean of a frequency says
    nothing of that. The first block's MLP is set to GELU(2x) + GELU(-2x), which is nearly 2|x|, the
    second block's attention to an even mean over all tokens. Everything else there starts small.
    """
    weight = vit.get_parameter
    width = weight("cls_token").shape[-1]
    same = torch.eye(width).to(weight("cls_token"))
    for name in ("cls_token", "blocks.0.attn.proj.weight", "blocks.0.mlp.fc2.weight"):
        weight(name).mul_(_SMALL)
    weight("blocks.0.mlp.fc1.weight")[: 2 * width] = torch.cat((2 * same, -2 * same))
    weight("blocks.0.mlp.fc2.weight")[:, : 2 * width] = torch.cat((same, same), dim=1)
    for name in ("blocks.0.mlp.fc1.bias", "blocks.0.mlp.fc2.bias"):
        nn.init.zeros_(weight(name))
    weight("blocks.1.attn.qkv.weight")[: 2 * width].mul_(_SMALL)
    weight("blocks.1.attn.qkv.weight")[2 * width :] = same
    weight("blocks.1.attn.proj.weight").copy_(3 * same)
    weight("blocks.1.mlp.fc2.weight").mul_(_SMALL)


def frequency_filters(side: int, count: int) -> Tensor:
    """Filters [count, 3, side, side] of the 2-D cosine transform, low frequencies first.

    Those of luma come before those of both chroma channels. count: at most 3 side^2
    """
    places = torch.arange(side)
    lines = torch.cos(math.pi * (places + 0.5) * places[:, None] / side)  # [frequency, place]
    waves = torch.einsum("uy,vx->uvyx", lines, lines).flatten(0, 1)
    order = (places[:, None] ** 2 + places**2).flatten().argsort(stable=True)
    luma = torch.tensor(LUMA)[:, None, None] * waves[order, None]
    chroma = torch.tensor(_CHROMA)[:, :, None, None] * waves[order, None, None]
    return torch.cat((luma, chroma.flatten(0, 1)))[:count]


def train_prior(model: DRExperts, squares: Squares, config: TrainConfig, tell: Tell) -> list[float]:
    """Train the controller to recognise distortions, then freeze it again; returns the losses.

    The task is DA-CLIP's contrastive one in miniature: every token of an image, the CLS token above
    all, must be close to the prompt of the image's distortion. But the prompts are random vectors,
    not all of the ten occur, and the images are those on which the model is trained.
    """
    prompts = model.prompts(next(model.parameters()))  # [10, embedding]

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        tokens = model.controller(model.controller_input(images)).embedding
        logits = (tokens @ prompts.T / 0.07).mT  # [B, 10, 1 + grid^2]; CLIP's first temperature
        every = targets[:, None].expand(-1, logits.shape[2])
        return F.cross_entropy(logits[:, :, 0], targets) + F.cross_entropy(logits, every)

    model.controller.requires_grad_(True)
    size = model.config.encoder.image_size
    losses = [step.loss for step in fit(model.controller, loss, squares, size, config, tell)]
    model.freeze_prior()
    return losses


def fit(
    module: nn.Module,
    loss: Loss,
    examples: tuple[Tensor, Tensor],
    size: int,
    config: TrainConfig,
    tell: Tell,
) -> Iterator[Step]:
    """Train a module on random crops of images in memory.

    examples: images, uint8 [N, 3, H, W], and their targets [N]
    size: side of the crops in pixels
    """
    pixels, targets = examples
    device = next(module.parameters()).device
    generator = Generator().manual_seed(config.seed)
    trainer = Trainer(module, loss, config, len(pixels) // config.batch)
    for _ in range(config.epochs):
        order = torch.randperm(len(pixels), generator=generator)
        for batch in order[: trainer.epoch_steps * config.batch].view(-1, config.batch):
            images = normalised(random_crops(pixels[batch], size, generator).to(device))
            step = trainer.step([(images, targets[batch].to(device))])
            tell(step)
            yield step


def random_crops(pixels: Tensor, size: int, generator: Generator) -> Tensor:
    """A random square from each image [B, 3, H, W]; half of them are mirrored."""
    count, _, height, width = pixels.shape
    rows = torch.randint(height - size + 1, (count,), generator=generator)
    columns = torch.randint(width - size + 1, (count,), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    places = zip(pixels, rows.tolist(), columns.tolist(), strict=True)
    crops = torch.stack([image[:, y : y + size, x : x + size] for image, y, x in places])
    return torch.where(mirrored[:, None, None, None], crops.flip(-1), crops)
