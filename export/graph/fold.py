"""Folds: a trained module to an equal module with less to compute, before any graph exists.

Each public function is one fold, whose two sides a test compares; the fold of the prompts is
`backbones.constant_prompts`. `inference_model` applies them all: its result is a `DRExperts` whose
parts were replaced, and whose own `forward` runs.
"""

import copy
from collections.abc import Collection, Iterator
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from drexperts.model.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Controller,
    ControllerInput,
    ImageEncoder,
    Prior,
    PromptEncoder,
    constant_prompts,
)
from drexperts.model.dr_experts import DRExperts
from drexperts.model.experts import AbsorbedQuery, ExpertLinear, HiddenKeys

# The types of the transformer blocks; everything around them is float32.
BLOCK_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class EncoderBlock(nn.Module):
    """A pre-norm transformer block with nothing left to scale.

    The factor 1/sqrt(head width) is folded into the query projection. The keys have no bias, which
    would add the same number to a whole row of logits. Three projections cost less than one and a
    split.
    """

    def __init__(
        self,
        norms: tuple[nn.LayerNorm, nn.LayerNorm],
        qkv: tuple[nn.Linear, nn.Linear, nn.Linear],
        proj: nn.Linear,
        mlp: tuple[nn.Linear, nn.Linear],
        heads: int,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norms
        self.query, self.key, self.value = qkv
        self.proj = proj
        self.fc1, self.fc2 = mlp
        self.heads = heads

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """The tokens of all images are one matrix [B * N, d], so that a projection is one GEMM."""
        x = x + self.proj(self.attention(self.norm1(x), batch))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def attention(self, x: Tensor, batch: int) -> Tensor:
        """[B * N, d] to [B * N, d], by products for which every backend has a kernel."""
        q, k, v = (self._by_head(linear(x), batch) for linear in (self.query, self.key, self.value))
        return (torch.softmax(q @ k.mT, -1) @ v).transpose(1, 2).reshape(x.shape)

    def _by_head(self, x: Tensor, batch: int) -> Tensor:
        """[B * N, d] to [B, heads, N, d / heads]."""
        return x.view(batch, -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)


class FoldedVit(nn.Module):
    """A vision transformer on 0..255 pixels: [B, 3, H, W] to tokens [B, 1 + grid^2, d].

    `positions` is everything added to a patch (position and convolution bias), `first` the CLS
    token with its position. Each block runs in its own dtype; the rest runs in float32.
    """

    first: Tensor
    positions: Tensor

    def __init__(
        self,
        patches: nn.Conv2d,
        first: Tensor,
        positions: Tensor,
        blocks: list[EncoderBlock],
        norms: tuple[nn.Module, nn.Module],
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(
            patches.in_channels,
            patches.out_channels,
            patches.kernel_size,  # type: ignore[arg-type]
            patches.stride,  # type: ignore[arg-type]
            bias=False,
        )
        self.patches.weight = patches.weight
        assert patches.bias is not None
        self.register_buffer("first", first.detach())  # [1, 1, d]
        self.register_buffer("positions", (positions + patches.bias).detach())  # [1, grid^2, d]
        self.norm_in, self.norm_out = norms
        self.blocks = nn.ModuleList(blocks)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patches(pixels).flatten(2).mT + self.positions
        first = self.first.expand(pixels.shape[0], -1, -1)
        x = self.norm_in(torch.cat((first, patches), dim=1))
        batch, width = pixels.shape[0], x.shape[-1]
        rows = x.reshape(-1, width)
        for block in self.blocks:
            rows = block(rows.to(next(block.parameters()).dtype), batch)
        return self.norm_out(rows.view(batch, -1, width))


class FoldedController(nn.Module):
    """`Controller` on 0..255 pixels; its zero-linear is folded into the layer that reads it."""

    def __init__(self, controller: Controller, vit: FoldedVit) -> None:
        super().__init__()
        self.vit = vit
        self.ln_post, self.proj = controller.visual.ln_post, controller.visual.proj
        self.tokens, self.hidden = controller.tokens, controller.zero is not None

    def forward(self, pixels: Tensor) -> Prior:
        x = self.vit(pixels).to(self.proj)
        embedded = x if self.tokens else x[:, :1]
        embedding = F.normalize(self.ln_post(embedded) @ self.proj, dim=-1)
        return Prior(embedding, x[:, 1:] if self.hidden else None)


class MatrixResize(nn.Module):
    """A fixed separable resize, [B, C, H, H] to [B, C, h, h], as one matrix [h, H] on each side."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.matrix @ pixels @ self.matrix.T


def fold_patches(conv: nn.Conv2d, mean: Tensor, std: Tensor) -> nn.Conv2d:
    """A patch embedding of (pixels - mean) / std as one of the pixels; mean and std are [3].

    It is exact because the patches do not overlap and nothing is padded.
    """
    folded = copy.deepcopy(conv)
    weight = conv.weight / std.to(conv.weight)[:, None, None]
    shift = (weight * mean.to(conv.weight)[:, None, None]).sum((1, 2, 3))
    folded.weight = nn.Parameter(weight)
    folded.bias = nn.Parameter((0 if conv.bias is None else conv.bias) - shift)
    return folded


def fold_resize(module: ControllerInput, source: int) -> nn.Module:
    """The resize of the controller's input from `source` px squares, without its normalisation.

    Bilinear interpolation, antialiased or not, is separable and linear with rows that sum to 1, so
    it commutes with the normalisation, which `fold_patches` folds.
    """
    if source == module.size:
        return nn.Identity()
    impulses = torch.eye(source, dtype=torch.float64)[None, None]
    size, antialias = (module.size, source), module.antialias
    rows = F.interpolate(impulses, size, mode="bilinear", antialias=antialias)
    return MatrixResize(rows[0, 0])


def fold_layer_scale(block: Block) -> Block:
    """A timm block with each LayerScale folded into the linear layer before it."""
    folded = copy.deepcopy(block)
    folded.attn.proj = _scaled_rows(block.attn.proj, block.ls1.gamma)
    folded.mlp.fc2 = _scaled_rows(block.mlp.fc2, block.ls2.gamma)
    folded.ls1, folded.ls2 = nn.Identity(), nn.Identity()
    return folded


def fold_timm_block(block: Block) -> EncoderBlock:
    """A timm block without LayerScale as an `EncoderBlock`."""
    qkv = _projections(block.attn.qkv.weight, block.attn.qkv.bias, block.attn.num_heads)
    mlp = block.mlp.fc1, block.mlp.fc2
    norms = block.norm1, block.norm2
    return EncoderBlock(norms, qkv, block.attn.proj, mlp, block.attn.num_heads)


def fold_open_clip_block(block: ResidualAttentionBlock) -> EncoderBlock:
    """An open_clip block as an `EncoderBlock`."""
    attention = block.attn
    qkv = _projections(attention.in_proj_weight, attention.in_proj_bias, attention.num_heads)
    mlp = block.mlp.c_fc, block.mlp.c_proj
    norms = block.ln_1, block.ln_2
    return EncoderBlock(norms, qkv, attention.out_proj, mlp, attention.num_heads)


def fold_zero_linear(zero: nn.Linear, project: nn.Linear) -> nn.Linear:
    """project(zero(x)) as one linear."""
    bias = project.weight @ zero.bias + project.bias
    return _linear(project.weight @ zero.weight, bias)


def fold_query(query: AbsorbedQuery) -> ExpertLinear:
    """s W_k^T (W_q x + b_q) as one linear map per expert; the key bias has no effect."""
    weight = query.query.weight.mT @ query.key.weight * query.scale  # [S, in, key width]
    folded = ExpertLinear(*weight.shape)
    folded.weight = nn.Parameter(weight.mT.contiguous())
    folded.bias = nn.Parameter((query.query.bias[:, None] @ query.key.weight)[:, 0] * query.scale)
    return folded


def inference_model(
    model: DRExperts, precision: str = "fp32", islands: Collection[str] = ()
) -> DRExperts:
    """An equal model with every fold applied, which takes float32 pixels 0..255 [B, 3, H, W].

    It is folded in float64 and rounded once. With "fp16" or "bf16" the transformer blocks have that
    type, and everything around them is float32: patch embeddings, resize, unit vectors, both
    softmaxes of the head and their difference, weights and score.

    Args:
        islands: names of blocks that stay in float32, such as "encoder.blocks.3".
    """
    # Any, because its parts are replaced by equal ones of other classes.
    folded: Any = copy.deepcopy(model).double().requires_grad_(False)
    with torch.no_grad():
        if isinstance(folded.prompts, PromptEncoder):
            folded.prompts = constant_prompts(folded.prompts)
        _fold_head(folded)
        encoder = _folded_encoder(folded.encoder)
        controller = _folded_controller(folded.controller, folded.controller_input)
        resize = fold_resize(folded.controller_input, model.config.encoder.image_size)
    folded.encoder, folded.controller, folded.controller_input = encoder, controller, resize
    folded.float()
    for name, block in encoder_blocks(folded):
        if name not in islands:
            block.to(BLOCK_TYPES[precision])
    encoder.norm_out.to(next(encoder.blocks[-1].parameters()).dtype)
    result: DRExperts = folded
    return result


def encoder_blocks(folded: DRExperts) -> Iterator[tuple[str, EncoderBlock]]:
    """The transformer blocks of a folded model by name, "encoder.blocks.0" the first."""
    for name, module in folded.named_modules():
        if isinstance(module, EncoderBlock):
            yield name, module


def _fold_head(model: Any) -> None:
    saliency, keys = model.saliency, model.saliency.keys
    saliency.distortion = fold_query(saliency.distortion)
    saliency.semantic = fold_query(saliency.semantic)
    if model.controller.zero is not None:
        assert isinstance(keys, HiddenKeys)
        keys.project = fold_zero_linear(model.controller.zero, keys.project)


def _folded_encoder(encoder: ImageEncoder) -> FoldedVit:
    vit = encoder.vit
    mean, std = (255 * torch.tensor(v) for v in (IMAGENET_MEAN, IMAGENET_STD))
    patches = fold_patches(vit.patch_embed.proj, mean, std)
    blocks = [fold_timm_block(fold_layer_scale(block)) for block in vit.blocks]
    return FoldedVit(patches, vit.cls_token, vit.pos_embed, blocks, (nn.Identity(), vit.norm))


def _folded_controller(controller: Controller, given: ControllerInput) -> FoldedController:
    visual: VisionTransformer = controller.visual
    patches = fold_patches(visual.conv1, *controller_statistics(given))
    positions = visual.positional_embedding[None]
    first = visual.class_embedding + positions[:, :1]
    blocks = [fold_open_clip_block(block) for block in visual.transformer.resblocks]
    norms = (visual.ln_pre, nn.Identity())
    return FoldedController(controller, FoldedVit(patches, first, positions[:, 1:], blocks, norms))


def controller_statistics(given: ControllerInput) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [3] that turn 0..255 pixels into the controller's input."""
    mean, std = given.clip_mean.flatten(), given.clip_std.flatten()
    if not given.undo_imagenet:  # CLIP's normalisation is applied after ImageNet's
        outer_mean, outer_std = given.imagenet_mean.flatten(), given.imagenet_std.flatten()
        mean, std = outer_mean + mean * outer_std, std * outer_std
    return 255 * mean, 255 * std


def _projections(
    weight: Tensor, bias: Tensor, heads: int
) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """A fused [q; k; v] projection, split: 1/sqrt(head width) folded into q, no bias on k."""
    query, key, value = weight.chunk(3)
    query_bias, _, value_bias = bias.chunk(3)
    scale = (len(query) // heads) ** -0.5
    return (
        _linear(query * scale, query_bias * scale),
        _linear(key, None),
        _linear(value, value_bias),
    )


def _scaled_rows(linear: nn.Linear, gain: Tensor) -> nn.Linear:
    return _linear(linear.weight * gain[:, None], linear.bias * gain)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear
