"""Differential attention: the difference of two softmax attentions over the same values.

    O = (P1 - alpha P2) V        P_k = softmax(s Q_k K_k^T)

Sources: Eq. 2 of the DR.Experts paper; "Differential Transformer" (arXiv 2410.05258), Eq. 1, where
alpha is called lambda.

With G = dL/dO the gradients are

    O_k = P_k V    delta_k = rowsum(G * O_k)    dP = G V^T
    dS1 = P1 * (dP - delta1)    dS2 = -alpha P2 * (dP - delta2)
    dQ_k = s dS_k K_k    dK_k = s dS_k^T Q_k    dV = (P1 - alpha P2)^T G    dalpha = -sum delta2
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from drexperts.kernels.backends import choose
from drexperts.runtime.errors import ArgumentError

BACKENDS = ("reference", "sdpa", "triton")
WIDEST = 1024
CHUNK = 64

Results = tuple[Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def differential_attention(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor,
    scale: float | None = None, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """(softmax(s Q1 K1^T) - alpha softmax(s Q2 K2^T)) V, for all rows.

        out = differential_attention(q1, k1, q2, k2, v, torch.tensor(0.5))  # [..., N, d]

    There may be any number of leading dimensions (batch, experts, heads), which broadcast. Expanded
    tensors are read without a copy. In a Differential Transformer with H heads the leading
    dimensions are [B, H] and its per-head lambda is alpha, [H]. Its values are 2d wide: call this
    once for each half, because here all five widths are equal.

    Args:
        q1, q2: queries, [..., N, d].
        k1, k2: keys, [..., M, d].
        v: values, [..., M, d].
        alpha: weight of the second attention, in any floating dtype. A tensor of one number, or one
            that broadcasts to the leading dimensions.
        scale: s (default: d**-0.5). The Triton kernels are compiled anew for every value.
        backend: `reference` (any d, float64 too), `sdpa` (two calls and a subtraction) or `triton`
            (float16, bfloat16, float32; d a multiple of 64 up to 1024; first derivatives in reverse
            mode). By default `triton` on a CUDA device and `reference` elsewhere.

    Returns:
        O, [..., N, d], in the queries' dtype; empty if a dimension of the queries is zero.

    Raises:
        ArgumentError: an argument does not fit the others or the backend. The message begins with
            its name.
        BackendError: the backend cannot run here.
    """
    lead = _check(q1, k1, q2, k2, v, alpha)
    backend = choose(backend, BACKENDS, q1)
    scale = q1.shape[-1] ** -0.5 if scale is None else scale
    q1, k1, q2, k2, v = (t.expand(*lead, *t.shape[-2:]) for t in (q1, k1, q2, k2, v))
    alpha = (alpha.reshape(()) if alpha.numel() == 1 else alpha).expand(lead)
    if backend == "reference":
        return differential_attention_reference(q1, k1, q2, k2, v, alpha, scale)
    if backend == "sdpa":
        return _sdpa(q1, k1, q2, k2, v, alpha, scale)
    return _triton(q1, k1, q2, k2, v, alpha, scale)


def differential_attention_reference(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor, scale: float
) -> Tensor:
    """The definition, for equal leading dimensions and alpha [...]."""
    return difference_of_softmaxes(q1, k1, q2, k2, alpha, scale) @ v


def difference_of_softmaxes(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, alpha: Tensor, scale: float
) -> Tensor:
    """The maps P1 - alpha P2, [..., N, M], in plain PyTorch; alpha is [...]."""
    first = torch.softmax(q1 @ k1.mT * scale, dim=-1)
    second = torch.softmax(q2 @ k2.mT * scale, dim=-1)
    return first - alpha.to(q1.dtype)[..., None, None] * second


def _sdpa(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor, scale: float
) -> Tensor:
    first = F.scaled_dot_product_attention(q1, k1, v, scale=scale)
    second = F.scaled_dot_product_attention(q2, k2, v, scale=scale)
    return first - alpha.to(q1.dtype)[..., None, None] * second


def _triton(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor, scale: float
) -> Tensor:
    width = q1.shape[-1]
    if width % CHUNK or not 0 < width <= WIDEST:
        raise ArgumentError(
            f"q1: is {width} wide; the Triton backend takes multiples of {CHUNK} up to {WIDEST}, "
            "pad it or use backend='reference' or 'sdpa'"
        )
    inputs = (q1, k1, q2, k2, v, alpha.float().contiguous())
    training = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    return _forward(*inputs, scale, training)[0]


@torch.library.custom_op("drexperts::differential_attention", mutates_args=())
def _forward(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor, scale: float,
    training: bool,
) -> Results:  # fmt: skip
    """O, then O2 and both log-sum-exps for the backward, which are empty unless `training`."""
    from drexperts.kernels import differential_attention_triton

    out, *saved = differential_attention_triton.forward(q1, k1, q2, k2, v, alpha, scale, training)
    out2, lse1, lse2 = saved if training else (alpha.new_empty(0) for _ in saved)
    return out, out2, lse1, lse2


@_forward.register_fake
def _(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor, scale: float,
    training: bool,
) -> Results:  # fmt: skip
    matrix, rows = (q1.shape, q1.shape[:-1]) if training else ((0,), (0,))
    statistics = alpha.new_empty(rows), alpha.new_empty(rows)
    return q1.new_empty(q1.shape), alpha.new_empty(matrix), *statistics


@torch.library.custom_op("drexperts::differential_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor,
    out: Tensor, out2: Tensor, lse1: Tensor, lse2: Tensor, scale: float,
) -> Gradients:  # fmt: skip
    """Gradients of q1, k1, q2, k2, v and alpha, contiguous."""
    from drexperts.kernels import differential_attention_triton

    return differential_attention_triton.backward(
        gradient, q1, k1, q2, k2, v, alpha, out, out2, lse1, lse2, scale
    )


@_backward.register_fake
def _(
    gradient: Tensor, q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor,
    out: Tensor, out2: Tensor, lse1: Tensor, lse2: Tensor, scale: float,
) -> Gradients:  # fmt: skip
    a, b, c, d, e, f = (t.new_empty(t.shape) for t in (q1, k1, q2, k2, v, alpha))
    return a, b, c, d, e, f


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, _ = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # a missing gradient would be zeros as large as the output


def _differentiate(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 8
    return *_backward(gradient, *ctx.saved_tensors, ctx.scale), None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _check(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor
) -> tuple[int, ...]:
    """The leading dimensions that all share, after broadcasting."""
    matrices = {"q1": q1, "k1": k1, "q2": q2, "k2": k2, "v": v}
    for name, tensor in (*matrices.items(), ("alpha", alpha)):
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{name}: is a {type(tensor).__name__}; give a tensor")
    for name, matrix in matrices.items():
        _check_kind(name, matrix, q1)
    _check_size("k1", k1, (k1.shape[-2], q1.shape[-1]), "as wide as q1")
    _check_size("q2", q2, q1.shape[-2:], "of q1's size")
    _check_size("k2", k2, k1.shape[-2:], "of k1's size")
    _check_size("v", v, k1.shape[-2:], "of k1's size")
    if q1.shape[-1] == 0:
        raise ArgumentError("q1: has no columns; give a d of one or more")
    if k1.shape[-2] == 0:
        raise ArgumentError("k1: has no rows; a softmax needs one key or more")
    lead: tuple[int, ...] = ()
    for name, matrix in matrices.items():
        lead = _broadcast(name, matrix, lead)
    _check_alpha(alpha, q1, lead)
    return lead


def _check_kind(name: str, matrix: Tensor, q1: Tensor) -> None:
    if matrix.ndim < 2:
        raise ArgumentError(
            f"{name}: needs two dimensions or more, [..., rows, d]; got {matrix.ndim}"
        )
    if not matrix.is_floating_point():
        raise ArgumentError(f"{name}: is {matrix.dtype}; give a floating dtype")
    if matrix.dtype != q1.dtype:
        raise ArgumentError(f"{name}: is {matrix.dtype} but q1 is {q1.dtype}; cast one of them")
    if matrix.device != q1.device:
        raise ArgumentError(
            f"{name}: is on {matrix.device} but q1 on {q1.device}; move one of them"
        )


def _check_size(name: str, matrix: Tensor, size: tuple[int, ...], rule: str) -> None:
    if matrix.shape[-2:] != size:
        found = list(matrix.shape[-2:])
        raise ArgumentError(f"{name}: ends in {found}; make it {rule}, [..., {size[0]}, {size[1]}]")


def _broadcast(name: str, matrix: Tensor, lead: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return torch.broadcast_shapes(lead, matrix.shape[:-2])
    except RuntimeError:
        raise ArgumentError(
            f"{name}: leading dimensions {list(matrix.shape[:-2])} do not broadcast with "
            f"{list(lead)} of those before it; make them equal or 1"
        ) from None


def _check_alpha(alpha: Tensor, q1: Tensor, lead: tuple[int, ...]) -> None:
    if not alpha.is_floating_point():
        raise ArgumentError(f"alpha: is {alpha.dtype}; give a floating dtype")
    if alpha.device != q1.device:
        raise ArgumentError(f"alpha: is on {alpha.device} but q1 on {q1.device}; move one of them")
    trailing = zip(reversed(alpha.shape), reversed(lead), strict=False)
    fits = alpha.ndim <= len(lead) and all(a in (1, size) for a, size in trailing)
    if alpha.numel() != 1 and not fits:
        raise ArgumentError(
            f"alpha: {list(alpha.shape)} does not broadcast to the leading dimensions "
            f"{list(lead)}; give one number or one for each head"
        )
