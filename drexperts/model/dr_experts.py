"""DR.Experts: from images to scores, ten expert weights and their maps."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from drexperts.model.backbones import (
    ConstantPrompts,
    Controller,
    ControllerInput,
    ImageEncoder,
    Prior,
    PromptEncoder,
)
from drexperts.model.config import DRExpertsConfig
from drexperts.model.experts import DistortionSaliency, ExpertWeighting
from drexperts.model.weight_files import shapes_of


class Prediction(NamedTuple):
    """The outputs of the model and of every engine made from it.

    score: [B]
    weights: unbounded, in the order of config.DISTORTIONS, [B, 10]
    maps: the differential attention of each distortion, [B, 10, grid, grid]
    """

    score: Tensor
    weights: Tensor
    maps: Tensor


class DRExperts(nn.Module):
    """The quality model of Fu et al., AAAI 2026 (Eq. 1-5).

        model = new_model(DRExpertsConfig.paper())
        score, weights, maps = model(torch.randn(2, 3, 384, 384))

    `prompts` returns [10, embedding]: `ConstantPrompts`, or a `PromptEncoder` to encode the text on
    every call as the released code does.
    """

    def __init__(self, config: DRExpertsConfig, prompts: ConstantPrompts | PromptEncoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageEncoder(config.encoder)
        self.controller_input = ControllerInput(config)
        hidden = config.distortion_keys == "hidden"
        tokens = config.distortion_source == "tokens" or config.distortion_keys == "embedding"
        self.controller = Controller(config.controller, tokens, hidden)
        self.prompts = prompts
        self.saliency = DistortionSaliency(config)
        self.weighting = ExpertWeighting(config)
        self.score = nn.Linear(config.encoder.width, 1)
        self.freeze_prior()

    def freeze_prior(self) -> None:
        """Exclude DA-CLIP from training. It has no running statistics either."""
        self.controller.requires_grad_(False)
        self.prompts.requires_grad_(False)

    def forward(self, images: Tensor) -> Prediction:
        """The prediction for ImageNet-normalised RGB images [B, 3, H, W] of the encoder's size.

        Computes only the CLS row, which is exact: see `DistortionSaliency`. Autocast applies to the
        encoders only. The rest costs little and subtracts two softmaxes, so it keeps its dtype.
        """
        tokens = self.encoder(images)
        prior = self.controller(self.controller_input(images))
        if not torch.is_autocast_enabled(images.device.type):
            return self._predict(tokens, prior)
        with torch.autocast(images.device.type, enabled=False):
            return self._predict(tokens.to(images), prior.to(images))

    def _predict(self, tokens: Tensor, prior: Prior) -> Prediction:
        features, maps = self.saliency(tokens, prior, self.prompts(prior.embedding))
        cls = tokens[:, 0].to(features)
        weights = self.weighting(features, cls[:, None])
        return Prediction(self._score(weights, cls), weights, self._on_grid(maps))

    def forward_dense(self, images: Tensor, backend: str | None = None) -> Prediction:
        """The same prediction with every row of every equation computed, as released.

        `backend` names an implementation of `differential_attention`: by default the fused kernel
        on a CUDA device, for encoders whose width is a multiple of 64, and plain PyTorch elsewhere.
        """
        tokens = self.encoder(images)
        prior = self.controller(self.controller_input(images))
        prompts = self.prompts(prior.embedding)
        features, maps = self.saliency.forward_dense(tokens, prior, prompts, backend=backend)
        weights = self.weighting(features, tokens[:, None])  # [B, E, N]
        if self.config.score_bias == "outside":
            score = self.score((tokens[:, None] * weights[..., None]).sum(1))[:, 0, 0]
        else:
            score = (self.score(tokens)[:, None] * weights[..., None]).sum(1)[:, 0, 0]
        return Prediction(score, weights[..., 0], self._on_grid(maps))

    def _score(self, weights: Tensor, cls: Tensor) -> Tensor:
        """Eq. 5 from weights [B, E] and the CLS token [B, d]: [B]."""
        if self.config.score_bias == "outside":
            score: Tensor = self.score(weights.sum(1, keepdim=True) * cls)
        else:
            score = weights.sum(1, keepdim=True) * self.score(cls)
        return score[:, 0]

    def _on_grid(self, maps: Tensor) -> Tensor:
        """Maps [B, E, 1 + grid^2] without the CLS column, [B, E, grid, grid]."""
        return maps[:, :, 1:].unflatten(-1, (self.config.encoder.grid,) * 2)


def new_model(config: DRExpertsConfig) -> DRExperts:
    """A model with random weights and random unit prompts, in evaluation mode."""
    prompts = nn.functional.normalize(torch.randn(10, config.controller.embedding), dim=-1)
    return DRExperts(config, ConstantPrompts(prompts)).eval()


def layout_of(config: DRExpertsConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of such a model's weights, for which no memory is taken."""
    with torch.device("meta"):
        return shapes_of(new_model(config))
