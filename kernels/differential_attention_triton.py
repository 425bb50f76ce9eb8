"""Triton kernels of differential attention; the formulas are in differential_attention.py.

A program computes a tile of rows of one head and reads the head dimension in chunks, because a
power-of-two block would pad 384 to 512. Statistics and sums are float32. A log-sum-exp has base 2,
log2(sum_j 2^(s log2(e) S_ij)), for the hardware's exp2. Strides are passed in units of `UNIT`
elements, so that the compiler knows rows to be aligned for every shape.

The gradients of queries, keys and values are separate programs with one accumulator each, so that
a tile of 64 rows fits the registers at d = 384. No two programs add to the same number, so two runs
agree to the bit. Beyond 256 keys the forward stores O2 in float32 memory of O's shape.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from drexperts.kernels.backends import architecture
from drexperts.kernels.launch import Launch, Specialisation, launch_for

SHORT = 256  # keys that fit one tile
UNIT = tl.constexpr(16)
LOG2E = tl.constexpr(math.log2(math.e))


@triton.jit
def _place(length, heads, BLOCK: tl.constexpr):
    """This program's rows, its batch entry, its head, and the index of the pair."""
    tiles = tl.cdiv(length, BLOCK)
    matrix = (tl.program_id(0) // tiles).to(tl.int64)
    rows = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    return rows, matrix // heads, matrix % heads, matrix


@triton.jit
def _load(matrix, row_stride, rows, length, chunk, CHUNK: tl.constexpr, MASKED: tl.constexpr):
    """[rows, CHUNK] of a matrix, zero beyond its length."""
    starts = matrix + rows.to(tl.int64) * row_stride * UNIT
    at = starts[:, None] + (chunk * CHUNK + tl.arange(0, CHUNK))[None, :]
    if MASKED:
        return tl.load(at, mask=(rows < length)[:, None], other=0.0)
    return tl.load(at)


@triton.jit
def _at(matrix, rows, chunk, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Pointers to [rows, CHUNK] of a contiguous matrix."""
    starts = matrix + rows.to(tl.int64) * WIDTH
    return starts[:, None] + (chunk * CHUNK + tl.arange(0, CHUNK))[None, :]


@triton.jit
def _products(
    a, a_row, rows, n, b, b_row, columns, m,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    MASKED: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """A B^T for a tile of rows of each, [ROWS, COLUMNS] float32.

    The loop holds two chunks at a time. Unrolled, the compiler keeps all chunks in shared memory
    and prefetches those of the next tile.
    """
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    if UNROLLED:
        for chunk in tl.static_range(WIDTH // CHUNK):
            left = _load(a, a_row, rows, n, chunk, CHUNK, True)
            right = _load(b, b_row, columns, m, chunk, CHUNK, MASKED)
            products = tl.dot(left, tl.trans(right), products, input_precision="ieee")
    else:
        for chunk in range(WIDTH // CHUNK):
            left = _load(a, a_row, rows, n, chunk, CHUNK, True)
            right = _load(b, b_row, columns, m, chunk, CHUNK, MASKED)
            products = tl.dot(left, tl.trans(right), products, input_precision="ieee")
    return products


@triton.jit
def _softmax(
    q, q_row, k, k_row, rows, n, m,
    SCALE: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """The exact softmax over all keys of a tile of rows, [QUERIES, KEYS], and its log-sum-exp."""
    keys = tl.arange(0, KEYS)
    scores = _products(
        q, q_row, rows, n, k, k_row, keys, m, WIDTH, CHUNK, QUERIES, KEYS, True, False
    )
    scores = tl.where((keys < m)[None, :], scores * (SCALE * LOG2E), float("-inf"))
    peak = tl.max(scores, 1)
    weights = tl.exp2(scores - peak[:, None])
    total = tl.sum(weights, 1)
    return weights / total[:, None], peak + tl.log2(total)


_SHAPE = ["n", "m", "heads"]
_STRIDES = [f"{name}_{axis}" for name in ("q1", "k1", "q2", "k2", "v") for axis in ("b", "h", "r")]


@triton.jit(do_not_specialize=_SHAPE + _STRIDES)
def short_forward(
    q1, k1, q2, k2, v, alpha, out, out2, lse1, lse2, q1_b, q1_h, q1_r, k1_b, k1_h, k1_r, q2_b, q2_h,
    q2_r, k2_b, k2_h, k2_r, v_b, v_h, v_r, n, m, heads,
    SCALE: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, TRAINING: tl.constexpr,
):  # fmt: skip
    """O = (P1 - alpha P2) V with all keys in one tile, and O2 = P2 V if TRAINING."""
    rows, b, h, matrix = _place(n, heads, QUERIES)
    q1 += (b * q1_b + h * q1_h) * UNIT
    k1 += (b * k1_b + h * k1_h) * UNIT
    q2 += (b * q2_b + h * q2_h) * UNIT
    k2 += (b * k2_b + h * k2_h) * UNIT
    v += (b * v_b + h * v_h) * UNIT
    inside = rows < n
    p1, statistic1 = _softmax(q1, q1_r, k1, k1_r, rows, n, m, SCALE, WIDTH, CHUNK, QUERIES, KEYS)
    p2, statistic2 = _softmax(q2, q2_r, k2, k2_r, rows, n, m, SCALE, WIDTH, CHUNK, QUERIES, KEYS)
    difference = (p1 - tl.load(alpha + matrix) * p2).to(v.dtype.element_ty)
    if TRAINING:
        tl.store(lse1 + matrix * n + rows, statistic1, mask=inside)
        tl.store(lse2 + matrix * n + rows, statistic2, mask=inside)
        p2 = p2.to(v.dtype.element_ty)
    out += matrix * n * WIDTH
    out2 += matrix * n * WIDTH
    for chunk in range(WIDTH // CHUNK):
        value = _load(v, v_r, tl.arange(0, KEYS), m, chunk, CHUNK, True)
        block = tl.dot(difference, value, input_precision="ieee").to(out.dtype.element_ty)
        tl.store(_at(out, rows, chunk, WIDTH, CHUNK), block, mask=inside[:, None])
        if TRAINING:
            block2 = tl.dot(p2, value, input_precision="ieee")
            tl.store(_at(out2, rows, chunk, WIDTH, CHUNK), block2, mask=inside[:, None])


@triton.jit
def _first_key(
    q, q_row, k, v, rows, n,
    SCALE: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Base-2 logits against one key, and its value repeated for every row."""
    scores = tl.zeros((QUERIES,), tl.float32)
    blocks = ()
    for chunk in tl.static_range(WIDTH // CHUNK):
        columns = chunk * CHUNK + tl.arange(0, CHUNK)
        query = _load(q, q_row, rows, n, chunk, CHUNK, True).to(tl.float32)
        key = tl.load(k + columns).to(tl.float32)
        value = tl.load(v + columns).to(tl.float32)
        scores += tl.sum(query * key[None, :], 1)
        blocks = blocks + (tl.broadcast_to(value[None, :], (QUERIES, CHUNK)),)
    return scores * (SCALE * LOG2E), blocks


@triton.jit
def _attend(
    q, q_row, k, k_row, v, v_row, rows, n, m,
    SCALE: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, MASKED: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """One branch by the online softmax: blocks [QUERIES, CHUNK] of P V, and the log-sum-exp."""
    # The first token starts the softmax alone, so that whole tiles remain of 1 + 24^2 tokens.
    peak, blocks = _first_key(q, q_row, k, v, rows, n, SCALE, WIDTH, CHUNK, QUERIES)
    total = tl.full((QUERIES,), 1.0, tl.float32)
    for start in range(1, m, KEYS):
        keys = start + tl.arange(0, KEYS)
        scores = _products(
            q, q_row, rows, n, k, k_row, keys, m, WIDTH, CHUNK, QUERIES, KEYS, MASKED, UNROLLED
        )
        scores *= SCALE * LOG2E
        if MASKED:
            scores = tl.where((keys < m)[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        decay = tl.exp2(peak - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * decay + tl.sum(weights, 1)
        peak = higher
        weights = weights.to(v.dtype.element_ty)
        updated = ()
        for chunk in tl.static_range(WIDTH // CHUNK):
            value = _load(v, v_row, keys, m, chunk, CHUNK, MASKED)
            block = blocks[chunk] * decay[:, None]
            updated = updated + (tl.dot(weights, value, block, input_precision="ieee"),)
        blocks = updated
    return blocks, 1.0 / total, peak + tl.log2(total)


@triton.jit(do_not_specialize=_SHAPE + _STRIDES)
def sequential_forward(
    q1, k1, q2, k2, v, alpha, out, out2, lse1, lse2, q1_b, q1_h, q1_r, k1_b, k1_h, k1_r, q2_b, q2_h,
    q2_r, k2_b, k2_h, k2_r, v_b, v_h, v_r, n, m, heads,
    SCALE: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, MASKED: tl.constexpr, UNROLLED: tl.constexpr,
):  # fmt: skip
    """O2 = P2 V, stored in memory, then O = P1 V - alpha O2: one accumulator at a time."""
    rows, b, h, matrix = _place(n, heads, QUERIES)
    q1 += (b * q1_b + h * q1_h) * UNIT
    k1 += (b * k1_b + h * k1_h) * UNIT
    q2 += (b * q2_b + h * q2_h) * UNIT
    k2 += (b * k2_b + h * k2_h) * UNIT
    v += (b * v_b + h * v_h) * UNIT
    out += matrix * n * WIDTH
    out2 += matrix * n * WIDTH
    inside = rows < n
    blocks, inverse, statistic = _attend(
        q2, q2_r, k2, k2_r, v, v_r, rows, n, m, SCALE, WIDTH, CHUNK, QUERIES, KEYS, MASKED,
        UNROLLED,
    )  # fmt: skip
    tl.store(lse2 + matrix * n + rows, statistic, mask=inside)
    for chunk in tl.static_range(WIDTH // CHUNK):
        block = blocks[chunk] * inverse[:, None]
        tl.store(_at(out2, rows, chunk, WIDTH, CHUNK), block, mask=inside[:, None])
    blocks, inverse, statistic = _attend(
        q1, q1_r, k1, k1_r, v, v_r, rows, n, m, SCALE, WIDTH, CHUNK, QUERIES, KEYS, MASKED,
        UNROLLED,
    )  # fmt: skip
    tl.store(lse1 + matrix * n + rows, statistic, mask=inside)
    weight = tl.load(alpha + matrix)
    tl.debug_barrier()  # other threads stored what this one reads
    for chunk in tl.static_range(WIDTH // CHUNK):
        parked = tl.load(_at(out2, rows, chunk, WIDTH, CHUNK), mask=inside[:, None], other=0.0)
        block = blocks[chunk] * inverse[:, None] - weight * parked
        block = block.to(out.dtype.element_ty)
        tl.store(_at(out, rows, chunk, WIDTH, CHUNK), block, mask=inside[:, None])


@triton.jit(do_not_specialize=["n", "heads", "g_b", "g_h", "g_r"])
def row_gradient(
    g, out, out2, alpha, delta1, delta2, g_b, g_h, g_r, n, heads,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """delta2 = rowsum(G * O2) and delta1 = rowsum(G * O1), from O1 = O + alpha O2."""
    rows, b, h, matrix = _place(n, heads, QUERIES)
    g += (b * g_b + h * g_h) * UNIT
    out += matrix * n * WIDTH
    out2 += matrix * n * WIDTH
    inside = rows < n
    whole = tl.zeros((QUERIES,), tl.float32)
    second = tl.zeros((QUERIES,), tl.float32)
    for chunk in range(WIDTH // CHUNK):
        slope = _load(g, g_r, rows, n, chunk, CHUNK, True).to(tl.float32)
        block = tl.load(_at(out, rows, chunk, WIDTH, CHUNK), mask=inside[:, None], other=0.0)
        block2 = tl.load(_at(out2, rows, chunk, WIDTH, CHUNK), mask=inside[:, None], other=0.0)
        whole += tl.sum(slope * block.to(tl.float32), 1)
        second += tl.sum(slope * block2, 1)
    first = whole + tl.load(alpha + matrix) * second
    tl.store(delta1 + matrix * n + rows, first, mask=inside)
    tl.store(delta2 + matrix * n + rows, second, mask=inside)


_PAIRS = [f"{name}_{axis}" for name in ("sr", "sc", "pr", "pc") for axis in ("b", "h", "r")]


@triton.jit(do_not_specialize=["rows_length", "columns_length", "heads", *_PAIRS])
def logit_gradient(
    sr, sc, pr, pc, weight, lse, delta, gradient, sr_b, sr_h, sr_r, sc_b, sc_h, sc_r, pr_b, pr_h,
    pr_r, pc_b, pc_h, pc_r, rows_length, columns_length, heads,
    SCALE: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, OF_KEYS: tl.constexpr,
):  # fmt: skip
    """Gradient of one branch's queries, or of its keys if OF_KEYS: s w (P * (dP - delta)) sc.

    S = sr sc^T and dP = pr pc^T. For queries the rows are (Q, G) and the columns (K, V). For keys
    they change places, everything is transposed, and the statistics belong to the columns.
    """
    rows, b, h, matrix = _place(rows_length, heads, ROWS)
    sr += (b * sr_b + h * sr_h) * UNIT
    sc += (b * sc_b + h * sc_h) * UNIT
    pr += (b * pr_b + h * pr_h) * UNIT
    pc += (b * pc_b + h * pc_h) * UNIT
    inside = rows < rows_length
    if not OF_KEYS:
        row_lse = tl.load(lse + matrix * rows_length + rows, mask=inside, other=float("inf"))
        row_delta = tl.load(delta + matrix * rows_length + rows, mask=inside, other=0.0)
    blocks = ()
    for _ in tl.static_range(WIDTH // CHUNK):
        blocks = blocks + (tl.zeros((ROWS, CHUNK), tl.float32),)
    for start in range(0, columns_length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        scores = _products(
            sr, sr_r, rows, rows_length, sc, sc_r, columns, columns_length, WIDTH, CHUNK, ROWS,
            COLUMNS, True, False,
        )  # fmt: skip
        slopes = _products(
            pr, pr_r, rows, rows_length, pc, pc_r, columns, columns_length, WIDTH, CHUNK, ROWS,
            COLUMNS, True, False,
        )  # fmt: skip
        scores *= SCALE * LOG2E
        known = columns < columns_length
        if OF_KEYS:
            place = matrix * columns_length + columns
            probability = tl.exp2(scores - tl.load(lse + place, mask=known, other=0.0)[None, :])
            slopes -= tl.load(delta + place, mask=known, other=0.0)[None, :]
        else:
            probability = tl.exp2(scores - row_lse[:, None])
            slopes -= row_delta[:, None]
        # A column beyond the last has S = 0, whose power of two may overflow: infinity times zero.
        slopes = tl.where(known[None, :], probability * slopes, 0.0).to(sc.dtype.element_ty)
        updated = ()
        for chunk in tl.static_range(WIDTH // CHUNK):
            column = _load(sc, sc_r, columns, columns_length, chunk, CHUNK, True)
            updated = updated + (tl.dot(slopes, column, blocks[chunk], input_precision="ieee"),)
        blocks = updated
    factor = SCALE * tl.load(weight + matrix)
    gradient += matrix * rows_length * WIDTH
    for chunk in tl.static_range(WIDTH // CHUNK):
        block = (blocks[chunk] * factor).to(gradient.dtype.element_ty)
        tl.store(_at(gradient, rows, chunk, WIDTH, CHUNK), block, mask=inside[:, None])


_VALUE_STRIDES = [
    f"{name}_{axis}" for name in ("q1", "k1", "q2", "k2", "g") for axis in ("b", "h", "r")
]


@triton.jit(do_not_specialize=_SHAPE + _VALUE_STRIDES)
def value_gradient(
    q1, k1, q2, k2, g, alpha, lse1, lse2, gradient, q1_b, q1_h, q1_r, k1_b, k1_h, k1_r, q2_b, q2_h,
    q2_r, k2_b, k2_h, k2_r, g_b, g_h, g_r, n, m, heads,
    SCALE: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """dV = (P1 - alpha P2)^T G for a tile of keys."""
    keys, b, h, matrix = _place(m, heads, KEYS)
    q1 += (b * q1_b + h * q1_h) * UNIT
    k1 += (b * k1_b + h * k1_h) * UNIT
    q2 += (b * q2_b + h * q2_h) * UNIT
    k2 += (b * k2_b + h * k2_h) * UNIT
    g += (b * g_b + h * g_h) * UNIT
    weight = tl.load(alpha + matrix)
    blocks = ()
    for _ in tl.static_range(WIDTH // CHUNK):
        blocks = blocks + (tl.zeros((KEYS, CHUNK), tl.float32),)
    for start in range(0, n, QUERIES):
        queries = start + tl.arange(0, QUERIES)
        place, known = matrix * n + queries, queries < n
        # An infinite log-sum-exp gives queries beyond the last the probability zero.
        first = tl.load(lse1 + place, mask=known, other=float("inf"))
        second = tl.load(lse2 + place, mask=known, other=float("inf"))
        scores = _products(
            k1, k1_r, keys, m, q1, q1_r, queries, n, WIDTH, CHUNK, KEYS, QUERIES, True, False
        )
        difference = tl.exp2(scores * (SCALE * LOG2E) - first[None, :])
        scores = _products(
            k2, k2_r, keys, m, q2, q2_r, queries, n, WIDTH, CHUNK, KEYS, QUERIES, True, False
        )
        difference -= weight * tl.exp2(scores * (SCALE * LOG2E) - second[None, :])
        difference = difference.to(g.dtype.element_ty)
        updated = ()
        for chunk in tl.static_range(WIDTH // CHUNK):
            slope = _load(g, g_r, queries, n, chunk, CHUNK, True)
            updated = updated + (tl.dot(difference, slope, blocks[chunk], input_precision="ieee"),)
        blocks = updated
    gradient += matrix * m * WIDTH
    for chunk in tl.static_range(WIDTH // CHUNK):
        block = blocks[chunk].to(gradient.dtype.element_ty)
        tl.store(_at(gradient, keys, chunk, WIDTH, CHUNK), block, mask=(keys < m)[:, None])


# Tensors in float32; all others have the query's dtype.
FLOAT32 = ("alpha", "weight", "out2", "lse", "lse1", "lse2", "delta", "delta1", "delta2")
# The compiled forms by name: the constants that a call chooses.
FORMS: Mapping[Any, Mapping[str, Mapping[str, bool]]] = {
    short_forward: {"inference": {"TRAINING": False}, "training": {"TRAINING": True}},
    sequential_forward: {"whole": {"MASKED": False}, "ragged": {"MASKED": True}},
    row_gradient: {"any": {}},
    logit_gradient: {"queries": {"OF_KEYS": False}, "keys": {"OF_KEYS": True}},
    value_gradient: {"any": {}},
}


def forward(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor, scale: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """O in the query's dtype; O2 and both log-sum-exps in float32, complete only if `training`."""
    n, m = q1.shape[-2], k1.shape[-2]
    short = m <= SHORT
    kernel = short_forward if short else sequential_forward
    out = q1.new_empty(q1.shape)
    out2 = _float32(q1, (0,) if short and not training else q1.shape)
    lse1, lse2 = (_float32(q1, q1.shape[:-1]) for _ in range(2))
    launch = _launch_of(kernel, q1)
    ragged = (m - 1) % launch.blocks["KEYS"] != 0
    form = {"TRAINING": training} if short else {"MASKED": ragged}
    arguments = _arguments((q1, k1, q2, k2, v), (alpha, out, out2, lse1, lse2))
    _run(kernel, launch, q1, (n, launch.blocks["QUERIES"]), (*arguments, n, m), scale, form)
    return out, out2, lse1, lse2


def backward(
    g: Tensor, q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, alpha: Tensor, out:
    Tensor, out2: Tensor, lse1: Tensor, lse2: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q1, k1, q2, k2, v, and of alpha in float32."""
    delta1, delta2 = _row_gradients(g, out, out2, alpha)
    first = torch.ones_like(alpha), lse1, delta1
    second = -alpha, lse2, delta2
    return (
        _logit_gradient(q1, k1, g, v, *first, scale, of_keys=False),
        _logit_gradient(k1, q1, v, g, *first, scale, of_keys=True),
        _logit_gradient(q2, k2, g, v, *second, scale, of_keys=False),
        _logit_gradient(k2, q2, v, g, *second, scale, of_keys=True),
        _value_gradient(q1, k1, q2, k2, g, alpha, lse1, lse2, scale),
        -delta2.sum(-1),
    )


def specialisations(arch: int) -> Iterator[Specialisation]:
    """Every rule of the launch table at its width and the scale d**-0.5, and bfloat16 at 384."""
    for dtype, itemsize, widths in (
        ("fp16", 2, (128, 384, 1024)),
        ("bf16", 2, (384,)),
        ("fp32", 4, (384, 1024)),
    ):
        for width, (kernel, forms) in itertools.product(widths, FORMS.items()):
            name = kernel.fn.__name__
            launch = launch_for(f"differential_attention_{name}", arch, width, itemsize)
            signature = _signature(kernel, dtype)
            aligned = tuple(key for key, kind in signature.items() if kind.startswith("*"))
            for form, chosen in forms.items():
                yield Specialisation(
                    f"differential_attention_{name}/{dtype}/{width}/{form}",
                    kernel,
                    signature,
                    _constants(kernel, launch, width, width**-0.5, chosen),
                    aligned,
                    launch,
                )


def _row_gradients(g: Tensor, out: Tensor, out2: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    delta1, delta2 = (_float32(out, out.shape[:-1]) for _ in range(2))
    launch, n = _launch_of(row_gradient, out), out.shape[-2]
    arguments = _arguments((g,), (out, out2, alpha, delta1, delta2))
    _run(row_gradient, launch, out, (n, launch.blocks["QUERIES"]), (*arguments, n), 1.0, {})
    return delta1, delta2


def _logit_gradient(
    sr: Tensor, sc: Tensor, pr: Tensor, pc: Tensor, weight: Tensor, lse: Tensor, delta: Tensor,
    scale: float, of_keys: bool,
) -> Tensor:  # fmt: skip
    gradient = sr.new_empty(sr.shape)
    launch, rows, columns = _launch_of(logit_gradient, sr), sr.shape[-2], sc.shape[-2]
    arguments = (*_arguments((sr, sc, pr, pc), (weight, lse, delta, gradient)), rows, columns)
    tile, form = launch.blocks["ROWS"], {"OF_KEYS": of_keys}
    _run(logit_gradient, launch, sr, (rows, tile), arguments, scale, form)
    return gradient


def _value_gradient(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, g: Tensor, alpha: Tensor, lse1: Tensor, lse2:
    Tensor, scale: float,
) -> Tensor:  # fmt: skip
    gradient = k1.new_empty(k1.shape)
    launch, n, m = _launch_of(value_gradient, k1), q1.shape[-2], k1.shape[-2]
    arguments = (*_arguments((q1, k1, q2, k2, g), (alpha, lse1, lse2, gradient)), n, m)
    _run(value_gradient, launch, k1, (m, launch.blocks["KEYS"]), arguments, scale, {})
    return gradient


def _float32(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _arguments(matrices: Sequence[Tensor], others: Sequence[Tensor]) -> list[Any]:
    """All tensors, then the strides of `matrices` by batch entry, head and row in units."""
    views = [_aligned(matrix) for matrix in matrices]
    strides = [stride // UNIT.value for view in views for stride in view.stride()[:3]]
    return [*views, *others, *strides]


def _aligned(matrix: Tensor) -> Tensor:
    """The tensor as [batch, heads, rows, d], copied if the kernels could not address it."""
    view = _with_heads(matrix)
    *strides, last = view.stride()
    if last == 1 and view.data_ptr() % 16 == 0 and all(s % UNIT.value == 0 for s in strides):
        return view
    return view.clone(memory_format=torch.contiguous_format)


def _with_heads(matrix: Tensor) -> Tensor:
    missing = 4 - matrix.ndim
    return matrix[(None,) * missing] if missing > 0 else matrix.flatten(0, -missing)


def _launch_of(kernel: Any, example: Tensor) -> Launch:
    name = f"differential_attention_{kernel.fn.__name__}"
    return launch_for(name, architecture(example.device), example.shape[-1], example.element_size())


def _constants(
    kernel: Any, launch: Launch, width: int, scale: float, form: Mapping[str, bool]
) -> dict[str, Any]:
    """A kernel's compile-time arguments, with a chunk that divides the width."""
    chunk = math.gcd(width, launch.blocks["CHUNK"])
    given = {"SCALE": scale, "WIDTH": width, **launch.blocks, "CHUNK": chunk, **form}
    return {name: value for name, value in given.items() if name in kernel.arg_names}


def _signature(kernel: Any, dtype: str) -> dict[str, str]:
    """Types of the runtime arguments, in order."""
    types = {}
    for parameter in kernel.params:
        if not parameter.is_constexpr:
            pointer = "*fp32" if parameter.name in FLOAT32 else f"*{dtype}"
            types[parameter.name] = "i32" if parameter.do_not_specialize else pointer
    return types


def _run(
    kernel: Any,
    launch: Launch,
    example: Tensor,
    rows: tuple[int, int],
    arguments: Sequence[Any],
    scale: float,
    form: Mapping[str, bool],
) -> None:
    """Launch one program per tile of each matrix; `rows` is (number of rows, rows per tile)."""
    batch, heads, _, width = _with_heads(example).shape
    programs = batch * heads * triton.cdiv(*rows)
    constants = _constants(kernel, launch, width, scale, form)
    if programs:
        with torch.cuda.device_of(example):
            kernel[(programs,)](*arguments, heads, **constants, **launch.options)
