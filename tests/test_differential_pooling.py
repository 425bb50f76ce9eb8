"""The pooling operation against its formula, row by row."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from drexperts.kernels import differential_pooling


def case(tokens: int, experts: int = 3, queries: int = 3) -> tuple[Tensor, ...]:
    torch.manual_seed(tokens)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    return (
        leaf(2, tokens, 8),
        leaf(2, queries, 8),
        leaf(2, experts, tokens),
        leaf(experts),
        leaf(8),
        leaf(8),
    )


def formula(
    tokens: Tensor,
    query: Tensor,
    logits: Tensor,
    alpha: Tensor,
    weight: Tensor,
    bias: Tensor,
    iterated: bool,
) -> tuple[Tensor, Tensor]:
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
@pytest.mark.parametrize("iterated", [True, False])
def test_formula(tokens: int, iterated: bool) -> None:
    given = case(tokens)
    with torch.no_grad():
        for got, expected in zip(
            differential_pooling(*given, iterated=iterated),
            formula(*given, iterated),
            strict=True,
        ):
            torch.testing.assert_close(got, expected)


def test_one_query_and_one_alpha_serve_all_experts() -> None:
    tokens, query, logits, alpha, weight, bias = case(9, queries=1)
    got = differential_pooling(tokens, query, logits, alpha[:1], weight, bias)
    expected = differential_pooling(
        tokens, query.expand(-1, 3, -1), logits, alpha[:1].expand(3), weight, bias
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("iterated", [True, False])
def test_gradients(iterated: bool) -> None:
    given = case(5)
    assert torch.autograd.gradcheck(lambda *a: differential_pooling(*a, iterated=iterated), given)


def test_extreme_logits_and_constant_rows_stay_finite() -> None:
    tokens, query, logits, *rest = (t.detach() for t in case(9))
    tokens[0] = 3.0  # every row constant: its LayerNorm is the bias alone
    pooled, maps = differential_pooling(tokens, query * 1e4, logits * 1e4, *rest)
    assert pooled.isfinite().all()
    assert maps.isfinite().all()
