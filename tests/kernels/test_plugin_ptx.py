"""PTX for TensorRT: what is stripped, what is refused, and that the pooling is accepted."""

import importlib.util
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from drexperts.kernels.launch import ARCHITECTURES, Launch, Specialisation
from drexperts.kernels.plugin_ptx import OLDEST_PTX, plugin_ptx, strip_scratch
from drexperts.runtime.errors import ArgumentError, InternalError

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only"
)
slow = pytest.mark.slow  # Triton's compiler runs in a process of its own

TYPES = ("*fp16", "i32", "*fp16")
PARAMETERS = """
	.param .u64 .ptr .global .align 1 pool_param_0,
	.param .u32 pool_param_1,
	.param .u64 .ptr .global .align 1 pool_param_2,
	.param .u64 .ptr .global .align 1 pool_param_3,  // a comment, with a comma
	.param .u64 .ptr .global .align 1 pool_param_4
"""


def ptx(parameters: str = PARAMETERS, body: str = "ld.param.b64 %rd1, [pool_param_2];") -> str:
    return f".version 8.0\n.visible .entry pool({parameters})\n.reqntid 128\n{{\n{body}\nret;\n}}\n"


def test_stripping_removes_the_last_two_parameters_and_nothing_else():
    stripped = strip_scratch(ptx(), TYPES)
    head, _, rest = stripped.partition(")")
    names = [line.split()[-1].rstrip(",") for line in head.splitlines()[2:]]
    assert names == ["pool_param_0", "pool_param_1", "pool_param_2"]
    assert rest == ptx().partition("pool_param_4\n)")[2]


@pytest.mark.parametrize("name", ["pool_param_3", "pool_param_4"])
def test_a_kernel_that_uses_scratch_memory_is_not_stripped(name):
    with pytest.raises(InternalError, match=name):
        strip_scratch(ptx(body=f"ld.param.b64 %rd1, [{name}+8];"), TYPES)


def test_a_longer_name_does_not_count_as_scratch_memory():
    strip_scratch(ptx(body="ld.param.b64 %rd1, [pool_param_33]; mov.b64 $pool_param_4;"), TYPES)


@pytest.mark.parametrize(
    "types",
    [TYPES[:2], (*TYPES, "*fp32"), ("*fp16", "*fp16", "i32"), ()],
    ids=["too few", "too many", "another order", "none"],
)
def test_parameters_that_are_not_the_arguments_are_refused(types):
    with pytest.raises(InternalError, match=r"\[64, 32, 64, 64, 64\] bits"):
        strip_scratch(ptx(), types)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "0 kernels"),
        (ptx() + ptx(), "2 kernels"),
        (ptx(PARAMETERS.replace(".u32", ".align 4 .b8")), "64, None, 64"),
    ],
)
def test_ptx_of_another_form_is_refused(text, found):
    with pytest.raises(InternalError, match=found):
        strip_scratch(text, TYPES)


def unpassable(**signature: str) -> Specialisation:
    pointers = tuple(name for name, kind in signature.items() if kind.startswith("*"))
    return Specialisation("toy", None, signature, {}, pointers, Launch(4, 1, {}, ""))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (unpassable(x="*fp16", scale="fp32", y="*fp16"), "scale: .*fp32"),
        (unpassable(x="*fp16", n="i64", y="*fp16"), "n: .*i64"),
        (unpassable(n="i32", x="*fp16", y="*fp16"), "signature: .*n i32, x"),
        (unpassable(x="*fp16", y="*fp16", n="i32"), "signature: .*x .*, n i32"),
        (unpassable(x="*fp16", n="i32", y="*fp16", m="i32", z="*fp16"), "signature: "),
        (unpassable(x="*fp16"), "signature: "),
        (replace(unpassable(x="*fp16", y="*fp16"), aligned=("y",)), "x: .*aligned"),
    ],
)
def test_arguments_that_tensorrt_cannot_pass(spec, message):
    with pytest.raises(ArgumentError, match=f"^{message}"):
        plugin_ptx(spec, 90)


def test_a_ptx_version_that_would_end_the_process_is_refused():
    with pytest.raises(ArgumentError, match=r"^ptx_version: sm_120 .*87.*86"):
        plugin_ptx(unpassable(x="*fp16", y="*fp16"), 120, ptx_version=86)


PLUGINS = """
import json

import torch
from drexperts.kernels.aot import assembled
from drexperts.kernels.differential_pooling_triton import plugin_specialisation
from drexperts.kernels.launch import ARCHITECTURES
from drexperts.kernels.plugin_ptx import plugin_ptx
from drexperts.runtime.errors import InternalError
from support.toy_triton import multiplying, scaling

def refusal(call):
    try:
        call()
    except InternalError as error:
        return str(error)

report = {"plugins": {}, "elsewhere": {}, "shipped": {}}
for arch in ARCHITECTURES:
    plugin = plugin_ptx(scaling(warps=8), arch)
    report["plugins"][arch] = vars(plugin)
    for iterated in (False, True):
        spec = plugin_specialisation(arch, torch.float16, 384, iterated)
        report["shipped"][f"{arch} {iterated}"] = refusal(lambda: plugin_ptx(spec, arch))
oldest = plugin_ptx(multiplying(64), 80).ptx
for arch in ARCHITECTURES:
    report["elsewhere"][arch] = refusal(lambda: assembled(oldest, arch))
report["large"] = refusal(lambda: plugin_ptx(multiplying(128), 90))
report["newer"] = plugin_ptx(scaling(), 90, ptx_version=84).ptx
print(json.dumps(report))
"""


@pytest.fixture(scope="session")
def plugins(compiling: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    done = compiling("-c", PLUGINS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@slow
@needs_triton
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_plugins_ptx(arch, plugins):
    plugin = plugins["plugins"][str(arch)]
    version, target = OLDEST_PTX[arch], f"sm_{arch}" + "a" * (arch >= 90)
    assert f".version {version // 10}.{version % 10}\n.target {target}\n" in plugin["ptx"]
    assert f".entry {plugin['symbol']}(" in plugin["ptx"]
    assert plugin["ptx"].count(".param .") == 4
    assert plugin["block_x"] == 256
    assert ".reqntid 256" in plugin["ptx"]
    assert plugin["shared"] == 0


@slow
@needs_triton
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_ptx_for_the_oldest_architecture_assembles_for_all(arch, plugins):
    assert plugins["elsewhere"][str(arch)] is None


@slow
@needs_triton
def test_a_plugin_has_48_kib_of_shared_memory(plugins):
    assert "65536" in plugins["large"]
    assert "49152" in plugins["large"]


@slow
@needs_triton
def test_a_ptx_version_can_be_chosen(plugins):
    assert ".version 8.4" in plugins["newer"]


@slow
@needs_triton
@pytest.mark.parametrize("iterated", [False, True], ids=["single", "iterated"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_pooling_can_be_a_plugin(arch, iterated, plugins):
    assert plugins["shipped"][f"{arch} {iterated}"] is None
