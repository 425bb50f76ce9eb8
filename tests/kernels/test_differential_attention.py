"""Differential attention against its definition in float64; the kernels in Triton's interpreter."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from drexperts.kernels import launch
from drexperts.kernels.differential_attention import differential_attention as _attention
from drexperts.runtime.errors import ArgumentError, BackendError

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
differential_attention: Callable[..., Tensor] = _attention
pytestmark = pytest.mark.usefixtures("poisoned")  # what a kernel does not write is NaN
slow = pytest.mark.slow
BACKENDS = ("reference", "sdpa", pytest.param("triton", marks=needs_triton))
INPUTS = ("q1", "k1", "q2", "k2", "v", "alpha")

# Limits of `relative`. float32: a few hundred roundings of 6e-8. float16: the result and the
# probabilities are rounded by 5e-4 each. The backward also rounds the gradient of the logits.
FORWARD = {torch.float32: 1e-5, torch.float16: 3e-3}
BACKWARD = {torch.float32: 1e-5, torch.float16: 5e-3}


def case(
    n: int, m: int, d: int, dtype: torch.dtype = torch.float64, lead: Sequence[int] = (1, 2)
) -> list[Tensor]:
    """q1, k1, q2, k2, v. Queries are twice as large, so that the logits tell keys apart."""
    generator = torch.Generator().manual_seed(n + 1000 * m + d)

    def draw(rows: int) -> Tensor:
        return torch.randn(*lead, rows, d, generator=generator, dtype=torch.float64)

    tensors = [2 * draw(n), draw(m), 2 * draw(n), draw(m), draw(m)]
    return [t.to(dtype) for t in tensors]


def exact(tensors: Sequence[Tensor], alpha: Tensor) -> Tensor:
    return differential_attention(
        *(t.double() for t in tensors), alpha.double(), backend="reference"
    )


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the expected value plus the rms of all expected values."""
    assert found.shape == expected.shape
    scale = expected.abs() + expected.square().mean().sqrt()
    return ((found.double() - expected).abs() / scale).max().item()


def gradients(
    run: Callable[..., Tensor], tensors: Sequence[Tensor], slope: Tensor
) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    return torch.autograd.grad(run(*leaves), leaves, slope)


def interpreted(*tensors: Tensor) -> Tensor:
    return differential_attention(*tensors, backend="triton")


def slope_like(tensors: Sequence[Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = torch.broadcast_shapes(tensors[0].shape, tensors[2].shape)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(tensors[0].dtype)


def check_gradients(
    tensors: Sequence[Tensor], wrapped: Callable[[Any], Callable[..., Tensor]] = lambda run: run
) -> None:
    """The kernels' gradients against those of the reference in float64."""
    slope, doubles = slope_like(tensors), [t.double() for t in tensors]
    found = gradients(wrapped(interpreted), tensors, slope)
    expected = gradients(wrapped(lambda *t: exact(t[:5], t[5])), doubles, slope.double())
    for name, one, other in zip(INPUTS, found, expected, strict=True):
        assert relative(one, other) < BACKWARD[tensors[0].dtype], name


def test_the_definition_row_by_row():
    q1, k1, q2, k2, v = case(3, 4, 5, lead=(2,))
    alpha = torch.tensor([0.3, -0.7], dtype=torch.float64)
    found = differential_attention(q1, k1, q2, k2, v, alpha, scale=0.9, backend="reference")
    for h in range(2):
        for i in range(3):
            first = torch.softmax(0.9 * k1[h] @ q1[h, i], 0)
            second = torch.softmax(0.9 * k2[h] @ q2[h, i], 0)
            terms = [(first[j] - alpha[h] * second[j]) * v[h, j] for j in range(4)]
            torch.testing.assert_close(found[h, i], torch.stack(terms).sum(0))


@needs_triton
@pytest.mark.parametrize("dtype", FORWARD)
@pytest.mark.parametrize(
    ("n", "m", "d", "alpha"),
    [
        # `short_forward`: all keys in one tile
        (1, 1, 64, 0.37),
        (2, 2, 128, -0.5),
        (63, 63, 64, 1.0),
        (64, 64, 384, 0.0),
        (65, 65, 192, 0.37),
        pytest.param(197, 197, 384, 0.37, marks=slow),
        (5, 256, 768, -0.5),
        # `sequential_forward`: a ragged last tile, or whole tiles after the first key
        (33, 257, 64, 1.0),
        pytest.param(17, 300, 384, 0.37, marks=slow),
        pytest.param(2, 321, 768, 0.37, marks=slow),
        pytest.param(20, 577, 384, -0.5, marks=slow),
        (16, 640, 128, 0.0),
        pytest.param(577, 577, 64, 0.37, marks=slow),
        pytest.param(640, 640, 64, 1.0, marks=slow),
    ],
)
@pytest.mark.slow
def test_kernels(n, m, d, alpha, dtype):
    tensors = case(n, m, d, dtype)
    weight = torch.tensor(alpha)
    found = interpreted(*tensors, weight)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert relative(found, exact(tensors, weight)) < FORWARD[dtype]


@needs_triton
@pytest.mark.parametrize("dtype", BACKWARD)
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [
        (18, 33, 64),
        (5, 260, 64),
        pytest.param(65, 197, 64, marks=slow),
        pytest.param(33, 65, 384, marks=slow),
        pytest.param(40, 260, 64, marks=slow),
        pytest.param(18, 257, 384, marks=slow),
    ],
)
@pytest.mark.slow
def test_gradients(n, m, d, dtype):
    check_gradients([*case(n, m, d, dtype), torch.tensor([0.37, -0.5])])


@needs_triton
def test_one_key_has_probability_one():
    tensors = [*case(2, 1, 64, torch.float32), torch.tensor(0.37)]
    slope = slope_like(tensors)
    *logits, value, weight = gradients(interpreted, tensors, slope)
    assert all(gradient.abs().max() < 1e-6 for gradient in logits)
    torch.testing.assert_close(value, 0.63 * slope.sum(-2, keepdim=True))
    torch.testing.assert_close(weight, -(slope * tensors[4]).sum())


@needs_triton
def test_training_and_inference_agree_to_the_bit():
    for m in (40, 260):
        tensors = case(17, m, 64, torch.float16)
        alpha = torch.tensor(0.4)
        trained = interpreted(*(t.requires_grad_() for t in tensors), alpha)
        with torch.no_grad():
            assert torch.equal(interpreted(*tensors, alpha), trained)


@needs_triton
@pytest.mark.parametrize("m", [40, 260])
@pytest.mark.slow
def test_repeatable_and_independent_of_the_batch(m):
    tensors = [*case(9, m, 64, torch.float16, (2, 1)), torch.tensor([[0.4], [0.2]])]
    slope = slope_like(tensors)
    runs = [gradients(interpreted, tensors, slope) for _ in range(2)]
    alone = gradients(interpreted, [t[1:] for t in tensors], slope[1:])
    for one, other, single in zip(*runs, alone, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one[1:], single)
    assert torch.equal(interpreted(*tensors)[1:], interpreted(*(t[1:] for t in tensors)))


@needs_triton
@pytest.mark.slow
def test_strided_and_expanded_inputs():
    """Heads inside rows, one query for all rows, keys of one batch entry, an unaligned slice."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def spread(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda q1, *rest: run(q1.expand(2, 3, 17, 64), *rest)

    generator = torch.Generator().manual_seed(3)
    tensors = [
        draw(2, 3, 1, 64),
        draw(2, 40, 3, 64).transpose(1, 2),
        draw(2, 17, 3, 64).transpose(1, 2),
        draw(1, 1, 40, 64),
        draw(3, 40, 67)[..., 3:],
        draw(3),
    ]
    check_gradients(tensors, spread)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lead", [(), (2,), (2, 1, 3), (2, 1, 2, 2)])
def test_any_number_of_leading_dimensions(lead, backend):
    tensors = case(9, 11, 64, torch.float32, lead)
    alpha = torch.tensor([0.3])
    found = differential_attention(*tensors, alpha, backend=backend)
    assert relative(found, exact(tensors, alpha)) < FORWARD[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale(backend):
    tensors = case(9, 11, 64, torch.float32)
    found = differential_attention(*tensors, torch.tensor(0.3), 0.25, backend=backend)
    tensors[0], tensors[2] = 2 * tensors[0], 2 * tensors[2]  # 0.25 is twice 64^-0.5
    assert relative(found, exact(tensors, torch.tensor(0.3))) < FORWARD[torch.float32]


@needs_triton
@pytest.mark.parametrize("m", [70, 300])
@pytest.mark.slow
def test_extreme_logits(m):
    """In some rows one key has all the weight. float32 logits of 1e3 are exact to 1e-4."""
    q1, k1, q2, k2, v = case(20, m, 64, torch.float32)
    tensors = [q1 * 100, k1, -q2 * 100, k2, v]
    alpha = torch.tensor(0.6)
    assert relative(interpreted(*tensors, alpha), exact(tensors, alpha)) < 2e-3


@needs_triton
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")  # in the interpreter
@pytest.mark.parametrize("m", [70, 260])
@pytest.mark.slow
def test_logits_far_below_zero_leave_finite_gradients(m):
    """exp of minus the log-sum-exp overflows, so keys beyond the last must not contribute."""
    q1, k1, q2, k2, v = case(5, m, 64, torch.float32)
    tensors = [torch.full_like(q1, 40.0), torch.full_like(k1, -40.0), q2, k2, v, torch.tensor(0.5)]
    found = gradients(interpreted, tensors, slope_like(tensors))
    assert all(gradient.isfinite().all() for gradient in found)


@needs_triton
@pytest.mark.parametrize("m", [70, 300])
def test_constant_rows_average_the_values(m):
    q1, k1, q2, k2, v = case(20, m, 64, torch.float32)
    found = interpreted(torch.zeros_like(q1), k1, q2, torch.ones_like(k2), v, torch.tensor(0.25))
    expected = (0.75 * v.double().mean(-2, keepdim=True)).expand(found.shape)
    assert relative(found, expected) < FORWARD[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("lead", "n"), [((0, 2), 5), ((2, 0), 5), ((2, 2), 0)])
def test_an_empty_output(lead, n, backend):
    tensors = [*case(n, 7, 64, torch.float32, lead), torch.tensor(0.5)]
    leaves = [t.requires_grad_() for t in tensors]
    found = differential_attention(*leaves, backend=backend)
    assert found.shape == (*lead, n, 64)
    for leaf, gradient in zip(leaves, torch.autograd.grad(found.sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(leaf))


def test_sdpa_agrees_with_the_definition():
    tensors = [*case(9, 11, 24), torch.tensor([0.3, -0.2], dtype=torch.float64)]
    slope = slope_like(tensors)
    pair = [
        gradients(lambda *t, b=backend: differential_attention(*t, backend=b), tensors, slope)
        for backend in ("reference", "sdpa")
    ]
    for one, other in zip(*pair, strict=True):
        torch.testing.assert_close(one, other)


def test_gradcheck():
    tensors = [*case(3, 4, 2, lead=(1, 2)), torch.tensor([0.3, -0.2], dtype=torch.float64)]
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(
        lambda *t: differential_attention(*t, backend="reference"), leaves
    )


@needs_triton
@pytest.mark.parametrize(
    ("m", "training"),
    [pytest.param(7, True, marks=slow), (7, False), pytest.param(260, False, marks=slow)],
)
@pytest.mark.slow
def test_opcheck(m, training):
    tensors = [*case(2, m, 64, torch.float32), torch.tensor([[0.3, -0.2]])]
    leaves = [t.requires_grad_(training) for t in tensors]
    torch.library.opcheck(
        torch.ops.drexperts.differential_attention.default, (*leaves, 0.125, training)
    )


@needs_triton
@pytest.mark.slow
def test_opcheck_of_the_backward():
    tensors = [*case(5, 7, 64, torch.float32), torch.tensor([[0.3, -0.2]])]
    saved = torch.ops.drexperts.differential_attention(*tensors, 0.125, True)
    backward = torch.ops.drexperts.differential_attention_backward.default
    torch.library.opcheck(backward, (saved[0], *tensors, *saved, 0.125))


@needs_triton
def test_compiled_it_is_one_operation():
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    tensors = [*case(5, 7, 64, torch.float32), torch.tensor(0.3)]
    compiled = torch.compile(interpreted, backend=keep, fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), interpreted(*tensors))
    ours = [node for node in graphs[0].graph.nodes if "drexperts" in str(node.target)]
    assert len(graphs) == len(ours) == 1


def wrong(**changes: Tensor) -> dict[str, Tensor]:
    given = dict(zip(INPUTS, [*case(5, 7, 64, torch.float32), torch.tensor(0.3)], strict=True))
    return given | changes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("q1", torch.zeros(64)),
        ("q1", torch.zeros(1, 2, 5, 64, dtype=torch.int64)),
        ("k1", torch.zeros(1, 2, 7, 32)),
        ("k1", torch.zeros(1, 2, 7, 64, dtype=torch.float16)),
        ("k1", torch.zeros(1, 3, 7, 64)),
        ("q2", torch.zeros(1, 2, 4, 64)),
        ("k2", torch.zeros(1, 2, 8, 64)),
        ("k2", torch.zeros(1, 2, 7, 64, device="meta")),
        ("v", torch.zeros(1, 2, 7, 128)),
        ("alpha", torch.zeros(3)),
        ("alpha", torch.zeros(1, 1, 1, 2)),
        ("alpha", torch.zeros(2, dtype=torch.int64)),
        ("alpha", torch.zeros((), device="meta")),
    ],
)
def test_wrong_argument(name, value):
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        differential_attention(*wrong(**{name: value}).values())


@pytest.mark.parametrize(("size", "name"), [((5, 0, 64), "k1"), ((5, 7, 0), "q1")])
def test_no_keys_or_no_columns(size, name):
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        differential_attention(*case(*size), torch.tensor(0.3))


@needs_triton
@pytest.mark.parametrize("width", [32, 96, 1088])
def test_a_width_that_no_kernel_takes(width):
    tensors = [*case(2, 3, width, torch.float32), torch.tensor(0.3)]
    with pytest.raises(ArgumentError, match=f"^q1: .*{width}"):
        interpreted(*tensors)


def test_an_unknown_backend():
    with pytest.raises(ArgumentError, match=r"^backend: .*cuda"):
        differential_attention(*wrong().values(), backend="cuda")


@needs_triton
def test_a_dtype_that_no_kernel_takes():
    with pytest.raises(BackendError, match="float64"):
        interpreted(*case(2, 3, 64), torch.tensor(0.3))


@pytest.mark.parametrize("arch", launch.ARCHITECTURES)
def test_every_width_has_a_launch(arch):
    for kernel in launch.TABLE:
        if kernel.startswith("differential_attention"):
            for width in range(64, 1025, 64):
                for itemsize in (2, 4):
                    assert launch.launch_for(kernel, arch, width, itemsize).why
