"""The pooling operation: the reference against its formula, the kernels against float64.

The kernels are interpreted on a CPU. With `TRITON_INTERPRET=0` they run on a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from drexperts.kernels import differential_pooling
from drexperts.kernels.backends import interpreted
from drexperts.kernels.differential_pooling import ARGUMENTS as NAMES
from drexperts.kernels.differential_pooling import Inputs
from drexperts.runtime.errors import ArgumentError, BackendError

pytestmark = pytest.mark.usefixtures("poisoned")  # what a kernel does not write is NaN
slow = pytest.mark.slow
DEVICE = "cuda" if torch.cuda.is_available() and not interpreted() else "cpu"
NORMS = pytest.mark.parametrize("iterated", [False, True], ids=["single", "iterated"])

# Root mean square of the error over that of the float64 result.
LIMITS = {
    # Twice the largest error of these tests: logits near 10 have errors of 1e-6.
    torch.float32: 1e-5,
    # Weights and normalised tokens are rounded to 11 bits, by 2.4e-4 each.
    torch.float16: 1e-3,
    # The same with 8 bits.
    torch.bfloat16: 8e-3,
}
DTYPES = pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        pytest.param(
            torch.bfloat16,
            marks=pytest.mark.skipif(
                DEVICE == "cpu", reason="Triton's interpreter miscomputes bfloat16: needs a GPU"
            ),
        ),
    ],
    ids=["fp32", "fp16", "bf16"],
)


def case(tokens: int, queries: int = 3) -> Inputs:
    """Two images, three experts and width 8, in float64."""
    torch.manual_seed(tokens)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    tensors = leaf(2, tokens, 8), leaf(2, queries, 8), leaf(2, 3, tokens)
    return (*tensors, leaf(3), leaf(8), leaf(8))


def inputs(
    batch: int,
    tokens: int,
    width: int,
    experts: int = 10,
    *,
    shared: bool = False,
    alpha: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Values of the size of a trained model's: off-centre tokens, logits near 10, gains near 1."""
    generator = torch.Generator().manual_seed(1000 * tokens + width)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows = 1 if shared else experts
    given = [
        (2 * draw(batch, tokens, width) + 1).to(dtype),
        draw(batch, rows, width) * 3 * width**-0.5,
        draw(batch, experts, tokens) * 3,
        draw(rows) if alpha is None else torch.full((rows,), alpha),
        1 + 0.1 * draw(width),
        0.1 * draw(width),
    ]
    return [x.to(DEVICE) for x in given]


def doubled(given: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in given]


def error(got: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, relative to that of `expected` or at least to 0.1."""
    difference = (got.detach().double() - expected.detach()).square().mean().sqrt()
    return float(difference / expected.detach().square().mean().sqrt().clamp_min(0.1))


def pool(given: Sequence[Tensor], iterated: bool, backend: str = "triton") -> tuple[Tensor, Tensor]:
    return differential_pooling(*pack(given), iterated=iterated, backend=backend)


def pack(given: Sequence[Tensor]) -> Inputs:
    tokens, query, logits, alpha, weight, bias = given
    return tokens, query, logits, alpha, weight, bias


def compare(given: list[Tensor], iterated: bool, *, gradients: bool = True) -> None:
    """Compare results and gradients of the kernels with those of the reference in float64."""
    limit = LIMITS[given[0].dtype]
    leaves, exact = [x.detach().requires_grad_() for x in given], doubled(given)
    got = pool(leaves, iterated)
    expected = pool(exact, iterated, "reference")
    for name, x, y in zip(("pooled", "maps"), got, expected, strict=True):
        assert x.dtype == given[1].dtype
        assert error(x, y) <= limit, name
    if gradients:
        down = [torch.randn_like(x) for x in got]
        ours = torch.autograd.grad(got, leaves, down)
        theirs = torch.autograd.grad(expected, exact, [x.double() for x in down])
        for name, x, y, leaf in zip(NAMES, ours, theirs, leaves, strict=True):
            assert (x.shape, x.dtype) == (leaf.shape, leaf.dtype)
            assert error(x, y) <= 2 * limit, name


# The reference.


def formula(given: Inputs, iterated: bool) -> tuple[Tensor, Tensor]:
    tokens, query, logits, alpha, weight, bias = given
    pooled, maps = torch.empty(2, 3, 8).double(), torch.empty_like(logits)
    for b in range(2):
        y = tokens[b]
        for i in range(3):
            if i == 0 or iterated:
                y = F.layer_norm(y, (8,), weight, bias)
            semantic = torch.softmax(y @ query[b, i % query.shape[1]], 0)
            maps[b, i] = torch.softmax(logits[b, i], 0) - alpha[i % len(alpha)] * semantic
            pooled[b, i] = (maps[b, i, :, None] * y).sum(0)
    return pooled, maps


@pytest.mark.parametrize("tokens", [1, 2, 17, 65])
@pytest.mark.parametrize("queries", [1, 3])
@NORMS
def test_formula(tokens, queries, iterated):
    given = case(tokens, queries=queries)
    with torch.no_grad():
        got = differential_pooling(*given, iterated=iterated)
        torch.testing.assert_close(got, formula(given, iterated))


def test_one_query_and_one_alpha_serve_all_experts():
    tokens, query, logits, alpha, weight, bias = case(9, queries=1)
    got = differential_pooling(tokens, query, logits, alpha[:1], weight, bias)
    expected = differential_pooling(
        tokens, query.expand(-1, 3, -1), logits, alpha[:1].expand(3), weight, bias
    )
    torch.testing.assert_close(got, expected)


@NORMS
def test_gradients(iterated):
    given = case(5)
    assert torch.autograd.gradcheck(lambda *a: pool(a, iterated, "reference"), given)


def test_extreme_logits_and_constant_rows_stay_finite():
    tokens, query, logits, *rest = (t.detach() for t in case(9))
    tokens[0] = 3.0  # every row constant: its LayerNorm is the bias alone
    pooled, maps = pool([tokens, query * 1e4, logits * 1e4, *rest], False, "reference")
    assert pooled.isfinite().all()
    assert maps.isfinite().all()


def test_the_reference_computes_in_float32_under_autocast():
    given = pack(inputs(1, 20, 16))
    expected = differential_pooling(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(differential_pooling(*given), expected, rtol=0, atol=0)


# The kernels.


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@NORMS
@pytest.mark.slow
def test_kernels_at_any_number_of_tokens(tokens, dtype, iterated):
    compare(inputs(2, tokens, 64, experts=3, dtype=dtype), iterated)


@pytest.mark.parametrize(
    ("iterated", "width"),
    [(False, 8), (False, 40), (False, 128), (False, 384), (False, 768), (True, 8), (True, 40)]
    + [pytest.param(True, width, marks=slow) for width in (128, 384, 768)],
)
@DTYPES
@pytest.mark.slow
def test_kernels_at_any_width(width, dtype, iterated):
    compare(inputs(1, 33, width, experts=4, dtype=dtype), iterated)


@slow
@pytest.mark.parametrize("tokens", [197, 577])
@NORMS
def test_kernels_at_the_models_shape(tokens, iterated):
    # The interpreter would take minutes for the gradients of ten chains of LayerNorm.
    compare(inputs(1, tokens, 384, dtype=torch.float16), iterated, gradients=not iterated)


@pytest.mark.parametrize("alpha", [0.0, 0.37, 1.0, -0.5])
@pytest.mark.parametrize("shared", [False, True])
@NORMS
def test_kernels_at_any_alpha(alpha, shared, iterated):
    compare(inputs(2, 9, 40, experts=3, alpha=alpha, shared=shared), iterated)


@pytest.mark.parametrize("experts", [1, 16])
@NORMS
@pytest.mark.slow
def test_kernels_at_any_number_of_experts(experts, iterated):
    compare(inputs(1, 18, 32, experts), iterated)


@pytest.mark.parametrize("split", [16, 48, 1000])
@NORMS
@pytest.mark.slow
def test_the_splits_do_not_show(split, iterated, monkeypatch):
    from drexperts.kernels import differential_pooling_triton as kernels

    def splits(n: int, launch: object) -> int:
        return -(-n // split)

    def constants(*args: Any) -> dict[str, Any]:
        return whole(*args) | {"SPLIT": split}

    whole: Callable[..., dict[str, Any]] = kernels._pool_constants
    monkeypatch.setattr(kernels, "_splits", splits)
    monkeypatch.setattr(kernels, "_pool_constants", constants)
    compare(inputs(1, 100, 64, experts=3), iterated)


@NORMS
@pytest.mark.slow
def test_empty_splits_are_neutral(iterated, monkeypatch):
    from drexperts.kernels import differential_pooling_triton as kernels

    def run() -> tuple[Tensor, ...]:
        leaves = [x.requires_grad_() for x in inputs(2, 30, 64, experts=3)]
        pooled, maps = pool(leaves, iterated)
        return pooled, maps, *torch.autograd.grad((pooled.sum() + maps.square().sum(),), leaves)

    expected = run()
    monkeypatch.setattr(kernels, "_splits", lambda n, launch: 4)
    for got, wanted in zip(run(), expected, strict=True):
        assert torch.equal(got, wanted)


@NORMS
def test_one_launch_gives_the_same(iterated):
    from drexperts.kernels.differential_pooling_triton import forward_whole

    given = inputs(2, 70, 64, experts=3, dtype=torch.float16)
    got = forward_whole(pack(given), 1e-5, iterated)
    expected = pool(doubled(given), iterated, "reference")
    for x, y in zip(got, expected, strict=True):
        assert error(x, y) <= LIMITS[torch.float16]


@NORMS
def test_kernels_on_constant_rows(iterated):
    given = inputs(2, 40, 64, experts=3)
    given[0][0] = 3.0
    given[0][1, 5:9] = -7.0
    compare(given, iterated, gradients=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@NORMS
def test_kernels_on_extreme_logits(dtype, iterated):
    given = inputs(1, 40, 64, experts=3, dtype=dtype)
    given[1] *= 1e5  # beyond float16's largest number
    given[2] *= 1e5
    compare(given, iterated, gradients=False)


def test_kernels_leave_out_tokens_of_minus_infinity():
    given = inputs(1, 70, 64, experts=3)
    given[2][:, :, :40] = float("-inf")  # more than the first tile
    compare(given, iterated=False, gradients=False)


def test_kernels_on_tokens_of_very_different_size():
    given = inputs(1, 40, 64, experts=3, dtype=torch.float16)
    given[0][:, ::2] *= 1000
    compare(given, iterated=False, gradients=False)


@NORMS
def test_kernels_on_views(iterated):
    tokens, query, logits, alpha, weight, bias = inputs(2, 20, 64, experts=3)
    views = (
        tokens.mT.contiguous().mT,
        query[:1].expand(2, -1, -1),
        logits.transpose(0, 1).contiguous().transpose(0, 1),
        alpha[:1].expand(3),
        torch.stack((weight, weight), 1)[:, 0],
        bias,
    )
    assert not any(view.is_contiguous() for view in views[:-1])
    compare(list(views), iterated)


@pytest.mark.parametrize("which", [0, 1])
def test_kernels_with_one_gradient_only(which):
    given = inputs(1, 20, 64, experts=3)
    leaves, exact = [x.requires_grad_() for x in given], doubled(given)
    got, expected = pool(leaves, False)[which], pool(exact, False, "reference")[which]
    down = torch.randn_like(got)
    # The maps do not depend on the bias, whose gradient is None here and zero there.
    ours = torch.autograd.grad(got, leaves, down, materialize_grads=True)
    theirs = torch.autograd.grad(expected, exact, down.double(), materialize_grads=True)
    for x, y in zip(ours[:5], theirs[:5], strict=True):
        assert error(x, y) <= 2 * LIMITS[torch.float32]


@NORMS
def test_without_maps(iterated):
    given = inputs(1, 20, 64, experts=3)
    for backend in ("reference", "triton"):
        leaves = [x.clone().requires_grad_() for x in given]
        pooled, _ = pool(leaves, iterated, backend)
        alone, nothing = differential_pooling(
            *pack(leaves), backend=backend, iterated=iterated, return_maps=False
        )
        assert nothing is None
        assert torch.equal(alone, pooled)
        torch.testing.assert_close(
            torch.autograd.grad(alone.sum(), leaves), torch.autograd.grad(pooled.sum(), leaves)
        )


@pytest.mark.parametrize("iterated", [False, pytest.param(True, marks=slow)])
@pytest.mark.slow
def test_an_images_numbers_depend_neither_on_the_run_nor_on_its_batch(iterated):
    def run(given: list[Tensor]) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in given]
        pooled, maps = pool(leaves, iterated)
        loss = pooled.square().sum() + maps.square().sum()
        return [pooled, maps, *torch.autograd.grad(loss, leaves[:3])]

    given = inputs(3, 170, 32, experts=3, dtype=torch.float16)  # two splits
    together = run(given)
    assert all(torch.equal(x, y) for x, y in zip(together, run(given), strict=True))
    alone = run([*(x[1:2] for x in given[:3]), *given[3:]])
    assert all(torch.equal(x[1:2], y) for x, y in zip(together, alone, strict=True))


@pytest.mark.parametrize("backend", ["reference", "triton"])
@NORMS
def test_an_empty_batch(backend, iterated):
    given = inputs(0, 20, 64, experts=3)
    leaves = [x.requires_grad_() for x in given]
    pooled, maps = pool(leaves, iterated, backend)
    assert pooled.shape == (0, 3, 64)
    assert maps.shape == (0, 3, 20)
    for leaf, grad in zip(leaves, torch.autograd.grad(pooled.sum(), leaves), strict=True):
        assert grad.shape == leaf.shape
        assert not grad.any()


@NORMS
@pytest.mark.slow
def test_opcheck(iterated):
    given = [x.requires_grad_() for x in inputs(2, 5, 16, experts=3)]
    operation = torch.ops.drexperts.differential_pooling.default
    torch.library.opcheck(operation, (*given, 1e-5, iterated, True))


@pytest.mark.slow
def test_compiled_it_has_the_same_values_and_gradients():
    def run(*given: Tensor) -> Tensor:
        return differential_pooling(*pack(given), backend="triton")[0].sin()

    given = [x.requires_grad_() for x in inputs(2, 20, 32, experts=3)]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), run(*given))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*given).sum(), given),
        torch.autograd.grad(run(*given).sum(), given),
    )


# Wrong use.


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokens", lambda x: x[0]),
        ("tokens", lambda x: x[:, :0]),
        ("query", lambda x: x[:, :2]),
        ("query", lambda x: x[..., :32]),
        ("query", lambda x: x[:1]),
        ("distortion_logits", lambda x: x[:, :, :-1]),
        ("distortion_logits", lambda x: x[:, :0]),
        ("alpha", lambda x: x[:2]),
        ("alpha", lambda x: x.sum()),
        ("alpha", lambda x: x.to("meta")),
        ("norm_weight", lambda x: x[:-1]),
        ("norm_weight", lambda x: x.int()),
        ("query", lambda x: x.to(torch.float8_e4m3fn)),
        ("norm_bias", lambda x: x[None]),
        ("norm_bias", lambda x: x.double()),
        ("tokens", lambda x: x.double()),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_an_argument_that_does_not_fit_is_named(name, change, backend):
    given = dict(zip(NAMES, inputs(2, 20, 64, experts=3), strict=True))
    given[name] = change(given[name])
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        pool([*given.values()], False, backend)


def test_an_argument_of_another_type_is_named():
    tokens, query, logits, _, weight, bias = inputs(1, 20, 64, experts=3)
    wrong: Any = 0.5
    with pytest.raises(ArgumentError, match=r"^alpha: .*float"):
        differential_pooling(tokens, query, logits, wrong, weight, bias)
    with pytest.raises(ArgumentError, match=r"^eps: .*0\.0"):
        differential_pooling(tokens, query, logits, logits[0, :, 0], weight, bias, eps=0.0)


@pytest.mark.parametrize(
    ("width", "experts", "name"), [(1040, 3, "tokens: .*1040"), (64, 17, "distortion_logits: .*17")]
)
def test_what_exceeds_the_kernels_is_named(width, experts, name):
    with pytest.raises(ArgumentError, match=f"^{name}"):
        pool(inputs(1, 2, width, experts), False)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU runs some of these")
def test_a_backend_that_cannot_run_is_an_error(monkeypatch):
    given = inputs(1, 20, 64, experts=3)
    with pytest.raises(ArgumentError, match=r"^backend: 'cuda'.* reference, triton"):
        pool(given, False, "cuda")
    with pytest.raises(BackendError, match="float64"):
        pool(doubled(given), False)
    with pytest.raises(BackendError, match="bfloat16"):
        pool([given[0].bfloat16(), *given[1:]], False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match=r"cpu.*'reference'"):
        pool(given, False)
