"""Ahead-of-time compilation: its limits, and that the reported registers are those of the code."""

import importlib.util
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from drexperts.kernels.aot import Compiled, KernelResources, check, compile_specialisation
from drexperts.kernels.launch import ARCHITECTURES, Launch, Specialisation
from drexperts.runtime.errors import ArgumentError, InternalError

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only"
)


def compiled(**changes: Any) -> Compiled:
    fields: dict[str, Any] = dict(
        name="toy",
        symbol="toy",
        target="sm_100a",
        ptx="ret;",
        cubin=b"",
        warps=4,
        shared=227 * 1024,
        tensor_memory=512,
        scratch=0,
        resources=KernelResources(255, 0, 0),
    )
    return Compiled(**fields | changes)


def test_what_just_fits_passes():
    check(compiled(), 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared": 227 * 1024 + 1}, "232449 .*shared memory.* 232448"),
        ({"tensor_memory": 832}, "832 .*tensor memory.* 512"),
        ({"ptx": "\ttrap;"}, "trap"),
        ({"scratch": 128}, "128 .*scratch memory"),
    ],
    ids=["shared", "tensor memory", "trap", "scratch"],
)
def test_each_limit_is_checked(changes, message):
    with pytest.raises(InternalError, match=f"toy .*sm_100 .*{message}"):
        check(compiled(**changes), 100)


def test_an_unknown_architecture_is_refused():
    toy = Specialisation("toy", None, {"x": "*fp16"}, {}, ("x",), Launch(4, 1, {}, ""))
    with pytest.raises(ArgumentError, match="arch: 75"):
        compile_specialisation(toy, 75)


COMPILED = """
import json, subprocess, tempfile

from drexperts.kernels.aot import assembled, compile_specialisation
from drexperts.kernels.launch import ARCHITECTURES
from drexperts.runtime.errors import InternalError
from support.toy_triton import multiplying
from triton import knobs

def registers_of(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    return int(text.partition("REG:")[2].split()[0])

report = {"registers": {}}
for arch in ARCHITECTURES:
    compiled = compile_specialisation(multiplying(64), arch)
    report["registers"][arch] = compiled.resources.registers, registers_of(compiled.cubin)
try:
    assembled(compiled.ptx.replace("ret;", "rot;"), arch)
except InternalError as error:
    report["rejected"] = str(error)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(compiling: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    done = compiling("-c", COMPILED)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_registers_are_those_of_the_machine_code(arch, report):
    reported, in_cubin = report["registers"][str(arch)]
    assert reported == in_cubin


@needs_triton
@pytest.mark.slow
def test_ptx_that_ptxas_rejects_is_an_internal_error(report):
    assert "sm_120" in report["rejected"]
