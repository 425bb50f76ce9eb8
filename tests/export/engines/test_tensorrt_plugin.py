"""The TensorRT plugin as far as a CPU can test it: definition, launch, PTX, interpreted kernel.

Its definition goes through TensorRT's own Python code, see `tensorrt_stub`; nothing is built.
"""

import json
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from support import tensorrt_stub

from drexperts.export.engines import tensorrt_plugin
from drexperts.export.graph.to_onnx import DOMAIN, OP, OPSET, add_pooling_function
from drexperts.runtime.errors import BackendError

pytestmark = pytest.mark.slow  # what they share takes seconds to make

needs_bindings = pytest.mark.skipif(
    tensorrt_stub.missing() is not None, reason=str(tensorrt_stub.missing())
)

SCRIPT = """
import json
import types

import numpy as np
from support import tensorrt_stub

trt = tensorrt_stub.tensorrt()
import tensorrt.plugin as trtp
from drexperts.export.engines import tensorrt_plugin
from drexperts.kernels.aot import assembled
from drexperts.runtime.errors import DrexpertsError
from tensorrt.plugin._lib import QDP_REGISTRY

def refusal(call):
    try:
        call()
    except (ValueError, TypeError, DrexpertsError) as error:
        return f"{type(error).__name__}: {error}"

def creator():
    return trt.get_plugin_registry().get_creator("DifferentialPooling", "1", "drexperts")

report = {"before": creator() is None}
tensorrt_plugin.register("8.0")
report |= {
    "name": [creator().name, creator().plugin_namespace, creator().plugin_version],
    "fields": {field.name: field.type.name for field in creator().field_names},
    "other": refusal(lambda: tensorrt_plugin.register("8.7")),
}

# The plugin as a builder uses it.
tensorrt_stub.stand_in(trt)

def created(epsilon=1e-5, iterated=0):
    # The parser reads a FLOAT attribute as float32 and an INT attribute as int32.
    numbers = {"epsilon": np.float32([epsilon]), "iterated": np.int32([iterated])}
    return tensorrt_stub.created(trt, "DifferentialPooling", "drexperts", **numbers)

def walk(plugin, tokens="HALF", width=384, n="n", queries=10, alphas=10):
    shapes = [("batch", n, width), ("batch", queries, width), ("batch", 10, n), (alphas,)]
    kinds = [tokens, *["FLOAT"] * 5]
    given = list(zip(kinds, [*shapes, (width,), (width,)]))
    return tensorrt_stub.walk(trt, plugin, given, {"batch": 7, "n": 577})

for name, capability, attributes, given in (
    ("paper", "8.9", {}, {}),
    (
        "official",
        "9.0",
        {"iterated": 1, "epsilon": 0.25},
        {"tokens": "FLOAT", "alphas": 1, "n": 577},
    ),
    ("bfloat16", "8.0", {}, {"tokens": "BF16", "queries": 1}),
):
    tensorrt_plugin.register(capability)
    report[name] = walk(created(**attributes), **given)
    arch = int(capability.replace(".", ""))
    report[name]["registers"] = assembled(report[name]["ptx"], arch).registers

def returning(extra):
    plugin = created()
    own = plugin.aot_impl_function
    plugin.aot_impl_function = lambda *given: (*own(*given)[:3], extra)
    return lambda: walk(plugin, tokens="BF16", queries=1)

report |= {
    "open width": refusal(lambda: walk(created(), width="width")),
    "3 queries": refusal(lambda: walk(created(), queries=3)),
    "2 alphas": refusal(lambda: walk(created(), alphas=2)),
    "too wide": refusal(lambda: walk(created(), width=2048)),
    "a number": refusal(returning(trtp.SymIntExprs.from_tuple([5]))),
    "a float": refusal(returning(trtp.SymIntExprs.from_tuple([0.5]))),
    "kernels": tensorrt_plugin.kernel_of.cache_info()._asdict(),
}

# Our definition once more, with one thing changed.
ours = QDP_REGISTRY[tensorrt_plugin.PLUGIN]

def changed(function, without, renamed):
    code = function.__code__
    code = code.replace(co_varnames=tuple(renamed.get(name, name) for name in code.co_varnames))
    copy = types.FunctionType(code, function.__globals__, closure=function.__closure__)
    kept = {name: kind for name, kind in function.__annotations__.items() if name != without}
    copy.__annotations__ = {renamed.get(name, name): kind for name, kind in kept.items()}
    return copy

def registering(without, **renamed):
    copy = changed(ours.register_func, without, renamed)
    return refusal(lambda: trtp.register("drexperts::Other")(copy))

def implementing(without, **renamed):
    copy = changed(ours.aot_impl_func, without, renamed)
    return refusal(lambda: trtp.aot_impl(tensorrt_plugin.PLUGIN)(copy))

report |= {
    "outputs": ours.num_outputs,
    "inputs": ours.input_tensor_names,
    "nothing": implementing(None),
    "no type of an input": registering("alpha"),
    "no type of an attribute": registering("epsilon"),
    "no outputs": registering("return"),
    "an attribute called tactic": registering(None, epsilon="tactic"),
    "no kernel": implementing("return"),
    "no tactic": implementing(None, tactic="choice"),
    "another order": implementing(None, tokens="query", query="tokens"),
}
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(compiling, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tensorrt_stub.libraries(tmp_path_factory.mktemp("libraries"))
        patch.setenv("LD_LIBRARY_PATH", str(folder))
        done = compiling("-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@needs_bindings
def test_the_creator_is_what_the_parser_looks_for(report):
    assert report["before"]
    assert report["name"] == [OP, DOMAIN, "1"]
    assert report["fields"] == {"epsilon": "FLOAT32", "iterated": "INT32"}
    assert report["inputs"] == ["tokens", "query", "logits", "alpha", "weight", "bias"]
    assert report["outputs"] == 2


@needs_bindings
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no type of an input", "alpha does not have a type annotation"),
        ("no type of an attribute", "epsilon does not have a type annotation"),
        ("no outputs", "No return annotation"),
        ("an attribute called tactic", "'tactic' is not allowed"),
        ("no kernel", "No return annotation"),
        ("no tactic", "does not match the expected input arg schema"),
        ("another order", "does not match the expected input arg schema"),
    ],
)
def test_tensorrt_validates_the_definition(change, message, report):
    assert report["nothing"] is None
    assert message in report[change]


@needs_bindings
def test_another_capability_is_refused(report):
    assert report["other"].startswith("BackendError: ")
    assert "8.9, 9.0" in report["other"]
    assert "plugin=off" in report["other"]


FORMS = {"paper": 89, "official": 90, "bfloat16": 80}


@needs_bindings
@pytest.mark.parametrize("name", FORMS)
def test_what_a_builder_learns(name, report):
    plugin, arch = report[name], FORMS[name]
    assert plugin["types"] == ["FLOAT", "FLOAT"]
    assert plugin["shapes"] == [[7, 10, 384], [7, 10, 577]]
    assert plugin["tactics"] == []
    # Half tokens reach a node whose other inputs are float32: nothing else is offered.
    offered = plugin["combinations"]
    rows = [tuple(kind for kind, _ in offered[i : i + 8]) for i in range(0, len(offered), 8)]
    assert rows == [(kind, *["FLOAT"] * 7) for kind in ("HALF", "BF16", "FLOAT")]
    assert {layout for _, layout in offered} == {"LINEAR"}

    threads = re.search(r"\.reqntid (\d+)", plugin["ptx"])
    assert threads
    expected = {"grid_x": 7, "grid_y": 1, "grid_z": 1, "block_y": 1, "block_z": 1}
    assert {k: v for k, v in plugin["launch"].items() if k in expected} == expected
    assert plugin["launch"]["block_x"] == int(threads[1])
    assert 0 < plugin["launch"]["shared_mem"] <= 48 * 1024

    # Inputs, number of tokens, outputs: TensorRT counts none, and would take a float for a size.
    assert plugin["declared"] == 1
    assert plugin["extra"] == [["INT32", 577]]
    bits = [int(b) for b in re.findall(r"\.param \.[usb](\d+)", plugin["ptx"])]
    assert bits == [64] * 6 + [32] + [64] * 2

    assert f".target sm_{arch}" in plugin["ptx"]
    assert f".entry {plugin['symbol']}(" in plugin["ptx"]
    assert 0 < plugin["registers"] <= 255  # from ptxas, which accepted the PTX


@needs_bindings
@pytest.mark.parametrize("extra", ["a number", "a float"])
def test_tensorrt_takes_sizes_only_as_int32(extra, report):
    assert report[extra].startswith("TypeError: Extra args must be")


@needs_bindings
def test_the_nodes_epsilon_is_the_kernels(report):
    assert "0f3727C5AC" in report["paper"]["ptx"]  # 1e-5
    assert "0f3E800000" in report["official"]["ptx"]  # 0.25
    assert "0f3727C5AC" not in report["official"]["ptx"]


@needs_bindings
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("open width", "InternalError: .*width"),
        ("3 queries", "InternalError: .* 10 experts, 3 queries and 10 alphas"),
        ("2 alphas", "InternalError: .* 10 experts, 10 queries and 2 alphas"),
        ("too wide", "BackendError: .* has no launch for width 2048"),
    ],
)
def test_a_node_without_a_kernel_is_refused(change, message, report):
    assert re.match(message, report[change])


@needs_bindings
def test_a_kernel_is_compiled_once(report):
    assert report["kernels"]["currsize"] == len(FORMS)
    assert report["kernels"]["hits"] == 2


def test_the_interpreter_compiles_nothing():
    with pytest.raises(BackendError, match="TRITON_INTERPRET"):
        tensorrt_plugin.register("8.9")


def test_layers_are_counted():
    names = ["CONVOLUTION", "PLUGIN_V3", "PLUGIN_V2", "MATRIX_MULTIPLY", "PLUGIN_V3"]
    layers = [SimpleNamespace(type=SimpleNamespace(name=name)) for name in names]
    network = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    assert tensorrt_plugin.plugin_layers(network) == 2


def pooling_graph(iterated: bool, alphas: int) -> onnx.ModelProto:
    """One node with float16 tokens, as a half model has it, and its function body."""
    proto = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : {OPSET}]>
    pooling (float16[B, N, d] tokens, float[B, Q, d] query, float[B, 10, N] logits,
        float[{alphas}] alpha, float[d] weight, float[d] bias)
        => (float[B, 10, d] pooled, float[B, 10, N] maps) {{
        pooled, maps = {DOMAIN}.{OP} <epsilon = 1e-5, iterated = {int(iterated)}>
            (tokens, query, logits, alpha, weight, bias) }}""")
    add_pooling_function(proto, iterated)
    return proto


@pytest.mark.parametrize("iterated", [False, True], ids=["single", "iterated"])
def test_the_plugins_kernel_is_the_graphs_function(iterated):
    """Interpreted, against ONNX Runtime: what an engine computes with and without the plugin."""
    from drexperts.kernels.differential_pooling_triton import forward_whole

    alphas = 1 if iterated else 10
    torch.manual_seed(0)
    given = {
        "tokens": torch.randn(2, 37, 64).half(),
        "query": torch.randn(2, 10, 64),
        "logits": torch.randn(2, 10, 37),
        "alpha": torch.rand(alphas),
        "weight": 1 + 0.3 * torch.randn(64),
        "bias": 0.3 * torch.randn(64),
    }
    session = onnxruntime.InferenceSession(
        pooling_graph(iterated, alphas).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, {name: value.numpy() for name, value in given.items()})
    tokens, query, logits, alpha, weight, bias = given.values()
    results = forward_whole((tokens, query, logits, alpha, weight, bias), 1e-5, iterated)
    for got, wanted in zip(results, expected, strict=True):
        assert np.abs(got.numpy() - wanted).max() < 2e-3 * np.abs(wanted).max()
