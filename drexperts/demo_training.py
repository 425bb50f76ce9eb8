"""The demo's learning part: a small DR.Experts, taught on this machine in about a minute.

The photographs come with scikit-image. They are distorted with `synthetic`, and split by content:
no distorted version of a held-out photograph is ever seen in training.

What this is not: nobody has judged these images, so the labels are a stand-in (`opinions`); and
there are no published weights in it, so the prior is not DA-CLIP (`teach_prior`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from drexperts.backbone import normalised
from drexperts.config import DISTORTIONS, ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.export.photographs import photograph
from drexperts.model import DRExperts, new_model
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.synthetic import distort
from drexperts.train import Step, TrainConfig, fit, scale_scores, train

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

# The demo's distortions, and the prompt of DA-CLIP that comes nearest to each.
PROMPT_OF = {
    "lens_blur": "motion-blurry",
    "jpeg": "jpeg-compressed",
    "white_noise": "noisy",
    "impulse_noise": "snowy",
    "pixelate": "uncompleted",
}
LEVELS = range(1, 6)
# Weaker distortions are too near to none for the prior to tell them apart.
_TELLING_LEVEL = 2

SIDE = 64  # of the model's images
# Photographs are reduced, which makes undistorted ones equally sharp. To a side that varies when
# training: thirteen contents are few, and this gives each of them many appearances.
_SHORT_SIDE, _SHORT_SIDES = 160, (144, 200)
_CUT = SIDE + 16  # what random crops are taken from

PREPROCESSING = Preprocessing(
    crop=SIDE, short_side_min=SIDE, short_side_max=_SHORT_SIDE, crops_per_side=3
)
SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)

EPOCHS, PRIOR_EPOCHS = 12, 3
CROPS = 12  # training images of each photograph, distortion and level
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_CHROMA = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

Opinions = dict[tuple[str, int], float]


class TrainingSet(NamedTuple):
    """Distorted pieces of the training photographs."""

    pixels: Tensor  # uint8 [N, 3, H, W]
    labels: Tensor  # float32 [N], 0..100
    prompts: Tensor  # int64 [N], the distortion in the order of config.DISTORTIONS, -1 for none


class HeldOut(NamedTuple):
    """A distorted version of a photograph whose content was not trained on."""

    image: Image.Image
    label: float
    content: str
    distortion: str
    level: int


class TrainedDemo(NamedTuple):
    """The model, in evaluation mode, and everything needed to judge it."""

    model: DRExperts
    scale: ScoreScale
    preprocessing: Preprocessing
    held_out: list[HeldOut]
    losses: list[float]
    prior_losses: list[float]


def train_demo(
    progress: Callable[[str, Step], None], seed: int = 0, epochs: int = EPOCHS, crops: int = CROPS
) -> TrainedDemo:
    """Make the images, teach the prior, then the model.

    Args:
        progress: called after each step with "prior" or "model".
        epochs, crops: fewer of them make a shorter and worse training.
    """
    photos = photographs()
    labels = opinions([photos[name] for name in TRAIN])
    known = training_set([photos[name] for name in TRAIN], labels, crops, seed)
    model = untrained_model(known, seed)
    prior = TrainConfig(min(epochs, PRIOR_EPOCHS), 32, 2e-3, 0.05, warmup_steps=50, seed=seed)
    prior_losses = teach_prior(model, known, prior, partial(progress, "prior"))
    config = TrainConfig(epochs, 32, 3e-3, 0.05, warmup_steps=60, seed=seed)
    targets = known.labels / SCALE.high
    losses = train(model, known.pixels, targets, config, partial(progress, "model"))
    scale_scores(model, SCALE.high)
    unseen = held_out({name: photos[name] for name in HELD_OUT}, labels, seed)
    return TrainedDemo(model, SCALE, PREPROCESSING, unseen, losses, prior_losses)


def photographs() -> dict[str, Image.Image]:
    """scikit-image's own photographs as RGB, by content."""
    return {name: photograph(file) for name, file in {**TRAIN, **HELD_OUT}.items()}


def opinions(photos: list[Image.Image]) -> Opinions:
    """The label, 0..100, of each distortion and level: 100 times their mean similarity.

    Similarity is between the distorted and the undistorted photograph, averaged over the
    photographs. So the types are comparable, and a label is a function of type and level alone.
    Level 0, no distortion, is 100.
    """
    generator = Generator().manual_seed(0)
    images = [tensor_from_image(reduced(photo, _SHORT_SIDE)) for photo in photos]
    labels = {(name, 0): SCALE.high for name in PROMPT_OF}
    for name in PROMPT_OF:
        for level in LEVELS:
            values = [similarity(x, distort(x, name, level, generator)) for x in images]
            labels[name, level] = SCALE.high * sum(values) / len(values)
    return labels


def similarity(first: Tensor, second: Tensor) -> float:
    """Mean SSIM of two images [3, H, W] in [0, 1] over 7x7 windows of luma, at two scales.

    The formula is that of Wang et al. (2004), with uniform windows; the second scale is half the
    first.
    """
    luma = torch.tensor(_LUMA)
    x, y = (torch.einsum("c,chw->hw", luma, image)[None, None] for image in (first, second))
    half = [F.avg_pool2d(image, 2) for image in (x, y)]
    return (_ssim(x, y) + _ssim(*half)) / 2


def _ssim(x: Tensor, y: Tensor) -> float:
    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 7, 1)

    x_mean, y_mean = mean(x), mean(y)
    variances = mean(x * x) - x_mean**2 + mean(y * y) - y_mean**2
    covariance = mean(x * y) - x_mean * y_mean
    light = (2 * x_mean * y_mean + 1e-4) / (x_mean**2 + y_mean**2 + 1e-4)
    structure = (2 * covariance + 9e-4) / (variances + 9e-4)
    return float((light * structure).mean())


def training_set(photos: list[Image.Image], labels: Opinions, crops: int, seed: int) -> TrainingSet:
    """`crops` pieces of each photograph, distortion and level, a few of them without distortion."""
    generator = Generator().manual_seed(seed)
    small = [reduced(photo, _SHORT_SIDES[1]) for photo in photos]
    pixels, values, prompts = [], [], []
    for photo in small:
        for (name, level), label in labels.items():
            image = distort(_varied(photo, generator), name, level, generator)
            count = crops if level else -(-crops // 4)
            pixels += [_cut(image, generator) for _ in range(count)]
            values += [label] * count
            prompt = DISTORTIONS.index(PROMPT_OF[name]) if level >= _TELLING_LEVEL else -1
            prompts += [prompt] * count
    return TrainingSet(torch.stack(pixels), torch.tensor(values), torch.tensor(prompts))


def held_out(photos: dict[str, Image.Image], labels: Opinions, seed: int) -> list[HeldOut]:
    """Each photograph once without distortion, and at every level of every type."""
    generator = Generator().manual_seed(seed + 1)
    images = []
    for content, photo in photos.items():
        small = reduced(photo, _SHORT_SIDE)
        images.append(HeldOut(small, SCALE.high, content, "none", 0))
        for name in PROMPT_OF:
            for level in LEVELS:
                image = distort(tensor_from_image(small), name, level, generator)
                label = labels[name, level]
                images.append(HeldOut(_image_from_tensor(image), label, content, name, level))
    return images


def reduced(image: Image.Image, short_side: int) -> Image.Image:
    """The image with its shorter side at this many pixels."""
    factor = short_side / min(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def tensor_from_image(image: Image.Image) -> Tensor:
    """RGB to float32 [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().contiguous() / 255


def _image_from_tensor(image: Tensor) -> Image.Image:
    return Image.fromarray(_to_uint8(image).permute(1, 2, 0).contiguous().numpy())


def _to_uint8(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)


def _varied(photo: Image.Image, generator: Generator) -> Tensor:
    """The photograph at a random size and gamma; half of the time with its channels exchanged."""
    size, gamma, exchange = torch.rand(3, generator=generator).tolist()
    low, high = _SHORT_SIDES
    image = tensor_from_image(reduced(photo, round(low + size * (high - low))))
    image = image.pow(2 ** (1.2 * (gamma - 0.5)))
    order = torch.randperm(3, generator=generator)
    return image[order] if exchange < 0.5 else image


def _cut(image: Tensor, generator: Generator) -> Tensor:
    """A random square of _CUT pixels, uint8 [3, _CUT, _CUT], half of the time turned by 90."""
    height, width = image.shape[1:]
    y, x, turn = torch.rand(3, generator=generator).tolist()
    top, left = int(y * (height - _CUT + 1)), int(x * (width - _CUT + 1))
    square = _to_uint8(image[:, top : top + _CUT, left : left + _CUT])
    return square.mT if turn < 0.5 else square


def demo_config() -> DRExpertsConfig:
    """The preset `paper` on sizes that a CPU can train."""
    encoder = EncoderConfig(image_size=SIDE, patch_size=8, width=64, depth=2, heads=2)
    controller = ControllerConfig(
        image_size=SIDE, patch_size=8, width=64, depth=2, heads=2, embedding=64
    )
    return DRExpertsConfig.paper().with_sizes(encoder, controller)


def untrained_model(known: TrainingSet, seed: int) -> DRExperts:
    """The small model, started so that a few thousand images teach it something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(demo_config())
        prompts = torch.empty(10, model.config.controller.embedding, dtype=torch.float64)
        # Random and orthogonal: unrelated distortions, none nearer to another.
        model.prompts.load_state_dict({"prompts": nn.init.orthogonal_(prompts)})
    images = normalised(known.pixels[::10, :, :SIDE, :SIDE])
    with torch.no_grad():
        _open_layers(model.encoder.vit)
        _see_frequencies(model.encoder.vit.get_submodule("patch_embed.proj"), images)
        _see_frequencies(model.controller.visual.conv1, model.controller_input(images))
        _start_at(model, float(known.labels.mean()) / SCALE.high)
    return model


def _open_layers(encoder: nn.Module) -> None:
    """LayerScale at 1: DeiT-III's 1e-6 is for deep nets and long trainings."""
    for name, parameter in encoder.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)


def _see_frequencies(embedding: nn.Module, images: Tensor) -> None:
    """Start a patch embedding as a cosine transform, each frequency at unit variance.

    Distortions live in the high frequencies, which in photographs are thousands of times weaker
    than the low ones: from random filters they are not found in the demo's time.
    """
    assert isinstance(embedding, nn.Conv2d)
    filters = frequency_filters(embedding.kernel_size[0], embedding.out_channels)
    response = F.conv2d(images, filters, stride=embedding.stride)
    mean, std = response.mean((0, 2, 3)), response.std((0, 2, 3))
    embedding.weight.copy_(filters / std[:, None, None, None])
    if embedding.bias is not None:
        embedding.bias.copy_(-mean / std)


def frequency_filters(side: int, count: int) -> Tensor:
    """[count, 3, side, side]: the 2-D cosine transform of luma, low frequencies first, then chroma.

    `count` is at most 3 side^2; what luma leaves is shared by the two chroma channels.
    """
    places = torch.arange(side)
    lines = torch.cos(math.pi * (places + 0.5) * places[:, None] / side)  # [frequency, place]
    waves = torch.einsum("uy,vx->uvyx", lines, lines).flatten(0, 1)
    order = (places[:, None] ** 2 + places**2).flatten().argsort(stable=True)
    luma = torch.tensor(_LUMA)[:, None, None] * waves[order, None]
    chroma = torch.tensor(_CHROMA)[:, :, None, None] * waves[order, None, None]
    return torch.cat((luma, chroma.flatten(0, 1)))[:count]


def _start_at(model: DRExperts, score: float) -> None:
    """Weights that add up to about one, and about this score for every image."""
    last = model.weighting.generator[-1]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias, 1 / len(DISTORTIONS))
    last.weight.mul_(0.1)
    nn.init.constant_(model.score.bias, score)
    model.score.weight.mul_(0.1)


def teach_prior(
    model: DRExperts, known: TrainingSet, config: TrainConfig, progress: Callable[[Step], None]
) -> list[float]:
    """Teach the controller to name distortions, then freeze it again; returns the losses.

    DA-CLIP's contrastive task in miniature: every token of an image, the CLS token in particular,
    is to be near the prompt of the image's distortion. It is not DA-CLIP: five of the ten prompts
    ever occur, they are random vectors, and the images are those the model is trained on.
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
    losses = fit(model.controller, loss, pixels, targets, SIDE, config, progress)
    model.freeze_prior()
    return losses
