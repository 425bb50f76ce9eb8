"""The released model as plain functions on its own state dict, with every row computed.

A reference for `drexperts.model.released_checkpoint` that uses no code of ours. It lists the layout
of the state dict independently of the converter.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
Shape = tuple[int, ...]


def block_shapes(prefix: str, width: int, names: tuple[str, ...]) -> dict[str, Shape]:
    """Shapes of a transformer block under its family's names (norm, norm, qkv, proj, fc1, fc2)."""
    norm1, norm2, qkv, proj, fc1, fc2 = (prefix + n for n in names)
    shapes: dict[str, Shape] = {}
    for name in (norm1, norm2):
        shapes |= {name + ".weight": (width,), name + ".bias": (width,)}
    for name, out, inputs in (
        (qkv, 3 * width, width),
        (proj, width, width),
        (fc1, 4 * width, width),
        (fc2, width, 4 * width),
    ):
        mark = "_" if name.endswith("in_proj") else "."
        shapes |= {f"{name}{mark}weight": (out, inputs), f"{name}{mark}bias": (out,)}
    return shapes


CLIP_NAMES = ("ln_1", "ln_2", "attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
VIT_NAMES = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def linear_shapes(name: str, out: int, inputs: int) -> dict[str, Shape]:
    return {name + ".weight": (out, inputs), name + ".bias": (out,)}


def norm_shapes(name: str, width: int) -> dict[str, Shape]:
    return {name + ".weight": (width,), name + ".bias": (width,)}


def visual_shapes(
    width: int, depth: int, grid: int, embedding: int, blocks: str
) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {
        "class_embedding": (width,),
        "positional_embedding": (1 + grid**2, width),
        "proj": (width, embedding),
        "conv1.weight": (width, 3, 32, 32),
        **norm_shapes("ln_pre", width),
        **norm_shapes("ln_post", width),
    }
    for i in range(depth):
        shapes |= block_shapes(f"{blocks}.resblocks.{i}.", width, CLIP_NAMES)
    return shapes


def daclip_shapes(
    controller: Shape = (768, 12, 7), embedding: int = 512, text: Shape = (512, 12)
) -> dict[str, Shape]:
    """DA-CLIP's state dict: 631 keys at full size. Sizes are (width, depth[, grid])."""
    width, depth, grid = controller
    text_width, text_depth = text
    shapes: dict[str, Shape] = {
        "logit_scale": (),
        "clip.logit_scale": (),
        "clip.positional_embedding": (77, text_width),
        "clip.text_projection": (text_width, embedding),
        "clip.token_embedding.weight": (49408, text_width),
        **norm_shapes("clip.ln_final", text_width),
    }
    for i in range(text_depth):
        shapes |= block_shapes(f"clip.transformer.resblocks.{i}.", text_width, CLIP_NAMES)
    tower = visual_shapes(width, depth, grid, embedding, "transformer")
    for prefix in ("clip.visual.", "visual."):
        shapes |= {prefix + k: v for k, v in tower.items()}
    control = visual_shapes(width, depth, grid, embedding, "transformer.transformer")
    shapes |= {"visual_control." + k: v for k, v in control.items()}
    for i in range(depth):
        zero = f"visual_control.transformer.zero_modules.{i}"
        shapes |= linear_shapes(zero, width, width)
    return shapes


def released_shapes(
    width: int = 384, depth: int = 12, grid: int = 24, **daclip: Any
) -> dict[str, Shape]:
    """The released model's state dict: 870 keys at full size."""
    head = daclip_shapes(**daclip)
    embedding, hidden = head["clip.text_projection"][1], head["visual_control.proj"][0]
    shapes: dict[str, Shape] = {
        "lamda_init": (1, width),
        "diff_attention.alpha": (),
        "backbone.cls_token": (1, 1, width),
        "backbone.pos_embed": (1, grid**2, width),
        "backbone.patch_embed.proj.weight": (width, 3, 16, 16),
        "backbone.patch_embed.proj.bias": (width,),
        **norm_shapes("backbone.norm", width),
        **linear_shapes("backbone.head", 1, width),
        **norm_shapes("norm1", embedding),
        **linear_shapes("L_hidden", width, hidden),
        **linear_shapes("diff_attention.W_v", width, 2 * width),
        **linear_shapes("group_attn_ffn.0", width, width),
        **linear_shapes("group_attn_ffn.2", width, width),
        **linear_shapes("score", 1, width),
        **linear_shapes("L1", width, embedding),
        **linear_shapes("L2", 1, grid**2),
    }
    for i in range(depth):
        prefix = f"backbone.blocks.{i}."
        shapes |= block_shapes(prefix, width, VIT_NAMES)
        shapes |= {prefix + "gamma_1": (width,), prefix + "gamma_2": (width,)}
    for name in ("norm_vit", "norm3_hidden_feature", "attn_norm"):
        shapes |= norm_shapes(name, width)
    for name in ("q1", "k1", "q2", "k2"):
        shapes |= linear_shapes(f"diff_attention.W_{name}", width, width)
    for i in range(10):
        shapes |= linear_shapes(f"linears.{i}", width, embedding)
    unit = "decoder.AttentionActivate.active_unit.fc."
    for i, (inputs, out) in enumerate(((3 * width, 384), (384, 32), (32, 16), (16, 1))):
        shapes |= linear_shapes(f"{unit}{2 * i}", out, inputs)
        shapes |= {f"{unit}{2 * i + 1}.weight": (1,)} if i < 3 else {}
    return shapes | {"head." + k: v for k, v in head.items()}


def random_state(shapes: dict[str, Shape], seed: int = 0, spread: float = 0.3) -> State:
    """Random weights: matrices of unit gain, everything else of standard deviation `spread`."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in sorted(shapes.items()):
        values = torch.randn(shape, generator=generator)
        fan_in = max(1, values[0].numel()) if len(shape) > 1 else 1
        state[key] = values * (fan_in**-0.5 if len(shape) > 1 else spread)
        if ("norm" in key and key.endswith("weight")) or (".ln_" in key and key.endswith("weight")):
            state[key] = 1 + state[key]
    return state


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[name + ".weight"], state[name + ".bias"])


def _norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"], eps)


def _attention(qkv: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    batch, tokens, _ = qkv.shape
    q, k, v = qkv.view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    logits = q @ k.mT / sqrt(q.shape[-1])
    logits = logits if mask is None else logits + mask
    return (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, -1)


def backbone(state: State, images: Tensor, depth: int, heads: int) -> Tensor:
    s = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    x = F.conv2d(images, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=16)
    x = x.flatten(2).mT + s["pos_embed"]
    x = torch.cat((s["cls_token"].expand(len(x), -1, -1), x), 1)
    for i in range(depth):
        b = f"blocks.{i}."
        a = _attention(_linear(s, b + "attn.qkv", _norm(s, b + "norm1", x, 1e-6)), heads)
        x = x + s[b + "gamma_1"] * _linear(s, b + "attn.proj", a)
        m = F.gelu(_linear(s, b + "mlp.fc1", _norm(s, b + "norm2", x, 1e-6)))
        x = x + s[b + "gamma_2"] * _linear(s, b + "mlp.fc2", m)
    return _norm(s, "norm", x, 1e-6)


def _clip_blocks(
    s: State, prefix: str, x: Tensor, depth: int, heads: int, mask: Tensor | None = None
) -> Tensor:
    for i in range(depth):
        b = f"{prefix}.resblocks.{i}."
        packed = F.linear(
            _norm(s, b + "ln_1", x), s[b + "attn.in_proj_weight"], s[b + "attn.in_proj_bias"]
        )
        x = x + _linear(s, b + "attn.out_proj", _attention(packed, heads, mask))
        x = x + _linear(
            s, b + "mlp.c_proj", F.gelu(_linear(s, b + "mlp.c_fc", _norm(s, b + "ln_2", x)))
        )
    return x


def controller(state: State, images: Tensor, depth: int, heads: int) -> tuple[Tensor, Tensor]:
    """The pooled embedding, not normalised, and the last hidden grid."""
    prefix = "head.visual_control."
    s = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    x = F.conv2d(images, s["conv1.weight"], stride=32).flatten(2).mT
    first = s["class_embedding"].expand(len(x), 1, -1)
    x = _norm(s, "ln_pre", torch.cat((first, x), 1) + s["positional_embedding"])
    x = _clip_blocks(s, "transformer.transformer", x, depth, heads)
    hidden = _linear(s, f"transformer.zero_modules.{depth - 1}", x)
    return _norm(s, "ln_post", x[:, 0]) @ s["proj"], hidden[:, 1:]


def prompts(state: State, words: Tensor, depth: int, heads: int) -> Tensor:
    prefix = "head.clip."
    s = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    x = s["token_embedding.weight"][words] + s["positional_embedding"]
    mask = torch.full((77, 77), float("-inf"), dtype=x.dtype).triu(1)
    x = _norm(s, "ln_final", _clip_blocks(s, "transformer", x, depth, heads, mask))
    return x[torch.arange(len(x)), words.argmax(-1)] @ s["text_projection"]


def released_score(
    state: State,
    images: Tensor,
    words: Tensor,
    depths: tuple[int, int, int],
    heads: tuple[int, int, int],
    controller_size: int = 224,
) -> Tensor:
    """The released score [B] of ImageNet-normalised images, every row of every expert computed."""
    semantic = backbone(state, images, depths[0], heads[0])
    size = (controller_size, controller_size)
    small = F.interpolate(images, size, mode="bilinear", align_corners=False)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    embedding, hidden = controller(state, (small - mean) / std, depths[1], heads[1])
    text = prompts(state, words, depths[2], heads[2])
    embedding = embedding / embedding.norm(dim=-1, keepdim=True)
    text = text / text.norm(dim=-1, keepdim=True)
    products = _norm(state, "norm1", text[None] * embedding[:, None])
    keys = _linear(state, "L_hidden", hidden).mT
    grid, coarse = round((semantic.shape[1] - 1) ** 0.5), round(keys.shape[-1] ** 0.5)
    keys = F.interpolate(keys.unflatten(-1, (coarse, coarse)), (grid, grid), mode="bilinear")
    keys = keys.flatten(2).mT
    x, total = semantic, torch.zeros_like(semantic)
    scale = 1 / sqrt(semantic.shape[-1])
    for i in range(10):
        feature = _linear(state, f"linears.{i}", products[:, i])[:, None]
        x = _norm(state, "norm_vit", x)
        own = _norm(state, "norm3_hidden_feature", torch.cat((feature, keys), 1))
        rows = feature.expand_as(x)
        a = "diff_attention."
        first = _linear(state, a + "W_q1", rows) @ _linear(state, a + "W_k1", own).mT
        second = _linear(state, a + "W_q2", x) @ _linear(state, a + "W_k2", x).mT
        values = _linear(state, a + "W_v", torch.cat((rows, x), -1))
        alpha = state[a + "alpha"]
        out = ((first * scale).softmax(-1) - alpha * (second * scale).softmax(-1)) @ values
        group = _norm(state, "attn_norm", out)
        group = F.gelu(_linear(state, "group_attn_ffn.0", group))
        group = _linear(state, "group_attn_ffn.2", group) * (1 - state["lamda_init"])
        unit = torch.cat((group, semantic, group - semantic), -1)
        for layer in (0, 2, 4, 6):
            name = f"decoder.AttentionActivate.active_unit.fc.{layer}"
            unit = _linear(state, name, unit)
            if layer < 6:
                slope = state[f"decoder.AttentionActivate.active_unit.fc.{layer + 1}.weight"]
                unit = torch.where(unit >= 0, unit, slope * unit)
        total = total + semantic * unit
    return _linear(state, "score", total[:, 0])[:, 0]
