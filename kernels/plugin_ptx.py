"""PTX of a kernel that a TensorRT ahead-of-time plugin can launch.

From sm_90 on Triton targets sm_90a, sm_100a and sm_120a, whose PTX ptxas accepts for exactly that
architecture. It accepts PTX for sm_80 for all of them.
"""

import re
from dataclasses import dataclass

from drexperts.kernels.aot import assembled, check, compile_specialisation
from drexperts.kernels.launch import Specialisation
from drexperts.runtime.errors import ArgumentError, InternalError

# Beyond this a launcher must raise a limit first; whether TensorRT does is not documented.
SHARED_KIB = 48
# The oldest PTX version, 80 for 8.0, that LLVM accepts for the target. An older one ends the
# process. For sm_80 and sm_86 older versions would work, but no driver in use needs them.
OLDEST_PTX = {80: 80, 86: 80, 89: 80, 90: 80, 100: 86, 120: 87}


@dataclass(frozen=True)
class PluginKernel:
    """PTX for a TensorRT plugin, with the values of its KernelLaunchParams.

    Attributes:
        block_x: threads per block.
        shared: bytes of shared memory per block.
    """

    ptx: str
    symbol: str
    block_x: int
    shared: int


def plugin_ptx(spec: Specialisation, arch: int, ptx_version: int | None = None) -> PluginKernel:
    """The kernel as PTX that a TensorRT ahead-of-time plugin can launch.

    TensorRT passes input tensors, int32 values and output tensors, in this order and nothing else.
    This function proves that the two scratch pointers that Triton appends are unused, and removes
    them.

    Args:
        ptx_version: 80 for 8.0. None is the oldest that the architecture allows, which most drivers
            accept.

    Raises:
        ArgumentError: TensorRT cannot pass the specialisation's arguments, or the PTX version is
            too old for the architecture.
        InternalError: the kernel uses scratch memory or too much shared memory, or ptxas reports
            other resources for the stripped PTX.
    """
    _check_passable(spec)
    version = OLDEST_PTX.get(arch, 0) if ptx_version is None else ptx_version
    if version < OLDEST_PTX.get(arch, 0):
        raise ArgumentError(f"ptx_version: sm_{arch} needs {OLDEST_PTX[arch]}, got {version}")
    compiled = compile_specialisation(spec, arch, ptx_version=version)
    check(compiled, arch)
    if compiled.shared > SHARED_KIB * 1024:
        raise InternalError(
            f"{spec.name} for sm_{arch} has {compiled.shared} bytes of shared memory, the limit of "
            f"a plugin is {SHARED_KIB * 1024}"
        )
    ptx = strip_scratch(compiled.ptx, tuple(spec.signature.values()))
    before, after = assembled(compiled.ptx, arch), assembled(ptx, arch)
    if before != after:
        raise InternalError(f"{spec.name} for sm_{arch}: stripping changed {before} to {after}")
    return PluginKernel(ptx, compiled.symbol, 32 * compiled.warps, compiled.shared)


_ENTRY = re.compile(r"\.entry\s+[\w$]+\s*\(([^()]*)\)")
_PARAMETER = re.compile(r"\.param\s+\.[usb](\d+)\s(?:.*\s)?([\w$]+)", re.DOTALL)


def strip_scratch(ptx: str, types: tuple[str, ...]) -> str:
    """PTX without the two pointers to scratch memory that Triton appends to the parameters.

    Args:
        types: Triton's types of the remaining arguments, such as `*fp16` or `i32`.

    Raises:
        InternalError: the parameters are not those arguments and two pointers, or the kernel uses
            one of the two.
    """
    entries = list(_ENTRY.finditer(ptx))
    if len(entries) != 1:
        raise InternalError(f"the PTX has {len(entries)} kernels, expected 1")
    (entry,) = entries
    start, end = entry.span(1)
    listed = [text.strip() for text in re.sub(r"//.*", "", entry[1]).split(",")]
    matches = [_PARAMETER.fullmatch(text) for text in listed]
    bits = [int(match[1]) if match else None for match in matches]
    wanted = [64 if kind.startswith("*") else 32 for kind in types] + [64, 64]
    if bits != wanted:
        raise InternalError(f"the PTX parameters have {bits} bits, expected {wanted}")
    for match in matches[-2:]:
        if match and _mentions(ptx[:start] + ptx[end:], match[2]):
            raise InternalError(f"the kernel uses the scratch memory {match[2]}")
    return ptx[:start] + "\n\t" + ",\n\t".join(listed[:-2]) + "\n" + ptx[end:]


def _mentions(ptx: str, name: str) -> bool:
    return re.search(rf"(?<![\w$%]){re.escape(name)}(?![\w$])", ptx) is not None


def _check_passable(spec: Specialisation) -> None:
    for name, kind in spec.signature.items():
        if kind.startswith("*") and name not in spec.aligned:
            raise ArgumentError(f"{name}: a plugin's tensor must be declared as aligned")
        if not kind.startswith("*") and kind != "i32":
            raise ArgumentError(
                f"{name}: TensorRT passes tensors and int32 values, not {kind}; make it a "
                "compile-time constant, or a tensor of one element"
            )
    order = "".join("p" if kind.startswith("*") else "i" for kind in spec.signature.values())
    if not re.fullmatch("p+i*p+", order):
        raise ArgumentError(
            "signature: TensorRT passes inputs, int32 values and outputs in this order, got "
            + ", ".join(f"{name} {kind}" for name, kind in spec.signature.items())
        )
