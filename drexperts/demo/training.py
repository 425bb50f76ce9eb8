"""The demo's training: a small DR.Experts, trained on this machine in about a minute.

The photographs come with scikit-image. They are distorted with `data.distortions`, and split by
content: training never sees a version of a held-out photograph.

Nobody has rated these images, so the labels are computed (`computed_labels`). No published weights
are used, so the prior is not DA-CLIP (`train_prior`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from drexperts.data.distortions import distort
from drexperts.data.synthetic_set import (
    image_from_tensor,
    reduced,
    similarity,
    tensor_from_image,
    to_uint8,
)
from drexperts.export.proof.photographs import photograph
from drexperts.model.config import DISTORTIONS, ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.model.dr_experts import DRExperts
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.training.from_nothing import (
    LEAST_LEVEL,
    PROMPT_OF,
    Squares,
    fit,
    initialise,
    train_prior,
    untrained_model,
)
from drexperts.training.trainer import CosineSchedule, Step, TrainConfig, start_at

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

# Of the distortions that a prior learns, those whose labels can be compared.
KINDS = ("lens_blur", "jpeg", "white_noise", "impulse_noise", "pixelate")
LEVELS = range(1, 6)

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
    model = start_model(known, seed)
    named = known.prompts >= 0
    squares = Squares(known.pixels[named], known.prompts[named])
    prior = _config(min(epochs, PRIOR_EPOCHS), CosineSchedule(2e-3, warmup_steps=50), seed)
    prior_losses = train_prior(model, squares, prior, partial(progress, "prior"))
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
    labels = {(name, 0): SCALE.high for name in KINDS}
    for name in KINDS:
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
            prompt = DISTORTIONS.index(PROMPT_OF[name]) if level >= LEAST_LEVEL else -1
            prompts += [prompt] * count
    return TrainingSet(torch.stack(pixels), torch.tensor(values), torch.tensor(prompts))


def held_out(photos: dict[str, Image.Image], labels: Labels, seed: int) -> list[HeldOut]:
    """Each photograph once undistorted, and once per distortion and level."""
    generator = Generator().manual_seed(seed + 1)
    images = []
    for content, photo in photos.items():
        small = reduced(photo, _SHORT_SIDE)
        images.append(HeldOut(small, SCALE.high, content, "none", 0))
        for name in KINDS:
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


def start_model(known: TrainingSet, seed: int) -> DRExperts:
    """The small model, initialised so that a few thousand images are enough to train it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = untrained_model(demo_config())
    initialise(model, known.pixels[::10, :, :SIDE, :SIDE])
    start_at(model, float(known.labels.mean()) / SCALE.high)
    return model


def train_model(
    model: DRExperts, known: TrainingSet, config: TrainConfig, progress: Callable[[Step], None]
) -> list[float]:
    """Train all but the prior on the labels, scaled to 0..1; returns the losses.

    The model is left in evaluation mode, with scores in 0..100.
    """

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        return F.smooth_l1_loss(model(images).score, targets, beta=_BETA)

    model.train()
    examples = (known.pixels, known.labels / SCALE.high)
    losses = [step.loss for step in fit(model, loss, examples, SIDE, config, progress)]
    model.eval()
    with torch.no_grad():
        for parameter in model.score.parameters():
            parameter.mul_(SCALE.high)
    return losses
