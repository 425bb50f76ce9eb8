"""Plans built with TensorRT for RTX, which needs no GPU and stands in for NVIDIA's TensorRT too."""

import importlib
import json
import logging
import os
import signal
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from support.reporting import Recorder
from support.waiting import HOLD, PATIENCE, holding

from drexperts.export.engines import options as engine_options
from drexperts.export.engines import tensorrt_engine as engine
from drexperts.export.engines.inspection import expectation_from_graph, inspection_from_plan
from drexperts.export.engines.options import EngineOptions
from drexperts.export.engines.tensorrt_engine import engine_from_onnx
from drexperts.export.graph.to_onnx import onnx_from_model
from drexperts.runtime.errors import (
    BuildError,
    MissingDependencyError,
    PlanError,
    UnreadablePlanError,
    UserError,
)
from drexperts.runtime.manifest import BatchProfile
from drexperts.runtime.progress import SILENT

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed"
)
no_gpu = pytest.mark.skipif(engine_options.gpu_capability() is not None, reason="there is a GPU")

SMALL = EngineOptions(profiles=(BatchProfile(1, 2, 4),), capabilities=("8.9",))


@pytest.fixture
def graph(graph_of):
    return graph_of("paper", "fp16")


def linear(op: str = "Relu") -> onnx.ModelProto:
    """A graph of one node, for tests that need no model."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 4]) for n in "xy"]
    node = helper.make_node(op, ["x"], ["y"], name="the_node")
    graph = helper.make_graph([node], "linear", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@rtx
@pytest.mark.slow
def test_a_plan(graph, tmp_path):
    told: list[tuple[str, int, int | None]] = []
    out = tmp_path / "model.engine"
    progress = Recorder(at=lambda *now: told.append(now))
    plan = engine_from_onnx(graph, "tensorrt-rtx", out, EngineOptions(), progress)
    assert plan.inspected
    assert plan.capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert (plan.plugin_layers, plan.profiles) == (0, (BatchProfile(1, 8, 64),))
    found = inspection_from_plan(out.read_bytes())
    assert (found.version, found.targets) == (plan.version, plan.capabilities)
    assert os.listdir(tmp_path) == ["model.engine"]
    assert len({phase for phase, _, _ in told}) > 3
    assert all(steps is not None and 0 <= done <= steps for _, done, steps in told)


@rtx
@pytest.mark.parametrize(
    "capability",
    [
        "7.5",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("8.0", "8.6", "8.9", "12.0", "12.1")),
    ],
)
def test_every_capability(capability, graph, tmp_path):
    options = replace(SMALL, capabilities=(capability,))
    plan = engine_from_onnx(graph, "tensorrt-rtx", tmp_path / "e", options)
    assert (plan.capabilities, plan.inspected) == ((capability,), True)
    products = inspection_from_plan((tmp_path / "e").read_bytes()).products
    assert ({"fp16"} == set().union(*products.values())) == (capability == "7.5")


@pytest.mark.slow
@rtx
def test_full_size(tmp_path):
    """The official model in float16, as it is deployed, for every GPU that the library knows."""
    import torch

    from drexperts.model.config import DRExpertsConfig
    from drexperts.model.dr_experts import new_model

    torch.manual_seed(0)
    proto = onnx_from_model(new_model(DRExpertsConfig.official()), maps=True, precision="fp16")
    plan = engine_from_onnx(proto, "tensorrt-rtx", tmp_path / "e", EngineOptions())
    assert plan.inspected
    assert {"8.0", "8.6", "8.9", "12.0", "12.1"} <= {*plan.capabilities}
    found = inspection_from_plan((tmp_path / "e").read_bytes())
    half = [name for name, kinds in found.products.items() if kinds == {"fp16"}]
    asked = expectation_from_graph(proto).products
    assert {name for name, kind in asked.items() if kind == "fp16"} <= {*half}
    assert found.fused_attention == 24

    options = EngineOptions(capabilities=("7.5",))
    plan = engine_from_onnx(proto, "tensorrt-rtx", tmp_path / "e", options)
    assert (plan.inspected, plan.capabilities) == (True, ("7.5",))
    found = inspection_from_plan((tmp_path / "e").read_bytes())
    assert {*found.products.values()} == {frozenset({"fp16"})}


@rtx
def test_integer_inputs(tmp_path):
    proto = linear("Neg")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.INT64
    assert engine_from_onnx(proto, "tensorrt-rtx", tmp_path / "e", SMALL).inspected


@rtx
def test_an_unknown_operator(tmp_path):
    with pytest.raises(BuildError, match=r"does not take the graph: the_node \(NoSuchOperator"):
        engine_from_onnx(linear("NoSuchOperator"), "tensorrt-rtx", tmp_path / "e", SMALL)
    assert os.listdir(tmp_path) == []


@rtx
def test_a_failed_build_keeps_what_was_there(graph, tmp_path):
    out = tmp_path / "model.engine"
    out.write_text("the engine before")
    with pytest.raises(BuildError, match="within workspace limit"):
        engine_from_onnx(graph, "tensorrt-rtx", out, replace(SMALL, workspace=2**16))
    assert out.read_text() == "the engine before"
    assert os.listdir(tmp_path) == ["model.engine"]


@rtx
def test_an_error_of_the_progress_ends_the_build(graph, tmp_path):
    def fail(*_: object) -> None:
        raise RuntimeError("the screen is gone")

    with pytest.raises(RuntimeError, match="the screen is gone"):
        engine_from_onnx(graph, "tensorrt-rtx", tmp_path / "e", SMALL, Recorder(at=fail))
    assert os.listdir(tmp_path) == []


INTERRUPTED = """
import onnx, sys
from pathlib import Path
from drexperts.export.engines.tensorrt_engine import EngineOptions, engine_from_onnx
options = EngineOptions(capabilities=("8.9",))
engine_from_onnx(onnx.load(sys.argv[1]), "tensorrt-rtx", Path(sys.argv[2]), options,
                 lambda phase, done, steps: HOLD)
""".replace("HOLD", HOLD)


@rtx
@pytest.mark.slow
def test_an_interrupted_build(graph, tmp_path):
    onnx.save(graph, tmp_path / "model.onnx")
    out = tmp_path / "out" / "model.engine"
    out.parent.mkdir()
    out.write_text("the engine before")
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "model.onnx"), str(out)]
    process = holding(command)  # the library is at work
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert out.read_text() == "the engine before"
    assert os.listdir(out.parent) == ["model.engine"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

    progress = Recorder()
    for out in (tmp_path / "absent" / "e", tmp_path / "file" / "e"):
        with pytest.raises(OSError, match=r"\.e\."):
            engine_from_onnx(linear(), "tensorrt-rtx", out, SMALL, progress)
    assert progress.messages == []


@rtx
def test_a_full_disk(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        engine_from_onnx(linear(), "tensorrt-rtx", tmp_path / "e", SMALL)
    assert os.listdir(tmp_path) == []


@rtx
@pytest.mark.slow
def test_a_plan_in_another_precision_is_not_kept(graph, graph_of, tmp_path, monkeypatch):
    """As if the library had silently built the graph in float32."""
    fp32 = graph_of("paper", "fp32")
    engine_from_onnx(fp32, "tensorrt-rtx", tmp_path / "fp32", SMALL)
    silently = (tmp_path / "fp32").read_bytes()
    monkeypatch.setattr(engine._Build, "_serialise", lambda *_: silently)
    with pytest.raises(PlanError, match=r"fp32.* fp16"):
        engine_from_onnx(graph, "tensorrt-rtx", tmp_path / "e", SMALL)
    assert os.listdir(tmp_path) == ["fp32"]


@rtx
@pytest.mark.parametrize("change", [{"version": "1.6.1.116"}, {"targets": ("8.9", "12.0")}])
def test_a_plan_of_another_version_or_gpu_is_refused(change, tmp_path, monkeypatch):
    monkeypatch.setattr(
        engine, "inspection_from_plan", lambda plan: replace(inspection_from_plan(plan), **change)
    )
    with pytest.raises(PlanError, match="version"):
        engine_from_onnx(linear(), "tensorrt-rtx", tmp_path / "e", SMALL)
    assert os.listdir(tmp_path) == []


@rtx
def test_a_plan_that_cannot_be_read(tmp_path, monkeypatch, caplog):
    def unreadable(plan: bytes) -> None:
        raise UnreadablePlanError("it is of a later version")

    monkeypatch.setattr(engine, "inspection_from_plan", unreadable)
    with caplog.at_level(logging.WARNING):
        plan = engine_from_onnx(linear(), "tensorrt-rtx", tmp_path / "e", SMALL)
    assert not plan.inspected
    assert "not inspected: it is of a later version" in caplog.text


@pytest.mark.parametrize(
    ("backend", "change", "message"),
    [
        ("tensorrt-rtx", {"version_compatible": True}, "version_compatible"),
        ("tensorrt-rtx", {"hardware_compatibility": "ampere+"}, "hardware_compatibility"),
        ("tensorrt-rtx", {"optimization_level": 5}, "optimization_level"),
        ("tensorrt-rtx", {"timing_cache": Path("t")}, "timing_cache"),
        ("tensorrt-rtx", {"plugin": "require"}, "no plugins"),
        ("tensorrt-rtx", {"profiles": (BatchProfile(2, 2, 4),)}, "a batch of 1"),
        ("tensorrt", {"capabilities": ("8.9",)}, "capabilities"),
    ],
)
def test_options_that_a_library_does_not_support(backend, change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        engine_from_onnx(linear(), backend, tmp_path / "e", EngineOptions(**change))


@rtx
@pytest.mark.parametrize(
    ("capabilities", "message"),
    [(("9.0",), "9.0"), (("7.5", "8.9"), "7.5"), (("x",), "x")],
)
def test_invalid_capabilities(capabilities, message, tmp_path):
    options = replace(SMALL, capabilities=capabilities)
    with pytest.raises(UserError, match=message):
        engine_from_onnx(linear(), "tensorrt-rtx", tmp_path / "e", options)


def test_turing_cannot_be_stripped(tmp_path, monkeypatch):
    """Its graph is not the bundle's, from which the weights would be put back."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(engine_options, "gpu_capability", lambda: "7.5")
    options = replace(SMALL, stripped=True, capabilities=("7.5",))
    with pytest.raises(UserError, match="stripped=True"):
        engine_from_onnx(linear(), "tensorrt-rtx", tmp_path / "e", options)


@rtx
@no_gpu
def test_stripping_needs_a_gpu(tmp_path):
    options = replace(SMALL, stripped=True)
    with pytest.raises(UserError, match="GPU"):
        engine_from_onnx(linear(), "tensorrt-rtx", tmp_path / "e", options)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_library(backend, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, engine_options.LIBRARIES[backend].module, None)
    with pytest.raises(MissingDependencyError, match=rf'pip install "drexperts\[{backend}\]"'):
        engine_from_onnx(linear(), backend, tmp_path / "e", EngineOptions())


@pytest.fixture
def stand_in(monkeypatch):
    """TensorRT for RTX called `tensorrt`, as if on a machine with a GPU of capability 8.9."""
    real = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    module = types.ModuleType("tensorrt")
    vars(module).update(vars(real) | {"__version__": "11.4.0.106", "__name__": "tensorrt"})
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(engine_options, "gpu_capability", lambda: "8.9")
    return module


def inspector(kind: str) -> Callable[..., str]:
    """An engine inspector's document in which all products are of one type."""
    names = ("score", "weights", "maps")
    ends = [{"Name": "pixels", "DataType": "UInt8"}]
    ends += [{"Name": name, "DataType": "Float"} for name in names]

    def describe(build: Any, plan: Any) -> str:
        found = inspection_from_plan(bytes(plan))
        layers = [
            {"Metadata": f"[ONNX Layer: {name}]", "Inputs": [{"DataType": kind or types.upper()}]}
            for name, (types, *_) in found.products.items()
        ]
        return json.dumps({"Layers": layers, "I/O Tensors": ends})

    return describe


@pytest.mark.slow
def test_tensorrt(stand_in, graph, tmp_path, monkeypatch):
    monkeypatch.setattr(engine._Build, "_inspector_document", inspector(""))
    options = EngineOptions(optimization_level=2, plugin="off")
    plan = engine_from_onnx(graph, "tensorrt", tmp_path / "e", options)
    assert (plan.version, plan.capabilities) == ("11.4.0.106", ("8.9",))
    assert plan.inspected


@pytest.mark.slow
def test_tensorrt_in_another_precision(stand_in, graph, tmp_path, monkeypatch):
    monkeypatch.setattr(engine._Build, "_inspector_document", inspector("Float"))
    options = EngineOptions(plugin="off")
    with pytest.raises(PlanError, match=r"fp32.* fp16"):
        engine_from_onnx(graph, "tensorrt", tmp_path / "e", options)
    assert os.listdir(tmp_path) == []


def test_tensorrt_without_a_gpu(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_options, "gpu_capability", lambda: None)
    with pytest.raises(UserError, match="backend tensorrt-rtx"):
        engine_from_onnx(linear(), "tensorrt", tmp_path / "e", EngineOptions())


def test_turing_has_float32_products_in_tensorrt(stand_in, tmp_path, monkeypatch):
    """A float32 graph, which `half_products` refuses."""
    monkeypatch.setattr(engine_options, "gpu_capability", lambda: "7.5")
    monkeypatch.setattr(engine._Build, "_inspect", lambda *_: None)
    options = EngineOptions(plugin="off")
    plan = engine_from_onnx(linear(), "tensorrt", tmp_path / "e", options)
    assert plan.capabilities == ("7.5",)


def test_an_old_tensorrt(stand_in, tmp_path):
    vars(stand_in)["__version__"] = "10.9.0.34"
    with pytest.raises(UserError, match=r"10.9.0.34 is too old, 10.13 or later"):
        engine_from_onnx(linear(), "tensorrt", tmp_path / "e", EngineOptions())


@rtx
@pytest.mark.slow
def test_several_profiles(graph, tmp_path):
    options = replace(SMALL, profiles=(BatchProfile(1, 1, 1), BatchProfile(2, 4, 8)))
    plan = engine_from_onnx(graph, "tensorrt-rtx", tmp_path / "e", options)
    assert plan.inspected
    assert plan.profiles == (BatchProfile(1, 1, 1), BatchProfile(2, 4, 8))


class Plugin(types.ModuleType):
    """A stand-in for the plugin's module, which records its calls."""

    def __init__(self, layers: int, error: Exception | None = None) -> None:
        super().__init__("drexperts.export.engines.tensorrt_plugin")
        self.registered: list[str] = []
        self.layers, self.error = layers, error

    def register(self, capability: str) -> None:
        if self.error is not None:
            raise self.error
        self.registered.append(capability)

    def plugin_layers(self, network: Any) -> int:
        return self.layers


def built_with(
    plugin: Plugin, options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    monkeypatch.setattr(engine._Build, "_inspect", lambda *_: None)
    return engine_from_onnx(linear(), "tensorrt", folder / "e", options)


@pytest.mark.parametrize(
    ("options", "registered"),
    [
        (EngineOptions(), ["8.9"]),
        (EngineOptions(plugin="require"), ["8.9"]),
        (EngineOptions(hardware_compatibility="ampere+"), ["8.0"]),
        (EngineOptions(plugin="off"), []),
    ],
)
def test_the_plugin_is_registered(options, registered, stand_in, tmp_path, monkeypatch):
    plugin = Plugin(layers=1)
    plan = built_with(plugin, options, tmp_path, monkeypatch)
    assert plugin.registered == registered
    assert plan.plugin_layers == len(registered)


def test_a_required_plugin_that_the_parser_ignores(stand_in, tmp_path, monkeypatch):
    with pytest.raises(BuildError, match="plugin=prefer"):
        built_with(Plugin(layers=0), EngineOptions(plugin="require"), tmp_path, monkeypatch)
    assert built_with(Plugin(layers=0), EngineOptions(), tmp_path, monkeypatch).plugin_layers == 0


def test_a_plugin_that_cannot_be_registered(stand_in, tmp_path, monkeypatch, caplog):
    plugin = Plugin(layers=1, error=UserError("not made for 8.9"))
    with pytest.raises(UserError, match=r"not made for 8\.9"):
        built_with(plugin, EngineOptions(plugin="require"), tmp_path, monkeypatch)
    assert built_with(plugin, EngineOptions(), tmp_path, monkeypatch).plugin_layers == 0
    assert "without the plugin: not made for 8.9" in caplog.text


def test_a_plugin_that_cannot_be_built(stand_in, tmp_path, monkeypatch, caplog):
    """TensorRT swallows what the definition raises, and the build returns no engine."""
    serialise = engine._Build._serialise

    def failing(self: Any, *given: Any) -> Any:
        if self.options.plugin == "off":
            return serialise(self, *given)
        raise BuildError("could not build the engine")

    monkeypatch.setattr(engine._Build, "_serialise", failing)
    with pytest.raises(BuildError):
        built_with(Plugin(layers=1), EngineOptions(plugin="require"), tmp_path, monkeypatch)
    assert built_with(Plugin(layers=1), EngineOptions(), tmp_path, monkeypatch).plugin_layers == 0
    assert "built again, without the plugin: could not build" in caplog.text


@pytest.mark.slow
def test_without_the_plugin_functions_are_inlined(stand_in, graph, tmp_path, monkeypatch):
    parsed: list[onnx.ModelProto] = []
    parse = engine._Build._parse

    def watched(build: Any, builder: Any, proto: onnx.ModelProto) -> Any:
        parsed.append(proto)
        return parse(build, builder, proto)

    monkeypatch.setattr(engine._Build, "_parse", watched)
    monkeypatch.setattr(engine._Build, "_inspect", lambda *_: None)
    options = EngineOptions(plugin="off")
    engine_from_onnx(graph, "tensorrt", tmp_path / "e", options)
    assert not parsed[0].functions
    assert "drexperts" not in {node.domain for node in parsed[0].graph.node}


class Config:
    """A builder's configuration that accepts only the caches it knows, and returns `kept`."""

    def __init__(self, known: bytes, kept: bytes = b"") -> None:
        self.known, self.kept, self.used = known, kept, b"none"

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, content: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        taken = content in (self.known, b"")
        self.used = content if taken else self.used
        return taken

    def get_timing_cache(self) -> Any:
        return types.SimpleNamespace(serialize=lambda: self.kept)


@pytest.mark.parametrize(
    ("there", "used"), [(None, b""), (b"ours", b"ours"), (b"of another version", b"")]
)
def test_timing_cache(there, used, tmp_path):
    path = tmp_path / "timing"
    if there is not None:
        path.write_bytes(there)
    config = Config(known=b"ours", kept=b"longer")
    engine._load_timing_cache(config, path)
    assert config.used == used
    build = engine._Build(
        None,
        engine_options.LIBRARIES["tensorrt"],
        EngineOptions(timing_cache=path),
        (),
        engine._Messages(),
        SILENT,
    )
    build._keep_timing_cache(config)
    assert path.read_bytes() == b"longer"
    assert os.listdir(tmp_path) == ["timing"]
