"""DR.Experts: an image to its score, its ten expert weights and their maps. Composition only."""

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


class Prediction(NamedTuple):
    """What the model, and every engine made from it, says of each image."""

    score: Tensor  # [B]
    weights: Tensor  # [B, 10], unbounded, in the order of config.DISTORTIONS
    maps: Tensor  # [B, 10, grid, grid], each distortion's differential attention


class DRExperts(nn.Module):
    """The quality model of Fu et al., AAAI 2026 (Eq. 1-5).

    `prompts` is any module that returns [10, embedding]: `ConstantPrompts` in all use, a
    `PromptEncoder` where the released code's repeated text encoding is to be reproduced.
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
        """DA-CLIP is never trained; it has no running statistics either."""
        self.controller.requires_grad_(False)
        self.prompts.requires_grad_(False)

    def forward(self, images: Tensor) -> Prediction:
        """ImageNet-normalised RGB images [B, 3, H, W] of the encoder's size.

        Computes the CLS row only, exactly; see `DistortionSaliency`. Autocast is for the encoders:
        what follows them costs little and is a difference of two softmaxes, so it keeps its type.
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

    def forward_dense(self, images: Tensor) -> Prediction:
        """The same prediction with every row of every equation computed, as released."""
        tokens = self.encoder(images)
        prior = self.controller(self.controller_input(images))
        features, maps = self.saliency.forward_dense(tokens, prior, self.prompts(prior.embedding))
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
