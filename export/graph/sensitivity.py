"""How much each part of a folded model changes the score when its precision is reduced.

To first order this is the part's own error times the gradient of the score with respect to its
output, which one forward and one backward pass give for all parts.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from drexperts.model.dr_experts import DRExperts


def score_errors(
    folded: DRExperts, reduced: Mapping[str, Callable[..., Tensor]], crops: Tensor
) -> dict[str, float]:
    """The root mean square, over crops, of the change of the score by each part alone.

    Args:
        folded: in float32.
        reduced: by a module's name, the function that replaces it in lower precision.
        crops: float32 0..255 [n, 3, H, W].
    """
    changes: dict[str, list[Tensor]] = defaultdict(list)
    modules = dict(folded.named_modules())
    hooks = [
        modules[name].register_forward_hook(_noting(call, changes[name]))
        for name, call in reduced.items()
    ]
    try:
        for crop in crops:  # one at a time: the backward pass needs the inputs of all parts
            folded(crop[None].clone().requires_grad_()).score.sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: float(torch.stack(each).square().mean().sqrt()) for name, each in changes.items()}


def _noting(reduced: Callable[..., Tensor], changes: list[Tensor]) -> Callable[..., None]:
    """A forward hook that adds to `changes` how the reduced part would change the score."""

    def hook(_: nn.Module, given: tuple[object, ...], output: Tensor) -> None:
        def on_gradient(gradient: Tensor) -> None:
            with torch.no_grad():
                changes.append((gradient * (reduced(*given).to(output) - output)).sum())

        output.register_hook(on_gradient)

    return hook
