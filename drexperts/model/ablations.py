"""The models of the paper's tables 4 and 5: DR.Experts without some of its parts.

A variant takes over the modules and weights of the `DRExperts` from which it is made. The prior
stays frozen, and a parameter is trainable only if it reaches the score.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drexperts.model.config import DISTORTIONS, DRExpertsConfig
from drexperts.model.dr_experts import DRExperts, Prediction
from drexperts.model.experts import ExpertWeighting
from drexperts.runtime.errors import ConfigError

# CLIP's factor on its dot products: the largest that its training allows.
_CLIP_SCALE = 100.0

# The feature groups in the order in which the weight generator reads them.
_GROUPS = ("dis", "sem", "bri")


class EncoderOnly(nn.Module):
    """Table 4, image encoder: the score is a linear map of the CLS token."""

    def __init__(self, model: DRExperts) -> None:
        super().__init__()
        self.config = model.config
        self.encoder, self.score = model.encoder, model.score

    def forward(self, images: Tensor) -> Prediction:
        """ImageNet-normalised RGB images [B, 3, H, W] of the encoder's size."""
        return _without_experts(self.score(self.encoder(images)[:, 0])[:, 0], self.config)


class PriorOnly(nn.Module):
    """Table 4, DA-CLIP: a head on the similarity of an image to each of the ten prompts.

    The similarity is CLIP's logit as in CLIP-IQA, 100 times the dot product of two unit vectors.
    The paper does not describe the head that it trains on them. This one is like Eq. 3's network:
    two linear layers with GELU and the encoder's width.
    """

    def __init__(self, model: DRExperts) -> None:
        super().__init__()
        self.config, width = model.config, model.config.encoder.width
        self.controller_input, self.controller = model.controller_input, model.controller
        self.prompts = model.prompts
        self.hidden, self.score = nn.Linear(len(DISTORTIONS), width), model.score

    def forward(self, images: Tensor) -> Prediction:
        """ImageNet-normalised RGB images [B, 3, H, W]."""
        with torch.no_grad():
            pooled = self.controller(self.controller_input(images)).embedding[:, 0]
            logits = _CLIP_SCALE * pooled @ self.prompts(pooled).T
        score = self.score(F.gelu(self.hidden(logits)))[:, 0]
        return _without_experts(score, self.config)


class UnweightedExperts(nn.Module):
    """Table 4, DSDM: the experts' features without their weighting.

    The paper does not say how this variant computes a score. We take FFN(LN(F_distortion^i)) at the
    CLS row from Eq. 1-3, its mean over the ten experts, and a linear map.
    """

    def __init__(self, model: DRExperts) -> None:
        super().__init__()
        self.config = model.config
        self.encoder = model.encoder
        self.controller_input, self.controller = model.controller_input, model.controller
        self.prompts, self.saliency = model.prompts, model.saliency
        self.norm, self.ffn = model.weighting.norm, model.weighting.ffn
        self.score = model.score

    def forward(self, images: Tensor) -> Prediction:
        """ImageNet-normalised RGB images [B, 3, H, W] of the encoder's size."""
        prior = self.controller(self.controller_input(images))
        features, _ = self.saliency(self.encoder(images), prior, self.prompts(prior.embedding))
        score = self.score(self.ffn(self.norm(features)).mean(1))[:, 0]
        return _without_experts(score, self.config)


def _without_experts(score: Tensor, config: DRExpertsConfig) -> Prediction:
    """A prediction with the scores [B] of a variant without weights and maps, which are zero."""
    grid = config.encoder.grid
    weights = score.new_zeros(len(score), len(DISTORTIONS))
    return Prediction(score, weights, weights[..., None, None].expand(-1, -1, grid, grid))


class SomeGroups(nn.Module):
    """The feature group [..., 3 d] without some of its three parts."""

    def __init__(self, kept: tuple[str, ...]) -> None:
        super().__init__()
        self.kept = tuple(_GROUPS.index(name) for name in kept)

    def forward(self, group: Tensor) -> Tensor:
        parts = group.chunk(len(_GROUPS), dim=-1)
        return torch.cat([parts[i] for i in self.kept], dim=-1)


Variant: TypeAlias = DRExperts | EncoderOnly | PriorOnly | UnweightedExperts


def _weighed_by(*kept: str) -> Callable[[DRExperts], DRExperts]:
    """Table 5: the model whose weight generator reads only these feature groups.

    Its first layer keeps the columns of these groups. Without "dis" and "bri" the weights depend on
    the semantic features only: they are equal for all experts, and no prior reaches the score.
    """

    def make(model: DRExperts) -> DRExperts:
        _narrow(model.weighting, kept)
        refined, bridged = model.weighting.refined and "dis" in kept, "bri" in kept
        if not (refined or bridged):  # nothing reads F_Group
            for unread in (model.weighting.norm, model.weighting.ffn, model.weighting.lambda_):
                unread.requires_grad_(False)
        if kept == ("sem",):
            model.saliency.requires_grad_(False)
        return model

    return make


def _narrow(weighting: ExpertWeighting, kept: tuple[str, ...]) -> None:
    first, *rest = weighting.generator
    assert isinstance(first, nn.Linear)
    some = SomeGroups(kept)
    with torch.no_grad():
        first.weight = nn.Parameter(some(first.weight))
    first.in_features = first.weight.shape[1]
    weighting.generator = nn.Sequential(some, first, *rest)


_MAKERS: dict[str, Callable[[DRExperts], Variant]] = {
    "full": lambda model: model,
    "encoder": EncoderOnly,
    "daclip": PriorOnly,
    "dsdm": UnweightedExperts,
    "only_dis": _weighed_by("dis"),
    "only_sem": _weighed_by("sem"),
    "only_bri": _weighed_by("bri"),
    "no_dis": _weighed_by("sem", "bri"),
    "no_sem": _weighed_by("dis", "bri"),
    "no_bri": _weighed_by("dis", "sem"),
}
VARIANTS = tuple(_MAKERS)


def ablated(model: DRExperts, variant: str) -> Variant:
    """One of `VARIANTS`, made from the modules of a model, which must not be used afterwards.

    The variant has a `config`, takes images as the model does, and returns a `Prediction`, whose
    weights and maps are zero if it weighs no experts. Raises ConfigError for other names.
    """
    if variant not in _MAKERS:
        raise ConfigError(f"variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    return _MAKERS[variant](model)
