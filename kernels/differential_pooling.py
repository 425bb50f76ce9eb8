"""Differential pooling: the CLS row of dual-softmax differential attention.

For every expert i of an image, with semantic tokens x_t (t = 0 is the CLS token):

    y_t  = LN(x_t)                     `single`; `iterated` applies LN i+1 times for expert i
    p_i  = softmax_t(l1_it) - alpha_i softmax_t(r_i . y_t)
    u_i  = sum_t p_it y_t

l1 are the logits of the distortion branch, r_i the semantic query with the key projection
absorbed, r_i = s W_k^T (W_q y_0 + b_q), so that no key or value matrix is ever formed. A key bias
adds the same number to every logit of a row and cancels in the softmax.

The distortion branch has 49 or 50 tokens of its own. The pooling reads only their logit for each of
the N tokens, which is 2 to 5 % of the bytes of the tokens.

Source: Eq. 2 of the DR.Experts paper at the CLS row, the only one that reaches the score.
"""

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from drexperts.kernels.backends import choose
from drexperts.runtime.errors import ArgumentError

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
ARGUMENTS = ("tokens", "query", "distortion_logits", "alpha", "norm_weight", "norm_bias")

BACKENDS = ("reference", "triton")
# Limits of what the kernels hold at once.
WIDEST = 1024
MOST_EXPERTS = 16
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def differential_pooling_reference(
    tokens: Tensor, query: Tensor, distortion_logits: Tensor, alpha: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, eps: float = 1e-5, iterated: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`differential_pooling` in plain PyTorch, in float32 or float64 even under autocast."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    form = _iterated if iterated else _single
    given = (tokens, query, distortion_logits, alpha, norm_weight, norm_bias)
    # The meta device has no autocast.
    device = "cpu" if query.is_meta else query.device.type
    with torch.autocast(device, enabled=False):
        pooled, maps = form(*_each(lambda x: x.to(dtype), given), eps)
    return pooled.to(query.dtype), maps.to(query.dtype)


def _single(
    tokens: Tensor, query: Tensor, distortion_logits: Tensor, alpha: Tensor, weight: Tensor,
    bias: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    normed = F.layer_norm(tokens, tokens.shape[-1:], weight, bias, eps)
    semantic = torch.softmax(query @ normed.mT, dim=-1)  # [B, E or 1, N]
    maps = torch.softmax(distortion_logits, dim=-1) - alpha[:, None] * semantic
    return maps @ normed, maps


def _iterated(
    tokens: Tensor, query: Tensor, distortion_logits: Tensor, alpha: Tensor, weight: Tensor,
    bias: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pooled, maps = [], []
    for i, logits in enumerate(distortion_logits.unbind(1)):
        tokens = F.layer_norm(tokens, tokens.shape[-1:], weight, bias, eps)
        row = query[:, i % query.shape[1], None]
        semantic = torch.softmax(row @ tokens.mT, dim=-1)  # [B, 1, N]
        scale = alpha[i % len(alpha)]
        maps.append(torch.softmax(logits[:, None], dim=-1) - scale * semantic)
        pooled.append(maps[-1] @ tokens)
    return torch.cat(pooled, dim=1), torch.cat(maps, dim=1)


def _each(change: Callable[[Tensor], Tensor], given: Inputs) -> Inputs:
    tokens, query, logits, alpha, weight, bias = map(change, given)
    return tokens, query, logits, alpha, weight, bias


@torch.library.custom_op("drexperts::differential_pooling", mutates_args=())
def _forward(
    tokens: Tensor, query: Tensor, distortion_logits: Tensor, alpha: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, eps: float, iterated: bool, return_maps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from drexperts.kernels import differential_pooling_triton as kernels

    given = (tokens, query, distortion_logits, alpha, norm_weight, norm_bias)
    with torch.cuda.device_of(tokens):
        return kernels.forward(_each(Tensor.contiguous, given), eps, iterated, return_maps)


@_forward.register_fake
def _(
    tokens: Tensor, query: Tensor, distortion_logits: Tensor, alpha: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, eps: float, iterated: bool, return_maps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (batch, n, width), experts = tokens.shape, distortion_logits.shape[1]
    state = tokens.new_empty((batch, experts, n), dtype=torch.float32)
    return (
        query.new_empty(batch, experts, width),
        query.new_empty((batch, experts, n) if return_maps else (0,)),
        state,
        state.new_empty(batch, 2, experts, width),
        state.new_empty(batch, 2, experts),
    )


@torch.library.custom_op("drexperts::differential_pooling_backward", mutates_args=())
def _backward(
    tokens: Tensor, query: Tensor, distortion_logits: Tensor, alpha: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, semantic: Tensor, means: Tensor, lse: Tensor, grad_pooled: Tensor,
    grad_maps: Tensor | None, eps: float, iterated: bool,
) -> Inputs:  # fmt: skip
    from drexperts.kernels import differential_pooling_triton as kernels

    given = (tokens, query, distortion_logits, alpha, norm_weight, norm_bias)
    downs = (grad_pooled.contiguous(), None if grad_maps is None else grad_maps.contiguous())
    saved = (semantic, means, lse)
    with torch.cuda.device_of(tokens):
        return kernels.backward(_each(Tensor.contiguous, given), eps, iterated, saved, *downs)


@_backward.register_fake
def _(
    tokens: Tensor, query: Tensor, distortion_logits: Tensor, alpha: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, *_: Any,
) -> Inputs:  # fmt: skip
    given = (tokens, query, distortion_logits, alpha, norm_weight, norm_bias)
    return _each(lambda x: x.new_empty(x.shape), given)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.iterated, ctx.return_maps = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, pooled: Tensor | None, maps: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    if pooled is None:  # only the maps were used
        query, means = saved[1], saved[7]
        pooled = query.new_zeros(means[:, 0].shape)
    grads = _backward(*saved, pooled, maps if ctx.return_maps else None, ctx.eps, ctx.iterated)
    return (*grads, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)


@overload
def differential_pooling(
    tokens: Tensor, query: Tensor, distortion_logits: Tensor, alpha: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, eps: float = ..., iterated: bool = ..., *,
    return_maps: Literal[True] = ..., backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def differential_pooling(
    tokens: Tensor, query: Tensor, distortion_logits: Tensor, alpha: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, eps: float = ..., iterated: bool = ..., *,
    return_maps: Literal[False], backend: str | None = ...,
) -> tuple[Tensor, None]: ...  # fmt: skip


def differential_pooling(
    tokens: Tensor, query: Tensor, distortion_logits: Tensor, alpha: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, eps: float = 1e-5, iterated: bool = False, *, return_maps: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Pool the normalised tokens by the difference of two attentions, for every expert.

        pooled, maps = differential_pooling(tokens, query, logits, alpha, norm.weight, norm.bias)

    Each input may be float16, bfloat16 or float32; the computation is in float32. Only the
    reference takes float64, for all inputs. The batch may be empty.

    Args:
        tokens: semantic tokens before their LayerNorm, [B, N, d].
        query: absorbed and scaled semantic queries, [B, E, d], or [B, 1, d] for one shared query.
        distortion_logits: scaled logits of the distortion branch, [B, E, N].
        alpha: weight of the semantic attention, [E] or [1].
        norm_weight, norm_bias: gain and bias of the LayerNorm over d, [d].
        eps: epsilon of the LayerNorm.
        iterated: expert i sees LayerNorm applied i+1 times, as in the released code.
        return_maps: whether to return the maps.
        backend: `reference` or `triton` (d up to 1024, up to 16 experts, first derivatives in
            reverse mode; tensors that are not contiguous are copied). By default `triton` on a CUDA
            device and `reference` elsewhere.

    Returns:
        The pooled tokens u [B, E, d], and the maps p [B, E, N], whose rows sum to 1 - alpha, or
        None. Both have the query's dtype.

    Raises:
        ArgumentError: an argument's shape, dtype or device does not fit. The message begins with
            its name.
        BackendError: the backend cannot run here.
    """
    given = (tokens, query, distortion_logits, alpha, norm_weight, norm_bias)
    _check(*given, eps)
    if choose(backend, BACKENDS, tokens) == "reference":
        pooled, maps = differential_pooling_reference(*given, eps, iterated)
    else:
        _check_for_triton(tokens.shape[-1], distortion_logits.shape[1])
        pooled, maps, *_ = _forward(*given, eps, iterated, return_maps)
    return pooled, maps if return_maps else None


def _check_for_triton(width: int, experts: int) -> None:
    limits = {
        "tokens": ("a width", width, WIDEST),
        "distortion_logits": ("a number of experts", experts, MOST_EXPERTS),
    }
    for name, (what, given, limit) in limits.items():
        if given > limit:
            raise ArgumentError(
                f"{name}: the Triton backend takes {what} up to {limit}, got {given}; "
                "use backend='reference'"
            )


def _check(
    tokens: Tensor, query: Tensor, logits: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor,
    eps: float,
) -> None:  # fmt: skip
    for name, tensor in zip(ARGUMENTS, (tokens, query, logits, alpha, weight, bias), strict=True):
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{name}: must be a tensor, got {type(tensor).__name__}")
    if not eps > 0:
        raise ArgumentError(f"eps: must be positive, got {eps}")
    if tokens.dim() != 3 or 0 in tokens.shape[1:]:
        raise ArgumentError(f"tokens: must be [B, N, d] with N, d > 0, got {_of(tokens)}")
    batch, n, width = tokens.shape
    if logits.dim() != 3 or logits.shape[1] == 0:
        raise ArgumentError(f"distortion_logits: must be [B, E, N], got {_of(logits)}")
    experts = logits.shape[1]
    expected: dict[str, tuple[Tensor, tuple[tuple[int, ...], ...]]] = {
        "query": (query, ((batch, experts, width), (batch, 1, width))),
        "distortion_logits": (logits, ((batch, experts, n),)),
        "alpha": (alpha, ((experts,), (1,))),
        "norm_weight": (weight, ((width,),)),
        "norm_bias": (bias, ((width,),)),
    }
    for name, (tensor, shapes) in expected.items():
        if tuple(tensor.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise ArgumentError(
                f"{name}: must be {wanted} for tokens {_of(tokens)} and {experts} experts, "
                f"got {_of(tensor)}"
            )
        if tensor.device != tokens.device:
            raise ArgumentError(f"{name}: is on {tensor.device}, but tokens on {tokens.device}")
    _check_dtypes({"tokens": tokens} | {name: tensor for name, (tensor, _) in expected.items()})


def _check_dtypes(given: dict[str, Tensor]) -> None:
    double = given["query"].dtype == torch.float64
    for name, tensor in given.items():
        if tensor.dtype not in DTYPES:
            raise ArgumentError(f"{name}: must be float16 to float64, got {tensor.dtype}")
        if (tensor.dtype == torch.float64) != double:
            raise ArgumentError(
                f"{name}: is {tensor.dtype} and the query {given['query'].dtype}; give float64 "
                "for all inputs or for none"
            )


def _of(tensor: Tensor) -> str:
    return str(list(tensor.shape))
