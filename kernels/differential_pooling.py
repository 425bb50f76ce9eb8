"""Differential pooling: the CLS row of dual-softmax differential attention.

For every expert i of an image, with semantic tokens x_t (t = 0 is the CLS token):

    y_t  = LN(x_t)                     `single`; `iterated` applies LN i+1 times for expert i
    p_i  = softmax_t(l1_it) - alpha_i softmax_t(r_i . y_t)
    u_i  = sum_t p_it y_t

l1 are the logits of the distortion branch, r_i the semantic query with the key projection
absorbed, r_i = s W_k^T (W_q y_0 + b_q), so that no key or value matrix is ever formed. A key bias
adds the same number to every logit of a row and cancels in the softmax.

Source: Eq. 2 of the DR.Experts paper, read at the one row that reaches the score.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def differential_pooling(
    tokens: Tensor,
    query: Tensor,
    distortion_logits: Tensor,
    alpha: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float = 1e-5,
    iterated: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pool the normalised tokens by the difference of two attentions, for every expert.

    Args:
        tokens: semantic tokens before their LayerNorm, [B, N, d]; computed in the query's dtype.
        query: absorbed and scaled semantic queries, [B, E, d], or [B, 1, d] for one shared query
            (only with `iterated=False`).
        distortion_logits: scaled logits of the distortion branch, [B, E, N].
        alpha: weight of the semantic attention, [E] or [1].
        norm_weight, norm_bias: gain and bias of the LayerNorm over d, [d].
        eps: of the LayerNorm.
        iterated: expert i sees LayerNorm applied i+1 times, as in the released code.

    Returns:
        The pooled tokens u [B, E, d] and the maps p [B, E, N], whose rows sum to 1 - alpha.
    """
    norm = (norm_weight, norm_bias, eps)
    tokens = tokens.to(query)
    if iterated:
        return _iterated(tokens, query, distortion_logits, alpha, *norm)
    return _single(tokens, query, distortion_logits, alpha, *norm)


def _single(
    tokens: Tensor,
    query: Tensor,
    distortion_logits: Tensor,
    alpha: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    normed = F.layer_norm(tokens, tokens.shape[-1:], weight, bias, eps)
    semantic = torch.softmax(query @ normed.mT, dim=-1)  # [B, E or 1, N]
    maps = torch.softmax(distortion_logits, dim=-1) - alpha[:, None] * semantic
    return maps @ normed, maps


def _iterated(
    tokens: Tensor,
    query: Tensor,
    distortion_logits: Tensor,
    alpha: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    pooled, maps = [], []
    for i, logits in enumerate(distortion_logits.unbind(1)):
        tokens = F.layer_norm(tokens, tokens.shape[-1:], weight, bias, eps)
        semantic = torch.softmax(query[:, i, None] @ tokens.mT, dim=-1)  # [B, 1, N]
        scale = alpha[i % len(alpha)]
        maps.append(torch.softmax(logits[:, None], dim=-1) - scale * semantic)
        pooled.append(maps[-1] @ tokens)
    return torch.cat(pooled, dim=1), torch.cat(maps, dim=1)
