"""Checkpoints of the authors' released code, as a model of the preset `official`.

Only names and shapes are theirs. Their model carries parameters that nothing reads: a classifier on
the backbone, `L1`, `L2`, eleven zero-linears, and CLIP's image tower twice. They are checked and
dropped.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from drexperts.model.config import DRExpertsConfig, EncoderConfig
from drexperts.model.daclip import controller_config, daclip_layout, prior_from_daclip
from drexperts.model.dr_experts import DRExperts, layout_of, new_model
from drexperts.model.weight_files import (
    State,
    compare_layout,
    depth_of,
    load_strictly,
    shape_of,
    tensors_of,
)

# Our prefix -> theirs. Where ours has an expert dimension of size one, theirs has none.
_NAMES = {
    "encoder.vit.": "backbone.",
    "saliency.features.norm.": "norm1.",
    "saliency.keys.project.": "L_hidden.",
    "saliency.keys.norm.": "norm3_hidden_feature.",
    "saliency.pooling.norm.": "norm_vit.",
    "saliency.distortion.query.": "diff_attention.W_q1.",
    "saliency.distortion.key.": "diff_attention.W_k1.",
    "saliency.semantic.query.": "diff_attention.W_q2.",
    "saliency.semantic.key.": "diff_attention.W_k2.",
    "saliency.value.": "diff_attention.W_v.",
    "saliency.alpha": "diff_attention.alpha",
    "weighting.norm.": "attn_norm.",
    "weighting.ffn.": "group_attn_ffn.",
    "weighting.lambda_": "lamda_init",
    "weighting.generator.": "decoder.AttentionActivate.active_unit.fc.",
    "score.": "score.",
}
_HEAD = "head."  # their DA-CLIP
_LINEARS = "saliency.features.linear."


def model_from_upstream(
    state_dict: Mapping[str, Any],
    config: DRExpertsConfig | None = None,
    source: str = "the checkpoint",
) -> DRExperts:
    """The preset `official` with the weights of the authors' released code.

    The model takes the images that their code takes, ImageNet-normalised [B, 3, H, W], and returns
    the same score.

    Args:
        state_dict: their state dict, or their whole checkpoint, which has it under `model`. The
            model gets its dtype, float32 or float64.
        config: None reads all sizes from the shapes, with attention heads 64 wide as released.
        source: what messages call the checkpoint.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape, or weights are not finite.
            The message names them.
        ConfigError: the shapes are beyond those of any published model.
    """
    state = tensors_of(state_dict, "model")
    config = upstream_config(state, source) if config is None else config
    own = {key: shape for key, shape in layout_of(config).items() if _is_own(key)}
    head = daclip_layout(state, config.controller, source, _HEAD)
    compare_layout(state, head | _dead_layout(config) | _own_layout(own), source)
    model = new_model(config)
    if state["backbone.patch_embed.proj.weight"].dtype == torch.float64:
        model.double()
    renamed = {
        ours: torch.stack([state[name] for name in _theirs(ours)]).reshape(shape)
        for ours, shape in own.items()
    }
    prior = prior_from_daclip(state, source, _HEAD)
    prompts = {"prompts.prompts": prior.pop("prompts")}
    controller = {f"controller.{k}": v for k, v in prior.items()}
    load_strictly(model, renamed | controller | prompts, source)
    return model


def upstream_config(state: State, source: str) -> DRExpertsConfig:
    """The preset `official` in the sizes of one of their state dicts."""
    width, _, patch, _ = shape_of(state, "backbone.patch_embed.proj.weight", 4, source)
    _, patches, _ = shape_of(state, "backbone.pos_embed", 3, source)
    image_size = round(patches**0.5) * patch
    encoder = EncoderConfig(
        architecture="deit3_base_patch16_384" if width == 768 else "deit3_small_patch16_384",
        image_size=image_size,
        patch_size=patch,
        width=width,
        depth=depth_of(state, "backbone.blocks.", source),
        heads=max(1, width // 64),
    )
    controller = controller_config(state, source, _HEAD)
    return DRExpertsConfig.official().with_sizes(encoder, controller)


def _is_own(key: str) -> bool:
    """Whether a key of ours does not come from DA-CLIP."""
    return not key.startswith(("controller.", "prompts."))


def _theirs(ours: str) -> list[str]:
    """Their names for one of our keys: ten for the per-expert linears of Eq. 1, otherwise one."""
    if ours.startswith(_LINEARS):
        return [f"linears.{i}.{ours.removeprefix(_LINEARS)}" for i in range(10)]
    prefix = next(p for p in _NAMES if ours.startswith(p))
    name = _NAMES[prefix] + ours.removeprefix(prefix)
    return [re.sub(r"\.ls(\d)\.gamma$", r".gamma_\1", name)]


def _own_layout(own: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Their keys and shapes for the parameters that have a counterpart here."""
    layout: dict[str, tuple[int, ...]] = {}
    branches = ("saliency.distortion.", "saliency.semantic.")
    experts = (_LINEARS, *branches, "saliency.value.", "saliency.alpha")
    for ours, full in own.items():
        shape = full[1:] if ours.startswith(experts) else full
        shape = (1, *shape) if ours == "weighting.lambda_" else shape
        layout |= {name: shape for name in _theirs(ours)}
    return layout


def _dead_layout(config: DRExpertsConfig) -> dict[str, tuple[int, ...]]:
    """Parameters of theirs outside DA-CLIP that do not reach the score."""
    width, patches = config.encoder.width, config.encoder.grid**2
    layout: dict[str, tuple[int, ...]] = {}
    for name, out, inputs in (
        ("backbone.head", 1, width),
        ("L1", width, config.controller.embedding),
        ("L2", 1, patches),
    ):
        layout |= {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}
    return layout
