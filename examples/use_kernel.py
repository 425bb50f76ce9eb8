"""Use the two operations alone: on a CUDA device they are Triton kernels, elsewhere plain PyTorch.

python examples/use_kernel.py
"""

import torch

from drexperts.kernels import differential_attention, differential_pooling


def attention(device: str) -> torch.Tensor:
    """Dual-softmax differential attention for all rows, as in the Differential Transformer."""
    batch, heads, tokens, width = 2, 4, 100, 64
    q1, k1, q2, k2, v = torch.randn(5, batch, heads, tokens, width, device=device).unbind()
    alpha = torch.full((heads,), 0.5, device=device, requires_grad=True)
    out = differential_attention(q1, k1, q2, k2, v, alpha)  # [batch, heads, tokens, width]
    out.square().mean().backward()
    print("attention", tuple(out.shape), "gradient of alpha", alpha.grad)
    return out


def pooling(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same difference at one row for ten experts, which read the tokens once."""
    batch, experts, tokens, width = 2, 10, 577, 384
    x = torch.randn(batch, tokens, width, device=device)
    query = torch.randn(batch, experts, width, device=device) / width**0.5
    logits = torch.randn(batch, experts, tokens, device=device)
    alpha = torch.full((experts,), 0.5, device=device)
    weight, bias = torch.ones(width, device=device), torch.zeros(width, device=device)
    pooled, maps = differential_pooling(x, query, logits, alpha, weight, bias)
    # Each row of a softmax sums to one, so each map sums to 1 - alpha.
    print("pooling", tuple(pooled.shape), "sums of maps", maps.sum(-1)[0, :3])
    return pooled, maps


def main() -> None:
    """Run both where they run here."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    attention(device)
    pooling(device)


if __name__ == "__main__":
    main()
