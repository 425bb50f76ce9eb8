"""Two small kernels that replace the shipped ones in tests of ahead-of-time compilation."""

from collections.abc import Iterator

import triton
import triton.language as tl

from drexperts.kernels.launch import Launch, Specialisation


@triton.jit(do_not_specialize=["n"])
def scaled(x, gain, n, out, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(out + i, values * tl.load(gain), mask=i < n)


@triton.jit
def product(x, y, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    at = i[:, None] * SIZE + i[None, :]
    tl.store(out + at, tl.dot(tl.load(x + at), tl.load(y + at)).to(tl.float16))


def scaling(name: str = "scaled/fp16", pointer: str = "*fp16", warps: int = 4) -> Specialisation:
    signature = {"x": pointer, "gain": pointer, "n": "i32", "out": pointer}
    launch = Launch(warps, 1, {"BLOCK": 1024}, "a toy")
    return Specialisation(name, scaled, signature, {"BLOCK": 1024}, ("x", "gain", "out"), launch)


def multiplying(size: int, name: str = "product/fp16", warps: int = 8) -> Specialisation:
    """The product of two matrices in one block: size 128 fits every architecture, 256 fits none."""
    signature = dict.fromkeys(("x", "y", "out"), "*fp16")
    launch = Launch(warps, 1, {}, "a toy")
    return Specialisation(name, product, signature, {"SIZE": size}, tuple(signature), launch)


def specialisations(arch: int) -> Iterator[Specialisation]:
    yield scaling()
    yield scaling("scaled/fp32", "*fp32")
    yield multiplying(64)
