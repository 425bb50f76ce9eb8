"""The numbers of a roofline: what the model asks of a machine, and what the machine can do at most.

Needs PyTorch, of the extra `export`.
"""

import functools
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from drexperts.bench.reports import Roofline
from drexperts.model.config import DRExpertsConfig
from drexperts.model.dr_experts import DRExperts, new_model

_BUDGET = 0.5  # seconds for each peak
# A product that is large enough to fill the machine, and a copy that fits no cache.
_SIDES = {"cpu": 1024, "cuda": 8192}
_COPIED = 2**28  # bytes
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}


def measure(
    config: DRExpertsConfig,
    precision: str,
    threads: int | None,
    device: str = "cpu",
    *,
    types: Collection[str] = (),
) -> Roofline:
    """FLOP and bytes of a model, and the peaks of this machine.

    Args:
        precision: of the weights, such as "fp32" or "int8"; its digits are the bits of each.
        threads: of the products and copies; None leaves PyTorch's default.
        device: "cpu", or "cuda" for what runs on a GPU.
        types: what products are computed in, such as "bf16" and "int8"; the roof is that of the
            fastest. Empty for float32, which also stands for a type that has no name here.
    """
    model = new_model(config)
    demands = flop_per_image(model), weight_bytes(model, precision)
    counted = (
        "FLOP counted by PyTorch in the reduced model; weights are read once per call, "
        "activations are not counted."
    )
    if device == "cuda" and not torch.cuda.is_available():
        unknown = "The roof was not measured, because this PyTorch sees no GPU."
        return Roofline(*demands, None, None, f"{counted} {unknown}")
    side = _SIDES[device]
    with _threads(threads):
        peaks = {dtype: _peak_flops(device, dtype, side) for dtype in _dtypes(types, device)}
        bandwidth = _bandwidth(device)
    dtype = max(peaks, key=lambda each: peaks[each])
    measured = (
        f"The roof was measured here: torch.mm of {side} x {side} in {dtype} "
        f"and a copy of {_COPIED // 2**20} MiB."
    )
    return Roofline(*demands, peaks[dtype], bandwidth, f"{counted} {measured}")


def _dtypes(types: Collection[str], device: str) -> set[torch.dtype]:
    """The types whose products are timed, the fastest of which is the roof."""
    found = {_DTYPES.get(name, torch.float32) for name in types} or {torch.float32}
    if torch.int8 in found and device == "cpu":
        # PyTorch's product of integers is slower than the CPU's best: bfloat16 may be faster.
        found |= {torch.bfloat16, torch.float32}
    return found


def flop_per_image(model: DRExperts) -> int:
    """FLOP of convolutions, matrix products and attention for one crop."""
    size = model.config.encoder.image_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())


def weight_bytes(model: DRExperts, precision: str) -> int:
    """Bytes of all weights if each has the precision's bits, or 32 where its name has no digits."""
    bits = re.search(r"\d+", precision)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return weights * int(bits[0] if bits else 32) // 8


def _peak_flops(device: str, dtype: torch.dtype, side: int) -> float:
    left, right = (100 * torch.rand(2, side, side, device=device)).to(dtype)
    if dtype == torch.int8:
        product: Callable[[], object] = functools.partial(torch._int_mm, left, right)
    else:
        product = functools.partial(torch.mm, left, right, out=torch.empty_like(left))
    return 2 * side**3 / _fastest(product, device)


def _bandwidth(device: str) -> float:
    source = torch.ones(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED / _fastest(lambda: target.copy_(source), device)


def _fastest(call: Callable[[], object], device: str) -> float:
    """Seconds of the fastest call, after two that warm up."""
    best, end = float("inf"), time.perf_counter() + _BUDGET
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        taken = time.perf_counter() - start
        best = best if rounds < 2 else min(best, taken)
        rounds += 1
    return best


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """PyTorch runs on so many threads inside this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
