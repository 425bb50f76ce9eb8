"""Triton kernels of `differential_pooling`; the formulas are in that module.

Forward: `_pool` streams one split of an image's tokens through both softmaxes, and `_combine`
merges the splits in a fixed order. Splits depend only on the number of tokens and nothing is
atomic, so an image's numbers depend neither on the run nor on the rest of the batch. With `WHOLE`
one program computes a whole image and writes the results itself, because a TensorRT plugin has one
launch and no scratch memory.

Backward: `_deltas` computes each row's mean gradient, and `_pool_backward` streams the tokens once
more. Its products are in float32: tf32 would drop the low digits of both factors, and what remains
after subtracting the mean may not be larger than those.

A width that is not a power of two is held as a tuple of chunks of width `BD`. Rows of experts are
padded to `BE`, 16, for the tensor cores. If expert i reads LayerNorm applied i + 1 times
(`ITERATED`), each step of that chain feeds one row of the products and masks the others.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from drexperts.kernels.backends import architecture
from drexperts.kernels.differential_pooling import Inputs
from drexperts.kernels.launch import Launch, Specialisation, launch_for


@triton.jit
def _load_tile(x, rows, mask, c: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Chunk c of rows of a [*, D] matrix, [len(rows), BD]; zero where masked and beyond D."""
    d = c * BD + tl.arange(0, BD)
    inside = mask[:, None] & (d < D)[None, :]
    return tl.load(x + rows[:, None] * D + d[None, :], mask=inside, other=0.0)


@triton.jit
def _load_rows(x, rows, mask, D: tl.constexpr, BD: tl.constexpr):
    """All chunks of the rows."""
    chunks = ()
    for c in tl.static_range((D + BD - 1) // BD):
        chunks = chunks + (_load_tile(x, rows, mask, c, D, BD),)
    return chunks


@triton.jit
def _load_chunk(x, c: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Chunk c of a vector of length D, float32."""
    d = c * BD + tl.arange(0, BD)
    return tl.load(x + d, mask=d < D, other=0.0).to(tl.float32)


@triton.jit
def _store_rows(x, chunks, rows, mask, D: tl.constexpr, BD: tl.constexpr):
    for c in tl.static_range((D + BD - 1) // BD):
        d = c * BD + tl.arange(0, BD)
        inside = mask[:, None] & (d < D)[None, :]
        value = chunks[c].to(x.dtype.element_ty)
        tl.store(x + rows[:, None] * D + d[None, :], value, mask=inside)


@triton.jit
def _zeros(rows: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    chunks = ()
    for _ in tl.static_range((D + BD - 1) // BD):
        chunks = chunks + (tl.zeros((rows, BD), tl.float32),)
    return chunks


@triton.jit
def _cast(xs, dtype: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    chunks = ()
    for c in tl.static_range((D + BD - 1) // BD):
        chunks = chunks + (xs[c].to(dtype),)
    return chunks


@triton.jit
def _centre(xs, mean, D: tl.constexpr, BD: tl.constexpr):
    """Rows minus their means, float32; the padding beyond D stays zero."""
    chunks = ()
    for c in tl.static_range((D + BD - 1) // BD):
        d = c * BD + tl.arange(0, BD)
        chunks = chunks + (tl.where((d < D)[None, :], xs[c].to(tl.float32) - mean[:, None], 0.0),)
    return chunks


@triton.jit
def _mean(xs, D: tl.constexpr, BD: tl.constexpr):
    total = tl.sum(xs[0].to(tl.float32), 1)
    for c in tl.static_range(1, (D + BD - 1) // BD):
        total += tl.sum(xs[c].to(tl.float32), 1)
    return total / D


@triton.jit
def _mean_product(xs, ys, D: tl.constexpr, BD: tl.constexpr):
    """Mean over D of the elementwise product, row by row."""
    total = tl.sum(xs[0] * ys[0], 1)
    for c in tl.static_range(1, (D + BD - 1) // BD):
        total += tl.sum(xs[c] * ys[c], 1)
    return total / D


@triton.jit
def _standardise(xs, D: tl.constexpr, EPS: tl.constexpr, BD: tl.constexpr):
    """LayerNorm without its gain and bias, and 1 / sigma, in two passes to avoid cancellation."""
    centred = _centre(xs, _mean(xs, D, BD), D, BD)
    rstd = 1.0 / tl.sqrt(_mean_product(centred, centred, D, BD) + EPS)
    chunks = ()
    for c in tl.static_range((D + BD - 1) // BD):
        chunks = chunks + (centred[c] * rstd[:, None],)
    return chunks, rstd


@triton.jit
def _affine(xs, weight, bias, D: tl.constexpr, BD: tl.constexpr):
    chunks = ()
    for c in tl.static_range((D + BD - 1) // BD):
        gain, shift = _load_chunk(weight, c, D, BD), _load_chunk(bias, c, D, BD)
        chunks = chunks + (xs[c] * gain[None, :] + shift[None, :],)
    return chunks


@triton.jit
def _gained(query, weight, e, c: tl.constexpr, E: tl.constexpr, Q: tl.constexpr, D: tl.constexpr,
            BD: tl.constexpr):  # fmt: skip
    """Chunk c of gain * query for every expert, [BE, BD] float32."""
    chunk = _load_tile(query, e if Q > 1 else e * 0, e < E, c, D, BD)
    return chunk.to(tl.float32) * _load_chunk(weight, c, D, BD)[None, :]


@triton.jit
def _two_parts(query, weight, e, scale, c: tl.constexpr, E: tl.constexpr, Q: tl.constexpr,
               D: tl.constexpr, T: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    """Chunk c of gain * query as scale * (high + low), both parts in dtype T.

    In two parts because rounding the query to 16 bits would change the logits; tokens are exact.
    """
    unit = _gained(query, weight, e, c, E, Q, D, BD) / scale[:, None]
    high = unit.to(T)
    return high, (unit - high.to(tl.float32)).to(T)


@triton.jit
def _query_parts(query, weight, e, E: tl.constexpr, Q: tl.constexpr, D: tl.constexpr,
                 T: tl.constexpr, HOLD: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    """A scale per row that avoids overflow in float16, the sums of high + low, and the parts."""
    scale = tl.full((e.shape[0],), 1e-30, tl.float32)
    for c in tl.static_range((D + BD - 1) // BD):
        row = _gained(query, weight, e, c, E, Q, D, BD)
        scale = tl.maximum(scale, tl.max(tl.abs(row), 1))
    parts = ()
    total = tl.zeros((e.shape[0],), tl.float32)
    for c in tl.static_range((D + BD - 1) // BD):
        high, low = _two_parts(query, weight, e, scale, c, E, Q, D, T, BD)
        total += tl.sum(high.to(tl.float32) + low.to(tl.float32), 1)
        if HOLD:
            parts = parts + ((high, low),)
    return scale, total, parts


@triton.jit
def _weights(top, norm, logits, rstd):
    """One tile of an online softmax: weights exp(logits) * rstd, and the norm of exp(logits).

    Both are relative to exp(top), the largest weight so far including rstd, so that no weight
    exceeds 1. Masked logits are -inf. Also returns the factor by which earlier sums shrink.
    """
    logits = logits + tl.log(rstd)[None, :]
    new = tl.maximum(top, tl.max(logits, 1))
    base = tl.where(new == float("-inf"), 0.0, new)
    keep = tl.exp(top - base)
    weights = tl.exp(logits - base[:, None])
    return new, norm * keep + tl.sum(weights / rstd[None, :], 1), keep, weights


@triton.jit
def _add_rows(sums, keep, weights, xs, D: tl.constexpr, BD: tl.constexpr):
    """sums * keep + weights xs, for all experts."""
    chunks = ()
    for c in tl.static_range((D + BD - 1) // BD):
        kept = sums[c] * keep[:, None]
        row = tl.dot(weights.to(xs[c].dtype), xs[c], kept, input_precision="ieee")
        chunks = chunks + (row,)
    return chunks


@triton.jit
def _add_row(sums, keep, weights, active, xs, D: tl.constexpr, BD: tl.constexpr):
    """The same for one expert: the weights of the others are zero."""
    line = tl.sum(weights, 0)
    chunks = ()
    for c in tl.static_range((D + BD - 1) // BD):
        row = tl.sum(xs[c] * line[:, None], 0)
        added = tl.where(active[:, None], row[None, :], 0.0)
        chunks = chunks + (sums[c] * keep[:, None] + added,)
    return chunks


@triton.jit
def _pooled_rows(norm, sums, weight, bias, D: tl.constexpr, ITERATED: tl.constexpr,
                 BD: tl.constexpr):  # fmt: skip
    """Pooled tokens from their sums. A single LayerNorm is completed here: centring, gain, bias."""
    means = ()
    for c in tl.static_range((D + BD - 1) // BD):
        means = means + (sums[c] / norm[:, None],)
    if not ITERATED:
        means = _affine(_centre(means, _mean(means, D, BD), D, BD), weight, bias, D, BD)
    return means


@triton.jit(do_not_specialize=["n"])
def _pool(
    tokens, query, logits, alpha, weight, bias, n, pooled, maps, stats, sums,
    E: tl.constexpr, Q: tl.constexpr, A: tl.constexpr, D: tl.constexpr, EPS: tl.constexpr,
    ITERATED: tl.constexpr, WHOLE: tl.constexpr, SPLIT: tl.constexpr,
    HOLD: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One split of one image: partial sums of both branches, and the semantic logits in `maps`.

    HOLD keeps the query's parts between tiles instead of loading them again for each. With WHOLE
    the split is the image, `pooled` and `maps` (float32) are final, and `stats` and `sums` are
    None. Otherwise `pooled` is None.
    """
    image = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    T: tl.constexpr = tokens.dtype.element_ty
    tokens += image * n * D
    query += image * Q * D
    logits += image * E * n
    maps += image * E * n
    e = tl.arange(0, BE)
    first = 0 if WHOLE else split * SPLIT
    last = n if WHOLE else tl.minimum(first + SPLIT, n)
    if not ITERATED:
        scale, total, parts = _query_parts(query, weight, e, E, Q, D, T, HOLD, BD)

    top1 = tl.full((BE,), float("-inf"), tl.float32)
    top2 = tl.full((BE,), float("-inf"), tl.float32)
    norm1, norm2 = tl.zeros((BE,), tl.float32), tl.zeros((BE,), tl.float32)
    sums1, sums2 = _zeros(BE, D, BD), _zeros(BE, D, BD)
    for start in range(first, last, BN):
        t = start + tl.arange(0, BN)
        inside = t < last
        xs = _load_rows(tokens, t, inside, D, BD)
        if ITERATED:
            ones = tl.full((BN,), 1.0, tl.float32)
            ys = _cast(xs, tl.float32, D, BD)
            for i in range(E):
                hats, _ = _standardise(ys, D, EPS, BD)
                ys = _affine(hats, weight, bias, D, BD)
                line = tl.zeros((BN,), tl.float32)
                for c in tl.static_range((D + BD - 1) // BD):
                    row = _load_chunk(query + (i if Q > 1 else 0) * D, c, D, BD)
                    line += tl.sum(ys[c] * row[None, :], 1)
                tl.store(maps + i * n + t, line, mask=inside)
                own = tl.load(logits + i * n + t, mask=inside, other=0.0).to(tl.float32)
                active = e == i
                live = active[:, None] & inside[None, :]
                own = tl.where(live, own[None, :], float("-inf"))
                line = tl.where(live, line[None, :], float("-inf"))
                top1, norm1, keep, weights = _weights(top1, norm1, own, ones)
                sums1 = _add_row(sums1, keep, weights, active, ys, D, BD)
                top2, norm2, keep, weights = _weights(top2, norm2, line, ones)
                sums2 = _add_row(sums2, keep, weights, active, ys, D, BD)
        else:
            mean = _mean(xs, D, BD)
            centred = _centre(xs, mean, D, BD)
            rstd = 1.0 / tl.sqrt(_mean_product(centred, centred, D, BD) + EPS)
            if T == tl.float32:
                xs = centred
                mean = tl.zeros((BN,), tl.float32)
            grid = e[:, None] * n + t[None, :]
            live = (e < E)[:, None] & inside[None, :]
            semantic = tl.zeros((BE, BN), tl.float32)
            for c in tl.static_range((D + BD - 1) // BD):
                if HOLD:
                    high, low = parts[c]
                else:
                    high, low = _two_parts(query, weight, e, scale, c, E, Q, D, T, BD)
                turned = tl.trans(xs[c])
                semantic = tl.dot(high, turned, semantic, input_precision="ieee")
                if T != tl.float32:
                    semantic = tl.dot(low, turned, semantic)
            semantic -= total[:, None] * mean[None, :]
            semantic *= scale[:, None] * rstd[None, :]
            tl.store(maps + grid, semantic, mask=live)
            own = tl.load(logits + grid, mask=live, other=0.0).to(tl.float32)
            own = tl.where(inside[None, :], own, float("-inf"))
            semantic = tl.where(inside[None, :], semantic, float("-inf"))
            top1, norm1, keep, weights = _weights(top1, norm1, own, rstd)
            sums1 = _add_rows(sums1, keep, weights, xs, D, BD)
            top2, norm2, keep, weights = _weights(top2, norm2, semantic, rstd)
            sums2 = _add_rows(sums2, keep, weights, xs, D, BD)

    if WHOLE:
        a = tl.load(alpha + (e if A > 1 else e * 0), mask=e < E, other=0.0).to(tl.float32)
        norm1, norm2 = tl.where(e < E, norm1, 1.0), tl.where(e < E, norm2, 1.0)
        first_rows = _pooled_rows(norm1, sums1, weight, bias, D, ITERATED, BD)
        second_rows = _pooled_rows(norm2, sums2, weight, bias, D, ITERATED, BD)
        difference = ()
        for c in tl.static_range((D + BD - 1) // BD):
            difference = difference + (first_rows[c] - a[:, None] * second_rows[c],)
        _store_rows(pooled + image * E * D, difference, e, e < E, D, BD)
        lse1, lse2 = top1 + tl.log(norm1), top2 + tl.log(norm2)
        tl.debug_barrier()  # the logits in `maps` were written by other threads
        for start in range(0, n, BN):
            t = start + tl.arange(0, BN)
            grid = e[:, None] * n + t[None, :]
            live = (e < E)[:, None] & (t < n)[None, :]
            own = tl.load(logits + grid, mask=live, other=0.0).to(tl.float32)
            semantic = tl.load(maps + grid, mask=live, other=0.0)
            p = tl.exp(own - lse1[:, None]) - a[:, None] * tl.exp(semantic - lse2[:, None])
            tl.store(maps + grid, p, mask=live)
    else:
        part = image * tl.num_programs(1) + split
        stats += part * 4 * E + e
        tl.store(stats, top1, mask=e < E)
        tl.store(stats + E, norm1, mask=e < E)
        tl.store(stats + 2 * E, top2, mask=e < E)
        tl.store(stats + 3 * E, norm2, mask=e < E)
        _store_rows(sums + part * 2 * E * D, sums1, e, e < E, D, BD)
        _store_rows(sums + (part * 2 + 1) * E * D, sums2, e, e < E, D, BD)


@triton.jit
def _merge(
    stats, sums, splits, weight, bias,
    E: tl.constexpr, D: tl.constexpr, ITERATED: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One expert's splits of one branch, in order: log-sum-exp and the pooled tokens, [BD]."""
    top = tl.load(stats)
    for s in range(1, splits):
        top = tl.maximum(top, tl.load(stats + s * 4 * E))
    d = tl.arange(0, BD)
    norm = 0.0
    row = tl.zeros((BD,), tl.float32)
    for s in range(splits):
        keep = tl.exp(tl.load(stats + s * 4 * E) - top)
        norm += keep * tl.load(stats + s * 4 * E + E)
        row += keep * tl.load(sums + s * 2 * E * D + d, mask=d < D, other=0.0)
    row = row / norm
    if not ITERATED:
        centred = row - tl.sum(row) / D
        row = centred * _load_chunk(weight, 0, D, BD) + _load_chunk(bias, 0, D, BD)
    return top + tl.log(norm), row


@triton.jit(do_not_specialize=["n", "splits"])
def _combine(
    logits, alpha, weight, bias, semantic, stats, sums, n, splits, pooled, maps, means, lse,
    E: tl.constexpr, A: tl.constexpr, D: tl.constexpr, ITERATED: tl.constexpr,
    MAPS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One expert of one image: merge the splits, take the difference; `BD` spans the width."""
    image, i = tl.program_id(0).to(tl.int64), tl.program_id(1)
    stats += image * splits * 4 * E + i
    sums += (image * splits * 2 * E + i) * D
    a = tl.load(alpha + (i if A > 1 else 0)).to(tl.float32)
    lse1, first = _merge(stats, sums, splits, weight, bias, E, D, ITERATED, BD)
    lse2, second = _merge(stats + 2 * E, sums + E * D, splits, weight, bias, E, D, ITERATED, BD)
    d = tl.arange(0, BD)
    pair = image * 2 * E + i
    tl.store(means + pair * D + d, first, mask=d < D)
    tl.store(means + (pair + E) * D + d, second, mask=d < D)
    difference = (first - a * second).to(pooled.dtype.element_ty)
    tl.store(pooled + (image * E + i) * D + d, difference, mask=d < D)
    tl.store(lse + pair, lse1)
    tl.store(lse + pair + E, lse2)
    if MAPS:
        line = (image * E + i) * n
        for start in range(0, n, BT):
            t = start + tl.arange(0, BT)
            own = tl.load(logits + line + t, mask=t < n, other=0.0).to(tl.float32)
            other = tl.load(semantic + line + t, mask=t < n, other=0.0)
            p = tl.exp(own - lse1) - a * tl.exp(other - lse2)
            tl.store(maps + line + t, p.to(maps.dtype.element_ty), mask=t < n)


@triton.jit(do_not_specialize=["n"])
def _deltas(
    logits, semantic, means, lse, grad_pooled, grad_maps, n, deltas,
    E: tl.constexpr, D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """sum_t p_k dL/dp for both softmaxes of one expert: what their gradients are centred by."""
    image, i = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, BD)
    line, pair = (image * E + i) * n, image * 2 * E + i
    grad = tl.load(grad_pooled + (image * E + i) * D + d, mask=d < D, other=0.0).to(tl.float32)
    first = tl.sum(grad * tl.load(means + pair * D + d, mask=d < D, other=0.0))
    second = tl.sum(grad * tl.load(means + (pair + E) * D + d, mask=d < D, other=0.0))
    if grad_maps is not None:
        lse1, lse2 = tl.load(lse + pair), tl.load(lse + pair + E)
        for start in range(0, n, BT):
            t = start + tl.arange(0, BT)
            down = tl.load(grad_maps + line + t, mask=t < n, other=0.0).to(tl.float32)
            own = tl.load(logits + line + t, mask=t < n, other=0.0).to(tl.float32)
            other = tl.load(semantic + line + t, mask=t < n, other=0.0)
            first += tl.sum(tl.exp(own - lse1) * down)
            second += tl.sum(tl.exp(other - lse2) * down)
    tl.store(deltas + pair, first)
    tl.store(deltas + pair + E, second)


@triton.jit(do_not_specialize=["n"])
def _pool_backward(
    tokens, query, logits, alpha, weight, bias, semantic, lse, deltas, grad_pooled, grad_maps, n,
    grad_tokens, grad_logits, grad_query, grad_norm,
    E: tl.constexpr, Q: tl.constexpr, A: tl.constexpr, D: tl.constexpr, EPS: tl.constexpr,
    ITERATED: tl.constexpr, SPLIT: tl.constexpr, BE: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One split of one image; `grad_query` and `grad_norm` hold the sums over this split."""
    image = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    tokens += image * n * D
    query += image * Q * D
    grad_pooled += image * E * D
    line = image * E * n
    e = tl.arange(0, BE)
    pair = image * 2 * E + e
    lse1 = tl.load(lse + pair, mask=e < E, other=0.0)
    lse2 = tl.load(lse + pair + E, mask=e < E, other=0.0)
    delta1 = tl.load(deltas + pair, mask=e < E, other=0.0)
    delta2 = tl.load(deltas + pair + E, mask=e < E, other=0.0)
    a = tl.load(alpha + (e if A > 1 else e * 0), mask=e < E, other=0.0).to(tl.float32)
    first = split * SPLIT
    last = tl.minimum(first + SPLIT, n)
    norms: tl.constexpr = E if ITERATED else 1

    rows = _zeros(BE, D, BD)
    gains, shifts = (), ()
    for _c in tl.static_range((D + BD - 1) // BD):
        gains = gains + (tl.zeros((BD,), tl.float32),)
        shifts = shifts + (tl.zeros((BD,), tl.float32),)
    for start in range(first, last, BN):
        t = start + tl.arange(0, BN)
        inside = t < last
        xs = _cast(_load_rows(tokens, t, inside, D, BD), tl.float32, D, BD)
        down = _zeros(BN, D, BD)  # gradient of what the current LayerNorm gave
        for step in range(norms):
            i = norms - 1 - step
            ys = xs
            for _earlier in range(i):
                hats, _ = _standardise(ys, D, EPS, BD)
                ys = _affine(hats, weight, bias, D, BD)
            hats, rstd = _standardise(ys, D, EPS, BD)
            ys = _affine(hats, weight, bias, D, BD)

            active = (e == i) if ITERATED else (e < E)
            live = active[:, None] & inside[None, :]
            grid = line + e[:, None] * n + t[None, :]
            grad = tl.zeros((BE, BN), tl.float32)
            if grad_maps is not None:
                grad += tl.load(grad_maps + grid, mask=live, other=0.0).to(tl.float32)
            for c in tl.static_range((D + BD - 1) // BD):
                up = _load_tile(grad_pooled, e, active, c, D, BD).to(tl.float32)
                grad = tl.dot(up, tl.trans(ys[c]), grad, input_precision="ieee")
            own = tl.load(logits + grid, mask=live, other=float("-inf")).to(tl.float32)
            other = tl.load(semantic + grid, mask=live, other=float("-inf"))
            p1, p2 = tl.exp(own - lse1[:, None]), tl.exp(other - lse2[:, None])
            own = p1 * (grad - delta1[:, None])
            other = -a[:, None] * p2 * (grad - delta2[:, None])
            tl.store(grad_logits + grid, own.to(grad_logits.dtype.element_ty), mask=live)

            p = tl.trans(p1 - a[:, None] * p2)
            turned = tl.trans(other)
            scaled, new_rows, new_gains, new_shifts = (), (), (), ()
            for c in tl.static_range((D + BD - 1) // BD):
                up = _load_tile(grad_pooled, e, active, c, D, BD).to(tl.float32)
                q = _load_tile(query, e if Q > 1 else e * 0, active, c, D, BD).to(tl.float32)
                row = tl.dot(p, up, down[c], input_precision="ieee")
                row = tl.dot(turned, q, row, input_precision="ieee")
                new_rows = new_rows + (tl.dot(other, ys[c], rows[c], input_precision="ieee"),)
                new_gains = new_gains + (gains[c] + tl.sum(row * hats[c], 0),)
                new_shifts = new_shifts + (shifts[c] + tl.sum(row, 0),)
                scaled = scaled + (row * _load_chunk(weight, c, D, BD)[None, :],)
            rows, gains, shifts = new_rows, new_gains, new_shifts
            along = _mean_product(scaled, hats, D, BD)
            scaled = _centre(scaled, _mean(scaled, D, BD), D, BD)
            down = ()
            for c in tl.static_range((D + BD - 1) // BD):
                down = down + ((scaled[c] - hats[c] * along[:, None]) * rstd[:, None],)
        _store_rows(grad_tokens + image * n * D, down, t, inside, D, BD)

    part = image * tl.num_programs(1) + split
    _store_rows(grad_query + part * E * D, rows, e, e < E, D, BD)
    grad_norm += part * 2 * D
    for c in tl.static_range((D + BD - 1) // BD):
        d = c * BD + tl.arange(0, BD)
        tl.store(grad_norm + d, gains[c], mask=d < D)
        tl.store(grad_norm + D + d, shifts[c], mask=d < D)


# Kernels on one row of a map or one token are bound by latency on every architecture.
ROW_LAUNCH = Launch(4, 1, {"BT": 256}, "not measured; loops over one row, bound by latency")


def _launch(kind: str, iterated: bool, tokens: Tensor) -> Launch:
    kernel = f"differential_pooling_{kind}_{'iterated' if iterated else 'single'}"
    return launch_for(kernel, architecture(tokens.device), tokens.shape[-1], tokens.element_size())


def _splits(n: int, launch: Launch) -> int:
    return triton.cdiv(n, launch.blocks["SPLIT"])


def _pool_constants(
    launch: Launch,
    experts: int,
    queries: int,
    alphas: int,
    width: int,
    eps: float,
    iterated: bool,
) -> dict[str, Any]:
    """Experts and chunks of the width are padded to powers of two, 16 at least for tensor cores."""
    sizes = {"E": experts, "Q": queries, "A": alphas, "D": width, "EPS": eps, "ITERATED": iterated}
    padded, whole = (max(16, triton.next_power_of_2(size)) for size in (experts, width))
    chunk = min(launch.blocks["BD"], whole)
    return sizes | dict(launch.blocks) | {"BE": padded, "BD": chunk}


def _row_constants(experts: int, width: int) -> dict[str, Any]:
    return {"E": experts, "D": width, "BD": triton.next_power_of_2(width)} | dict(ROW_LAUNCH.blocks)


def _combine_constants(
    experts: int, alphas: int, width: int, iterated: bool, with_maps: bool
) -> dict[str, Any]:
    form = {"A": alphas, "ITERATED": iterated, "MAPS": with_maps}
    return _row_constants(experts, width) | form


def forward(
    given: Inputs, eps: float, iterated: bool, with_maps: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward kernels on contiguous tensors with the shapes of `differential_pooling`.

    Returns:
        pooled [B, E, d] and maps [B, E, N] (empty unless `with_maps`) in the query's dtype. For the
        backward, in float32: the semantic logits [B, E, N], the pooled tokens of each softmax
        [B, 2, E, d] and the logarithms of their normalisers [B, 2, E].
    """
    tokens, query, logits, alpha, weight, bias = given
    (batch, n, width), experts = tokens.shape, logits.shape[1]
    launch = _launch("forward", iterated, tokens)
    splits = _splits(n, launch)
    pooled = query.new_empty(batch, experts, width)
    maps = query.new_empty((batch, experts, n) if with_maps else (0,))
    semantic, means, lse, stats, sums = (
        tokens.new_empty(shape, dtype=torch.float32)
        for shape in (
            (batch, experts, n),
            (batch, 2, experts, width),
            (batch, 2, experts),
            (batch, splits, 4, experts),
            (batch, splits, 2, experts, width),
        )
    )
    sizes = (experts, query.shape[1], len(alpha), width, eps)
    constants = _pool_constants(launch, *sizes, iterated)
    _pool[batch, splits](
        tokens, query, logits, alpha, weight, bias, n, None, semantic, stats, sums,
        **constants, WHOLE=False,
        **launch.options,
    )  # fmt: skip
    _combine[batch, experts](
        logits, alpha, weight, bias, semantic, stats, sums, n, splits, pooled, maps, means, lse,
        **_combine_constants(experts, len(alpha), width, iterated, with_maps),
        **ROW_LAUNCH.options,
    )  # fmt: skip
    return pooled, maps, semantic, means, lse


def forward_whole(given: Inputs, eps: float, iterated: bool) -> tuple[Tensor, Tensor]:
    """Pooled tokens and maps, both float32, by the single launch of a TensorRT plugin."""
    tokens, query, logits, alpha, weight, bias = given
    (batch, n, width), experts = tokens.shape, logits.shape[1]
    launch = _launch("whole", iterated, tokens)
    pooled = tokens.new_empty((batch, experts, width), dtype=torch.float32)
    maps = tokens.new_empty((batch, experts, n), dtype=torch.float32)
    sizes = (experts, query.shape[1], len(alpha), width, eps)
    constants = _pool_constants(launch, *sizes, iterated)
    _pool[batch, 1](
        tokens, query, logits, alpha, weight, bias, n, pooled, maps, None, None,
        **constants, WHOLE=True,
        **launch.options,
    )  # fmt: skip
    return pooled, maps


def backward(
    given: Inputs,
    eps: float,
    iterated: bool,
    saved: tuple[Tensor, Tensor, Tensor],
    grad_pooled: Tensor,
    grad_maps: Tensor | None,
) -> Inputs:
    """Gradients of tokens, query, logits, alpha, norm weight and bias, each in its dtype.

    `saved` is what `forward` returned after the maps.
    """
    tokens, query, logits, alpha, weight, bias = given
    (batch, n, width), (experts, queries) = tokens.shape, (logits.shape[1], query.shape[1])
    semantic, means, lse = saved
    launch = _launch("backward", iterated, tokens)
    splits = _splits(n, launch)
    deltas = torch.empty_like(lse)
    grad_tokens, grad_logits = torch.empty_like(tokens), torch.empty_like(logits)
    grad_query = tokens.new_empty((batch, splits, experts, width), dtype=torch.float32)
    grad_norm = tokens.new_empty((batch, splits, 2, width), dtype=torch.float32)
    sizes = (experts, queries, len(alpha), width, eps)
    constants = _pool_constants(launch, *sizes, iterated)
    _deltas[batch, experts](
        logits, semantic, means, lse, grad_pooled, grad_maps, n, deltas,
        **_row_constants(experts, width),
        **ROW_LAUNCH.options,
    )  # fmt: skip
    _pool_backward[batch, splits](
        tokens, query, logits, alpha, weight, bias, semantic, lse, deltas, grad_pooled, grad_maps,
        n, grad_tokens, grad_logits, grad_query, grad_norm,
        **constants,
        **launch.options,
    )  # fmt: skip
    by_expert = grad_query.sum(1)
    grad_alpha = -deltas[:, 1].sum(0)
    return (
        grad_tokens,
        (by_expert if queries > 1 else by_expert.sum(1, keepdim=True)).to(query),
        grad_logits,
        (grad_alpha if len(alpha) > 1 else grad_alpha.sum(0, keepdim=True)).to(alpha),
        grad_norm[:, :, 0].sum((0, 1)).to(weight),
        grad_norm[:, :, 1].sum((0, 1)).to(bias),
    )


EXPERTS = 10  # in DR.Experts
_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
# Dtypes and widths of tokens that are compiled ahead of time: DeiT-III's small and base.
SHIPPED = (
    (torch.float16, 384),
    (torch.float16, 768),
    (torch.bfloat16, 384),
    (torch.float32, 384),
)
CORNER = (torch.float32, 1024)  # needs the most of every resource; too much for a plugin


def specialisations(arch: int) -> Iterator[Specialisation]:
    """Every kernel in the forms that the model launches, with parameters and logits in float32."""
    for iterated in (False, True):
        for dtype, width in SHIPPED:
            yield plugin_specialisation(arch, dtype, width, iterated)
        for dtype, width in (*SHIPPED, CORNER):
            yield _specialisation(_pool, arch, dtype, width, iterated, pooled=None, WHOLE=False)
            yield _specialisation(_pool_backward, arch, dtype, width, iterated)
        for width in (384, 768):
            form = _combine_constants(EXPERTS, EXPERTS, width, iterated, True)
            yield _row_specialisation(_combine, width, iterated, form)
    for width in (384, 768):
        yield _row_specialisation(_deltas, width, False, _row_constants(EXPERTS, width))


def plugin_specialisation(
    arch: int, dtype: torch.dtype, width: int, iterated: bool, alphas: int = EXPERTS
) -> Specialisation:
    """The single-launch forward. Arguments: six inputs, the number of tokens, pooled, maps."""
    return _specialisation(
        _pool, arch, dtype, width, iterated, stats=None, sums=None, A=alphas, WHOLE=True
    )


def _specialisation(
    kernel: Any, arch: int, dtype: torch.dtype, width: int, iterated: bool, **form: Any
) -> Specialisation:
    forward = "whole" if form.get("WHOLE") else "forward"
    kind = "backward" if kernel is _pool_backward else forward
    norm = "iterated" if iterated else "single"
    launch = launch_for(f"differential_pooling_{kind}_{norm}", arch, width, dtype.itemsize)
    sizes = (EXPERTS, EXPERTS, EXPERTS, width, 1e-5)
    constants = _pool_constants(launch, *sizes, iterated) | form
    name = f"differential_pooling_{kind}/{_TYPES[dtype][1:]}/{width}/{norm}"
    return _described(name, kernel, constants, launch, _TYPES[dtype])


def _row_specialisation(
    kernel: Any, width: int, iterated: bool, constants: dict[str, Any]
) -> Specialisation:
    kind = "iterated" if iterated else "single"
    name = f"differential_pooling{kernel.__name__}/fp32/{width}/{kind}"
    return _described(name, kernel, constants, ROW_LAUNCH, "*fp32")


def _described(
    name: str, kernel: Any, constants: dict[str, Any], launch: Launch, tokens: str
) -> Specialisation:
    """Pointers are aligned, and float32 except the tokens and their gradient; sizes are int32."""
    runtime = [argument for argument in kernel.arg_names if argument not in constants]
    types = dict.fromkeys(runtime, "*fp32")
    types |= {size: "i32" for size in ("n", "splits") if size in types}
    types |= {matrix: tokens for matrix in ("tokens", "grad_tokens") if matrix in types}
    aligned = tuple(argument for argument in runtime if types[argument] != "i32")
    return Specialisation(name, kernel, types, constants, aligned, launch)
