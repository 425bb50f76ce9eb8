"""`drx` in a process of its own, and stand-ins for the functions that its verbs call."""

import dataclasses
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from drexperts.runtime.manifest import Manifest, read_manifest, write_manifest
from support.waiting import PATIENCE

_RUNNER = "import sys; from drexperts.cli.main import main; sys.exit(main(sys.argv[1:]))"


def without(*libraries: str) -> str:
    """Python after which these libraries cannot be imported."""
    return "".join(f"import sys; sys.modules[{name!r}] = None\n" for name in libraries)


NO_TRAINING_LIBRARY = without(
    *("torch", "torchvision", "timm", "open_clip", "onnx", "onnxscript", "scipy", "safetensors"),
    *("skimage", "triton"),
)


def drx(*arguments: str | Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run `drx` after the Python statements in `before`."""
    command = [
        sys.executable,
        "-P",
        "-c",
        before + _RUNNER,
        *[os.fspath(argument) for argument in arguments],
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def change_engine(bundle: Path, **changes: Any) -> Manifest:
    """Rewrite the record of a bundle's only engine; returns the new manifest."""
    manifest = read_manifest(bundle)
    engine = dataclasses.replace(manifest.engines[0], **changes)
    manifest = dataclasses.replace(manifest, engines=(engine,))
    write_manifest(manifest, bundle)
    return manifest


def provide(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> dict[str, Any]:
    """A stand-in for a module; returns the arguments of each function's last call."""
    calls: dict[str, Any] = {}

    def recorder(function: str, result: Any) -> Any:
        def record(*args: Any, **kwargs: Any) -> Any:
            calls[function] = (args, kwargs)
            if isinstance(result, BaseException):
                raise result
            return result

        return record

    module = types.ModuleType(name)
    for function, result in functions.items():
        setattr(module, function, recorder(function, result))
    monkeypatch.setitem(sys.modules, name, module)
    return calls
