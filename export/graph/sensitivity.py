"""How much each part of a folded model moves the score when its precision is lowered.

To first order: the part's own error, times the gradient of the score by its output. One forward and
one backward pass tell it of all parts.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from drexperts.model.dr_experts import DRExperts

Lowered = Callable[..., Tensor]


def score_errors(
    folded: DRExperts, lowered: Mapping[str, Lowered], crops: Tensor
) -> dict[str, float]:
    """The root mean square, over crops, of what each part alone would change of the score.

    Args:
        folded: in float32.
        lowered: by a module's name, what it would compute of the same inputs.
        crops: float32 0..255 [n, 3, H, W].
    """
    changes: dict[str, list[Tensor]] = defaultdict(list)
    modules = dict(folded.named_modules())
    hooks = [
        modules[name].register_forward_hook(_noting(call, changes[name]))
        for name, call in lowered.items()
    ]
    try:
        for crop in crops:  # one at a time: the inputs of all parts are kept for the way back
            folded(crop[None].clone().requires_grad_()).score.sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: float(torch.stack(each).square().mean().sqrt()) for name, each in changes.items()}


def _noting(lowered: Lowered, changes: list[Tensor]) -> Callable[..., None]:
    """A forward hook that adds to `changes` what the lowered part would change of the score."""

    def hook(_: nn.Module, given: tuple[object, ...], output: Tensor) -> None:
        def on_gradient(gradient: Tensor) -> None:
            with torch.no_grad():
                changes.append((gradient * (lowered(*given).to(output) - output)).sum())

        output.register_hook(on_gradient)

    return hook
