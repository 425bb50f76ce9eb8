"""Compile the Triton kernels without a GPU, and check what they would use of one.

Ahead of time Triton does not report a kernel that no GPU could launch: it checks shared memory only
at the launch, and turns too much tensor memory into a `trap`. `check` finds both.
"""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

from drexperts.kernels.backends import interpreted
from drexperts.kernels.launch import ARCHITECTURES, Specialisation
from drexperts.runtime.errors import ArgumentError, BackendError, InternalError

# Limits per block. Source: CUDA C++ Programming Guide, "Compute Capabilities".
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
TENSOR_MEMORY_COLUMNS = 512


@dataclass(frozen=True)
class KernelResources:
    """What ptxas reports for a kernel: registers and bytes spilled to memory, per thread."""

    registers: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A kernel's code for one architecture, and what a launch of it needs.

    Attributes:
        name: the specialisation's name; `symbol` is the kernel's name in `ptx` and `cubin`.
        target: the cubin's architecture, such as `sm_90a`.
        warps: warps per block.
        shared: bytes of shared memory per block.
        tensor_memory: columns of tensor memory per block (sm_100; 0 elsewhere).
        scratch: bytes of global memory that the launcher must provide.
    """

    name: str
    symbol: str
    target: str
    ptx: str
    cubin: bytes
    warps: int
    shared: int
    tensor_memory: int
    scratch: int
    resources: KernelResources


def compile_specialisation(spec: Specialisation, arch: int, **options: Any) -> Compiled:
    """The code of a kernel for an architecture. `options` override those of its launch.

    Triton's cache is neither read nor filled, because it does not keep ptxas' report.

    Raises:
        ArgumentError: the kernels do not support the architecture.
        BackendError: Triton's compiler is not available.
        InternalError: the specialisation's arguments are not the kernel's.
    """
    if arch not in ARCHITECTURES:
        raise ArgumentError(f"arch: {arch} is not one of {', '.join(map(str, ARCHITECTURES))}")
    need_compiler()
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import sm_arch_from_capability

    report = io.StringIO()
    source, target = _source(spec), GPUTarget("cuda", arch, 32)
    with (
        tempfile.TemporaryDirectory() as empty_cache,
        knobs.cache.scope(),
        knobs.nvidia.scope(),
        contextlib.redirect_stdout(report),
    ):
        knobs.cache.dir, knobs.nvidia.dump_ptxas_log = empty_cache, True
        kernel = triton.compile(source, target, spec.launch.options | options)
    metadata = kernel.metadata
    return Compiled(
        name=spec.name,
        symbol=metadata.name,
        target=sm_arch_from_capability(arch),
        ptx=kernel.asm["ptx"],
        cubin=kernel.asm["cubin"],
        warps=metadata.num_warps,
        shared=metadata.shared,
        tensor_memory=metadata.tmem_size or 0,
        scratch=(metadata.global_scratch_size or 0) + (metadata.profile_scratch_size or 0),
        resources=_resources(report.getvalue()),
    )


def check(compiled: Compiled, arch: int) -> None:
    """Raise InternalError for a kernel that cannot run, naming kernel, architecture and limit.

    A kernel must fit a block's shared and tensor memory, have no `trap`, and need no scratch
    memory, which a CUDA graph or a TensorRT plugin could not provide.
    """
    shared, columns = SHARED_KIB[arch] * 1024, TENSOR_MEMORY_COLUMNS
    found = []
    if compiled.shared > shared:
        found.append(f"{compiled.shared} bytes of shared memory, the limit is {shared}")
    if compiled.tensor_memory > columns:
        found.append(f"{compiled.tensor_memory} columns of tensor memory, the limit is {columns}")
    if re.search(r"\btrap\s*;", compiled.ptx):
        found.append("a trap instruction")
    if compiled.scratch > 0:
        found.append(f"{compiled.scratch} bytes of scratch memory, the limit is 0")
    if found:
        raise InternalError(f"{compiled.name} for sm_{arch} has {'; '.join(found)}")


def assembled(ptx: str, arch: int) -> KernelResources:
    """What the ptxas that Triton uses for the architecture reports for the PTX.

    Raises:
        InternalError: ptxas rejects the PTX.
    """
    need_compiler()
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    target = f"--gpu-name={sm_arch_from_capability(arch)}"
    command = [get_ptxas(arch).path, "-v", target, "/dev/stdin", "-o", os.devnull]
    done = subprocess.run(command, input=ptx, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InternalError(f"ptxas rejects the PTX for sm_{arch}: {done.stderr.strip()}")
    return _resources(done.stderr)


def need_compiler() -> None:
    """Raise BackendError if Triton's compiler is not available."""
    if interpreted():
        raise BackendError(
            "TRITON_INTERPRET replaces Triton's compiler by an interpreter: unset it"
        )
    if importlib.util.find_spec("triton") is None:
        raise BackendError("compiling needs the package triton, which PyTorch brings on Linux")


def _source(spec: Specialisation) -> Any:
    from triton.compiler import ASTSource

    names = spec.kernel.arg_names
    at = {name: (position,) for position, name in enumerate(names)}
    ordered = [name for name in names if name in spec.signature]
    if {*spec.signature, *spec.constants} != set(names) or ordered != list(spec.signature):
        given = ", ".join((*spec.signature, *spec.constants))
        raise InternalError(f"{spec.name}: the kernel takes {', '.join(names)}, given {given}")
    return ASTSource(
        spec.kernel,
        {name: spec.signature.get(name, "constexpr") for name in names},
        {at[name]: value for name, value in spec.constants.items()},
        {at[name]: [["tt.divisibility", 16]] for name in spec.aligned},
    )


def _resources(report: str) -> KernelResources:
    """Parse what `ptxas -v` prints for one kernel. Functions that it calls add their spills."""
    used = re.findall(r"Used (\d+) registers", report)
    if len(used) != 1:
        raise InternalError(f"ptxas reported on {len(used)} kernels, expected 1")
    stores, loads = (
        sum(map(int, re.findall(rf"(\d+) bytes spill {way}", report)))
        for way in ("stores", "loads")
    )
    return KernelResources(int(used[0]), stores, loads)
