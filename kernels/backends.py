"""Which implementation of an operation runs, and the errors if it cannot.

    reference   plain PyTorch, any device and dtype; the others are tested against it
    sdpa        PyTorch's scaled_dot_product_attention
    triton      our kernels: NVIDIA GPUs from compute capability 8.0, or Triton's interpreter

No backend falls back to another. Without a name the device alone decides: `triton` on a CUDA
device, `reference` elsewhere.
"""

import importlib.util
import os

import torch
from torch import Tensor

from drexperts.runtime.errors import ArgumentError, BackendError

OLDEST = 80  # compute capability, ten times the major plus the minor number
# Searched once, because Dynamo of PyTorch 2.11 cannot trace the search.
TRITON_IS_HERE = importlib.util.find_spec("triton") is not None


def choose(backend: str | None, offered: tuple[str, ...], example: Tensor) -> str:
    """The backend to run: the named one, or the one for the device of `example`.

    Raises:
        ArgumentError: the operation does not offer this backend.
        BackendError: the backend cannot run on this device or machine.
    """
    if backend is None:
        backend = "triton" if example.is_cuda else "reference"
    if backend not in offered:
        raise ArgumentError(f"backend: {backend!r} is not one of {', '.join(offered)}")
    reason = _why_not_triton(example) if backend == "triton" else None
    if reason:
        others = " or ".join(repr(name) for name in offered if name != "triton")
        raise BackendError(f"the Triton backend cannot run: {reason}; use backend={others}")
    return backend


def architecture(device: torch.device) -> int:
    """Compute capability as one number, 90 for 9.0. For the interpreter, the oldest supported."""
    if interpreted():
        return OLDEST
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def interpreted() -> bool:
    """Whether the environment tells Triton to interpret kernels, which works on a CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def _why_not_triton(example: Tensor) -> str | None:
    if not TRITON_IS_HERE:
        return "the package triton is not installed (PyTorch brings it on Linux, with CUDA)"
    if example.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it supports float16, bfloat16 and float32, got {example.dtype}"
    if interpreted():
        bfloat16 = example.dtype == torch.bfloat16
        return "Triton's interpreter miscomputes bfloat16 products" if bfloat16 else None
    if not example.is_cuda:
        return f"the tensors are on {example.device}; it needs an NVIDIA GPU, or TRITON_INTERPRET=1"
    if torch.version.hip is not None:
        return "this is an AMD GPU, for which the kernels have not been tested"
    if architecture(example.device) < OLDEST:
        return f"it needs compute capability 8.0, this GPU has {architecture(example.device) / 10}"
    return None
