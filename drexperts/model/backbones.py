"""The two image encoders, on timm's and open_clip's own classes, and the prompt encoder."""

import copy
from typing import NamedTuple

import open_clip
import timm
import torch
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from drexperts.model.config import DISTORTIONS, ControllerConfig, DRExpertsConfig, EncoderConfig

# Channel statistics of 0..1 RGB. timm's DeiT-III weights use ImageNet's, CLIP its own.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalised(pixels: Tensor) -> Tensor:
    """uint8 RGB [B, 3, H, W] to what the model takes: float32 with ImageNet's statistics."""
    mean, std = (pixels.new_tensor(v, dtype=torch.float32) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


class ImageEncoder(nn.Module):
    """DeiT-III: images [B, 3, H, W], ImageNet-normalised, to tokens [B, 1 + grid^2, width]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.vit = timm.create_model(
            # Never a name from a file: it could be a folder, or a repository to download. All of
            # DeiT-III differs in the sizes only.
            "deit3_small_patch16_384",
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
        )

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.vit.forward_features(images)
        return tokens


class ControllerInput(nn.Module):
    """ImageNet-normalised images to the controller's size and CLIP's statistics."""

    imagenet_mean: Tensor
    imagenet_std: Tensor
    clip_mean: Tensor
    clip_std: Tensor

    def __init__(self, config: DRExpertsConfig) -> None:
        super().__init__()
        self.size = config.controller.image_size
        self.antialias = config.clip_antialias
        self.undo_imagenet = config.clip_norm == "once"
        for name, values in (
            ("imagenet_mean", IMAGENET_MEAN),
            ("imagenet_std", IMAGENET_STD),
            ("clip_mean", CLIP_MEAN),
            ("clip_std", CLIP_STD),
        ):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.undo_imagenet:
            images = images * self.imagenet_std + self.imagenet_mean
        if images.shape[-1] != self.size:
            images = resize(images, self.size, self.antialias)
        return (images - self.clip_mean) / self.clip_std


def resize(images: Tensor, size: int, antialias: bool) -> Tensor:
    """Bilinear resize of [B, C, H, W] to [B, C, size, size], pixel centres aligned."""
    return F.interpolate(images, (size, size), mode="bilinear", antialias=antialias)


class Prior(NamedTuple):
    """What DA-CLIP's controller computes from images.

    embedding: unit rows, [B, 1, 512] for the image or [B, 1 + grid^2, 512] for each token
    hidden: the last control signal, [B, grid^2, width], if the keys need it
    """

    embedding: Tensor
    hidden: Tensor | None

    def to(self, like: Tensor) -> "Prior":
        """The same in the dtype of `like`."""
        return Prior(self.embedding.to(like), None if self.hidden is None else self.hidden.to(like))


class Controller(nn.Module):
    """DA-CLIP's image controller: a CLIP image tower and the last of its zero-linears.

    In DA-CLIP such a linear after each block steers a second tower. DR.Experts reads only the last
    one's output, and no linear changes the stream that it reads from.
    """

    def __init__(self, config: ControllerConfig, tokens: bool, hidden: bool) -> None:
        super().__init__()
        self.visual = VisionTransformer(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.width,
            layers=config.depth,
            heads=config.heads,
            mlp_ratio=4.0,
            output_dim=config.embedding,
        )
        self.zero = nn.Linear(config.width, config.width) if hidden else None
        self.tokens = tokens

    def forward(self, images: Tensor) -> Prior:
        """The prior of images [B, 3, size, size], normalised as CLIP expects them.

        On a CPU this ignores autocast, which would cast all weights on every call and take longer
        than it saves on so few tokens.
        """
        if images.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self._prior(images)
        return self._prior(images)

    def _prior(self, images: Tensor) -> Prior:
        out = self.visual.forward_intermediates(
            images,
            indices=1,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        cls, grid = out["image_intermediates_prefix"][-1], out["image_intermediates"][-1]
        embedded = torch.cat((cls, grid), dim=1) if self.tokens else cls
        embedding = F.normalize(self.visual.ln_post(embedded) @ self.visual.proj, dim=-1)
        return Prior(embedding, None if self.zero is None else self.zero(grid))


class PromptEncoder(nn.Module):
    """CLIP's text tower on the ten distortion words: [10, embedding] with unit rows.

    The released code runs it on every call. We run it once and keep `ConstantPrompts`.
    """

    words: Tensor

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text
        tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=text.context_length)
        self.register_buffer("words", tokenizer(list(DISTORTIONS)), persistent=False)

    def forward(self, like: Tensor) -> Tensor:
        """The prompts in the dtype of `like`, [10, embedding]."""
        return F.normalize(self.text(self.words), dim=-1).to(like)


class ConstantPrompts(nn.Module):
    """The ten encoded prompts [10, embedding], in float64 so that no dtype adds a rounding."""

    prompts: Tensor

    def __init__(self, prompts: Tensor) -> None:
        super().__init__()
        self.register_buffer("prompts", prompts.detach().double())

    def forward(self, like: Tensor) -> Tensor:
        """The prompts in the dtype of `like`."""
        return self.prompts.to(like)


def constant_prompts(encoder: PromptEncoder) -> ConstantPrompts:
    """Encode the prompts once, in float64, because the text tower's output never changes."""
    with torch.no_grad():
        words = copy.deepcopy(encoder).double()
        return ConstantPrompts(words(torch.zeros(0, dtype=torch.float64)))
