"""The demo's training: a small DR.Experts, trained on this machine in about a minute.

The photographs come with scikit-image. They are distorted with `data.distortions`, and split by
content: training never sees a version of a held-out photograph.

Nobody has rated these images, so the labels are computed (`computed_labels`). No published weights
are used, so the prior is not DA-CLIP (`train_prior`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from drexperts.data.distortions import distort
from drexperts.data.synthetic_set import (
    LUMA,
    image_from_tensor,
    reduced,
    similarity,
    tensor_from_image,
    to_uint8,
)
from drexperts.export.proof.photographs import photograph
from drexperts.model.backbones import normalised
from drexperts.model.config import DISTORTIONS, ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.model.dr_experts import DRExperts, new_model
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.training.trainer import CosineSchedule, Loss, Step, TrainConfig, Trainer, start_at

TRAIN = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "cell": "cell.png",
    "coins": "coins.png",
    "deep field": "hubble_deep_field.jpg",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "immunohistochemistry": "ihc.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "page": "page.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
HELD_OUT = {"camera": "camera.png", "cat": "chelsea.png", "coffee": "coffee.png"}

# The demo's distortions, and the prompt of DA-CLIP that is closest to each.
PROMPT_OF = {
    "lens_blur": "motion-blurry",
    "jpeg": "jpeg-compressed",
    "white_noise": "noisy",
    "impulse_noise": "snowy",
    "pixelate": "uncompleted",
}
LEVELS = range(1, 6)
# Below this level the prior cannot tell distortions from none.
_PRIOR_LEVEL = 2

SIDE = 64  # px of the model's images
# Photographs are reduced, so that all are equally sharp before they are distorted. For training the
# side varies, which gives each of the few contents many appearances.
_SHORT_SIDE, _SHORT_SIDES = 160, (144, 200)
_CUT = SIDE + 16  # px of the squares that random crops are taken from

PREPROCESSING = Preprocessing(
    crop=SIDE, short_side_min=SIDE, short_side_max=_SHORT_SIDE, crops_per_side=3
)
SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)

EPOCHS, PRIOR_EPOCHS = 12, 3
_BETA = 0.1  # of the Smooth L1 loss, for labels scaled to 0..1
CROPS = 12  # training images per photograph, distortion and level
_CHROMA = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # ITU-R BT.601

Labels = dict[tuple[str, int], float]  # by distortion and level


class TrainingSet(NamedTuple):
    """Squares from distorted training photographs.

    pixels: uint8 [N, 3, H, W]
    labels: float32 [N], 0..100
    prompts: int64 [N], the index of the distortion's prompt, -1 for none
    """

    pixels: Tensor
    labels: Tensor
    prompts: Tensor


class HeldOut(NamedTuple):
    """A distorted version of a photograph that was not trained on."""

    image: Image.Image
    label: float
    content: str
    distortion: str
    level: int


class TrainedDemo(NamedTuple):
    """The model in evaluation mode, the held-out images, and the loss of each step."""

    model: DRExperts
    held_out: list[HeldOut]
    losses: list[float]
    prior_losses: list[float]


def train_demo(
    progress: Callable[[str, Step], None], seed: int = 0, epochs: int = EPOCHS, crops: int = CROPS
) -> TrainedDemo:
    """Make the images, train the prior, then the model.

    Args:
        progress: called after each step, with "prior" or "model".
        epochs, crops: smaller numbers make the training shorter and worse.
    """
    photos = photographs()
    labels = computed_labels([photos[name] for name in TRAIN])
    known = training_set([photos[name] for name in TRAIN], labels, crops, seed)
    model = untrained_model(known, seed)
    prior = _config(min(epochs, PRIOR_EPOCHS), CosineSchedule(2e-3, warmup_steps=50), seed)
    prior_losses = train_prior(model, known, prior, partial(progress, "prior"))
    config = _config(epochs, CosineSchedule(3e-3, warmup_steps=60), seed)
    losses = train_model(model, known, config, partial(progress, "model"))
    unseen = held_out({name: photos[name] for name in HELD_OUT}, labels, seed)
    return TrainedDemo(model, unseen, losses, prior_losses)


def _config(epochs: int, schedule: CosineSchedule, seed: int) -> TrainConfig:
    return TrainConfig(batch=32, epochs=epochs, schedule=schedule, clip_norm=1.0, seed=seed)


def photographs() -> dict[str, Image.Image]:
    """The photographs that come with scikit-image, as RGB, by content."""
    return {name: photograph(file) for name, file in {**TRAIN, **HELD_OUT}.items()}


def computed_labels(photos: list[Image.Image]) -> Labels:
    """The label, 0..100, of each distortion and level, where level 0 is no distortion.

    It is 100 times the similarity of the distorted and the undistorted photograph, averaged over
    the photographs. So distortions can be compared, and a label depends on nothing else.
    """
    generator = Generator().manual_seed(0)
    images = [tensor_from_image(reduced(photo, _SHORT_SIDE)) for photo in photos]
    labels = {(name, 0): SCALE.high for name in PROMPT_OF}
    for name in PROMPT_OF:
        for level in LEVELS:
            values = [similarity(x, distort(x, name, level, generator)) for x in images]
            labels[name, level] = SCALE.high * sum(values) / len(values)
    return labels


def training_set(photos: list[Image.Image], labels: Labels, crops: int, seed: int) -> TrainingSet:
    """`crops` squares per photograph, distortion and level, and a quarter of that undistorted."""
    generator = Generator().manual_seed(seed)
    small = [reduced(photo, _SHORT_SIDES[1]) for photo in photos]
    pixels, values, prompts = [], [], []
    for photo in small:
        for (name, level), label in labels.items():
            image = distort(_varied(photo, generator), name, level, generator)
            count = crops if level else -(-crops // 4)
            pixels += [_cut(image, generator) for _ in range(count)]
            values += [label] * count
            prompt = DISTORTIONS.index(PROMPT_OF[name]) if level >= _PRIOR_LEVEL else -1
            prompts += [prompt] * count
    return TrainingSet(torch.stack(pixels), torch.tensor(values), torch.tensor(prompts))


def held_out(photos: dict[str, Image.Image], labels: Labels, seed: int) -> list[HeldOut]:
    """Each photograph once undistorted, and once per distortion and level."""
    generator = Generator().manual_seed(seed + 1)
    images = []
    for content, photo in photos.items():
        small = reduced(photo, _SHORT_SIDE)
        images.append(HeldOut(small, SCALE.high, content, "none", 0))
        for name in PROMPT_OF:
            for level in LEVELS:
                image = distort(tensor_from_image(small), name, level, generator)
                label = labels[name, level]
                images.append(HeldOut(image_from_tensor(image), label, content, name, level))
    return images


def _varied(photo: Image.Image, generator: Generator) -> Tensor:
    """The photograph at a random size and gamma; half of the time with permuted channels."""
    size, gamma, exchange = torch.rand(3, generator=generator).tolist()
    low, high = _SHORT_SIDES
    image = tensor_from_image(reduced(photo, round(low + size * (high - low))))
    image = image.pow(2 ** (1.2 * (gamma - 0.5)))
    order = torch.randperm(3, generator=generator)
    return image[order] if exchange < 0.5 else image


def _cut(image: Tensor, generator: Generator) -> Tensor:
    """A random square, uint8 [3, _CUT, _CUT], half of the time transposed."""
    height, width = image.shape[1:]
    y, x, turn = torch.rand(3, generator=generator).tolist()
    top, left = int(y * (height - _CUT + 1)), int(x * (width - _CUT + 1))
    square = to_uint8(image[:, top : top + _CUT, left : left + _CUT])
    return square.mT if turn < 0.5 else square


def demo_config() -> DRExpertsConfig:
    """The preset `paper` in a size that a CPU can train."""
    encoder = EncoderConfig(image_size=SIDE, patch_size=8, width=64, depth=2, heads=2)
    controller = ControllerConfig(
        image_size=SIDE, patch_size=8, width=64, depth=2, heads=2, embedding=64
    )
    return DRExpertsConfig.paper().with_sizes(encoder, controller)


def untrained_model(known: TrainingSet, seed: int) -> DRExperts:
    """The small model, initialised so that a few thousand images are enough to train it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(demo_config())
        prompts = torch.empty(10, model.config.controller.embedding, dtype=torch.float64)
        # Random and orthogonal, because the distortions are unrelated.
        model.prompts.load_state_dict({"prompts": nn.init.orthogonal_(prompts)})
    images = normalised(known.pixels[::10, :, :SIDE, :SIDE])
    with torch.no_grad():
        _reset_layer_scales(model.encoder.vit)
        _set_cosine_filters(model.encoder.vit.get_submodule("patch_embed.proj"), images)
        _set_cosine_filters(model.controller.visual.conv1, model.controller_input(images))
    start_at(model, float(known.labels.mean()) / SCALE.high)
    return model


def _reset_layer_scales(encoder: nn.Module) -> None:
    """Set LayerScale to 1: DeiT-III's 1e-6 is for deep networks and long trainings."""
    for name, parameter in encoder.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)


def _set_cosine_filters(embedding: nn.Module, images: Tensor) -> None:
    """Initialise a patch embedding as a cosine transform, with unit variance per frequency.

    Distortions change the high frequencies, which in photographs are thousands of times weaker
    than the low ones. A training as short as this one does not find them from random filters.
    """
    assert isinstance(embedding, nn.Conv2d)
    filters = frequency_filters(embedding.kernel_size[0], embedding.out_channels)
    response = F.conv2d(images, filters, stride=embedding.stride)
    mean, std = response.mean((0, 2, 3)), response.std((0, 2, 3))
    embedding.weight.copy_(filters / std[:, None, None, None])
    if embedding.bias is not None:
        embedding.bias.copy_(-mean / std)


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


def train_prior(
    model: DRExperts, known: TrainingSet, config: TrainConfig, progress: Callable[[Step], None]
) -> list[float]:
    """Train the controller to recognise distortions, then freeze it again; returns the losses.

    The task is DA-CLIP's contrastive one in miniature: every token of an image, the CLS token above
    all, must be close to the prompt of the image's distortion. But the prompts are random vectors,
    only five of the ten occur, and the images are those on which the model is trained.
    """
    prompts = model.prompts(known.labels)  # [10, embedding]

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        tokens = model.controller(model.controller_input(images)).embedding
        logits = (tokens @ prompts.T / 0.07).mT  # [B, 10, 1 + grid^2]; CLIP's first temperature
        every = targets[:, None].expand(-1, logits.shape[2])
        return F.cross_entropy(logits[:, :, 0], targets) + F.cross_entropy(logits, every)

    named = known.prompts >= 0
    model.controller.requires_grad_(True)
    pixels, targets = known.pixels[named], known.prompts[named]
    losses = _fit(model.controller, loss, pixels, targets, config, progress)
    model.freeze_prior()
    return losses


def train_model(
    model: DRExperts, known: TrainingSet, config: TrainConfig, progress: Callable[[Step], None]
) -> list[float]:
    """Train all but the prior on the labels, scaled to 0..1; returns the losses.

    The model is left in evaluation mode, with scores in 0..100.
    """

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        return F.smooth_l1_loss(model(images).score, targets, beta=_BETA)

    model.train()
    losses = _fit(model, loss, known.pixels, known.labels / SCALE.high, config, progress)
    model.eval()
    with torch.no_grad():
        for parameter in model.score.parameters():
            parameter.mul_(SCALE.high)
    return losses


def _fit(
    module: nn.Module,
    loss: Loss,
    pixels: Tensor,
    targets: Tensor,
    config: TrainConfig,
    progress: Callable[[Step], None],
) -> list[float]:
    """Train a module on random crops of images in memory; returns the loss of each step."""
    generator = Generator().manual_seed(config.seed)
    trainer = Trainer(module, loss, config, len(pixels) // config.batch)
    losses = []
    for _ in range(config.epochs):
        order = torch.randperm(len(pixels), generator=generator)
        for batch in order[: trainer.epoch_steps * config.batch].view(-1, config.batch):
            images = normalised(random_crops(pixels[batch], SIDE, generator))
            step = trainer.step([(images, targets[batch])])
            losses.append(step.loss)
            progress(step)
    return losses


def random_crops(pixels: Tensor, size: int, generator: Generator) -> Tensor:
    """A random square from each image [B, 3, H, W]; half of them are mirrored."""
    count, _, height, width = pixels.shape
    rows = torch.randint(height - size + 1, (count,), generator=generator)
    columns = torch.randint(width - size + 1, (count,), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    places = zip(pixels, rows.tolist(), columns.tolist(), strict=True)
    crops = torch.stack([image[:, y : y + size, x : x + size] for image, y, x in places])
    return torch.where(mirrored[:, None, None, None], crops.flip(-1), crops)
