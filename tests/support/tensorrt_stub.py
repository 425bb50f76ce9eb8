"""TensorRT's Python plugin module without TensorRT: what a CPU can check of a plugin's definition.

The bindings' wheel holds the whole plugin module, which can be imported if the libraries it is
linked to exist. The lean runtime's wheel has the plugin registry; the other libraries are stubs
compiled here. There is no builder, so `walk` calls the plugin as a builder would, with shape
expressions of our own in place of those that TensorRT implements in C++.
"""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)


def missing() -> str | None:
    """Why the plugin module cannot be imported here."""
    for package in ("triton", "tensorrt_bindings", "tensorrt_lean_libs"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    return None if shutil.which("cc") else "there is no C compiler for the stub libraries"


def libraries(folder: Path) -> Path:
    """The folder, with the libraries that the bindings are linked to."""
    spec = importlib.util.find_spec("tensorrt_lean_libs")
    assert spec is not None
    assert spec.origin is not None
    (lean,) = Path(spec.origin).parent.glob("libnvinfer_lean.so.*")
    major = lean.suffix
    (folder / f"libnvinfer.so{major}").symlink_to(lean)
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for name in ("nvonnxparser", "nvinfer_plugin"):
        library = folder / f"lib{name}.so{major}"
        subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return folder


def tensorrt() -> Any:
    """The bindings, under the name that TensorRT's own package would give them."""
    sys.modules["tensorrt"] = importlib.import_module("tensorrt_bindings")
    return sys.modules["tensorrt"]


@dataclass(frozen=True)
class Dimension:
    """Stands in for IDimensionExpr: a size, or how it follows from the sizes left open."""

    value: Callable[[Mapping[str, int]], int]
    constant: bool = False

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        assert self.constant
        return self.value({})


class Builder:
    """Stands in for IExprBuilder. Sums are all that the plugin module itself asks for."""

    def constant(self, value: int) -> Dimension:
        return Dimension(lambda sizes: value, constant=True)

    def operation(self, kind: Any, first: Dimension, second: Dimension) -> Dimension:
        assert kind.name == "SUM"
        both = first.constant and second.constant
        return Dimension(lambda sizes: first.value(sizes) + second.value(sizes), both)


def dimension(size: int | str) -> Dimension:
    return Builder().constant(size) if isinstance(size, int) else Dimension(lambda at: at[size])


def stand_in(trt: Any) -> None:
    """Let the plugin module compute with our dimensions, for the rest of the process."""
    import tensorrt.plugin._tensor as tensors

    trt.IDimensionExpr, trt.DimsExprs = Dimension, lambda length: [None] * length
    # In place of properties that take C++'s own alone, and cannot be read.
    tensors.SymExprImpl.expr = tensors.SymExprImpl.dtype = None


def description(trt: Any, kind: str, shape: tuple[int | str, ...]) -> Any:
    described = trt.DynamicPluginTensorDesc()
    described.desc.type = getattr(trt.DataType, kind)
    described.desc.format = trt.TensorFormat.LINEAR
    described.desc.dims = tuple(size if isinstance(size, int) else -1 for size in shape)
    return described


def created(trt: Any, name: str, namespace: str, **attributes: np.ndarray) -> Any:
    """A plugin by its creator in the registry, from attributes as the ONNX parser passes them."""
    types = {"float32": trt.PluginFieldType.FLOAT32, "int32": trt.PluginFieldType.INT32}
    fields = [trt.PluginField(k, v, types[v.dtype.name]) for k, v in attributes.items()]
    creator = trt.get_plugin_registry().get_creator(name, "1", namespace)
    assert [field.name for field in creator.field_names] == list(attributes)
    collection = trt.PluginFieldCollection(fields)
    strict = trt.QuickPluginCreationRequest.STRICT_AOT
    return creator.create_plugin(name, namespace, collection, trt.TensorRTPhase.BUILD, strict)


class Extra(dict[int, Any]):
    """Stands in for ISymExprs: the kernel's arguments between inputs and outputs."""

    nbSymExprs = 0  # noqa: N815, TensorRT's name


def walk(
    trt: Any, plugin: Any, inputs: list[tuple[str, tuple[int | str, ...]]], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """What a builder learns from a plugin: outputs, type combinations, launch and kernel.

    Args:
        inputs: type and shape of each; open dimensions by name.
        sizes: of the open dimensions, at which symbolic results are evaluated.
    """
    kinds, shapes = zip(*inputs, strict=True)
    types = plugin.get_output_data_types(
        [getattr(trt.DataType, k) for k in kinds], list(map(len, shapes))
    )
    exprs = [[dimension(size) for size in shape] for shape in shapes]
    outputs = plugin.get_output_shapes(exprs, [], Builder())
    described = [description(trt, *given) for given in inputs]
    made = [description(trt, t.name, ("?",) * len(s)) for t, s in zip(types, outputs, strict=True)]
    every = described + made
    combinations = plugin.get_supported_format_combinations(every, len(inputs))
    plugin.configure_plugin(described, made)
    tactics = plugin.get_valid_tactics()
    plugin.set_tactic(0)
    launch, extra = SimpleNamespace(), Extra()
    plugin.get_launch_params(exprs, every, len(inputs), launch, extra, Builder())
    symbol, ptx = plugin.get_kernel([d.desc for d in described], [d.desc for d in made])
    return {
        "types": [kind.name for kind in types],
        "shapes": [[expr.value(sizes) for expr in shape] for shape in outputs],
        "combinations": [[d.type.name, d.format.name] for d in combinations],
        "tactics": tactics,
        "launch": {name: value.expr.value(sizes) for name, value in vars(launch).items()},
        "extra": [[arg.dtype.name, arg.expr.value(sizes)] for arg in extra.values()],
        "declared": extra.nbSymExprs,
        "symbol": symbol,
        "ptx": ptx.decode(),
    }
