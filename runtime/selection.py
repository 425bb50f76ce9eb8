"""Which engine of a bundle this machine can run, and why not the others."""

import ctypes
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from drexperts.runtime import compatibility
from drexperts.runtime.errors import NotTakenError, UserError
from drexperts.runtime.interface import Tensor
from drexperts.runtime.manifest import Engine
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.scorer import Session
from drexperts.runtime.sealed import sealed_copy
from drexperts.runtime.tensorrt_session import TensorrtSession
from drexperts.runtime.trust import objection
from drexperts.runtime.wording import remedy


class Device(NamedTuple):
    """The device that the user asked for: kind "auto", "cpu" or "cuda", and the GPU's number."""

    kind: str
    gpu: int


class EngineSession(Session, Protocol):
    """A session on an engine of a bundle, which has the inputs and outputs named here."""

    @property
    def inputs(self) -> Sequence[Tensor]: ...

    @property
    def outputs(self) -> Sequence[Tensor]: ...


class Backend(NamedTuple):
    """The kind of device that runs an engine, and the function that opens it.

    `open` reads the engine's file once, and raises ChangedFileError unless it is the recorded one.
    """

    device: str
    open: Callable[[Path, Engine, int | None, int], EngineSession]


def _open_onnx(
    path: Path, engine: Engine, threads: int | None, gpu: int, *, provider: str
) -> EngineSession:
    options: dict[str, Any] = {"max_batch": engine.certified_batch, "threads": threads}
    if provider != "cpu":
        # TensorRT's provider names its cached engines after the model's file, if there is one.
        return OnnxSession(path, content=engine.read(path), provider=provider, gpu=gpu, **options)
    with sealed_copy(path, engine.sha256) as copy:
        if copy is None:
            return OnnxSession(path, content=engine.read(path), **options)
        return OnnxSession(path, content=copy.content, source=copy.path, **options)


def _open_plan(path: Path, engine: Engine, threads: int | None, gpu: int) -> EngineSession:
    return TensorrtSession(path, engine, gpu=gpu)


# Best first.
BACKENDS = {
    "tensorrt": Backend("cuda", _open_plan),
    "tensorrt-rtx": Backend("cuda", _open_plan),
    "onnx-tensorrt": Backend("cuda", functools.partial(_open_onnx, provider="tensorrt")),
    "onnx-cuda": Backend("cuda", functools.partial(_open_onnx, provider="cuda")),
    "onnx": Backend("cpu", functools.partial(_open_onnx, provider="cpu")),
}


def parse_device(text: str) -> Device:
    """Read "auto", "cpu", "cuda" or "cuda:1". Raises UserError for anything else."""
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d{1,3}))?", text) if isinstance(text, str) else None
    if match is None or (match[2] is not None and match[1] != "cuda"):
        raise UserError(f"device must be 'auto', 'cpu', 'cuda' or like 'cuda:1', got {text!r}")
    return Device(match[1], int(match[2] or 0))


def by_preference(engines: tuple[Engine, ...]) -> Iterator[Engine]:
    """The engines of known backends, best first: by backend, and 16-bit before float32."""
    for backend in BACKENDS:
        of_it = [engine for engine in engines if engine.backend == backend]
        yield from sorted(of_it, key=lambda engine: engine.precision == "fp32")


def check_wanted(engine: Engine, device: Device, *, unverified: bool) -> None:
    """Raise NotTakenError for an engine of another device than `device`, or without proof.

    Reasons that a proof would not change come first.
    """
    runs_on = BACKENDS[engine.backend].device
    if device.kind not in ("auto", runs_on):
        add = remedy("drx build BUNDLE --backend onnx-cuda", "build_engine(bundle, 'onnx-cuda')")
        more = f"; add one with `{add}`" * (runs_on == "cpu")
        raise NotTakenError(f"it runs on {runs_on}, but {device.kind} was asked for{more}")
    if reason := obstacle(engine, device.gpu):
        raise NotTakenError(reason)
    if not unverified:
        _check_proven(engine, device)


def _check_proven(engine: Engine, device: Device) -> None:
    prove = remedy(
        "prove it here with `drx verify BUNDLE --checkpoint FILE`",
        "prove it here with `drexperts.export.verify(bundle, checkpoint=...)`, or pass "
        "allow_unverified=True, which `runtime.load` takes",
    )
    if reason := engine.objection:
        raise NotTakenError(f"{reason}, so it may differ from the model: {prove}")
    here = capability(device.gpu)
    # A GPU of another compute capability runs other kernels of the same engine.
    if engine.proven_on not in (None, here):
        raise NotTakenError(f"it was proven on {engine.proven_on}, this GPU is {here}: {prove}")


def check_allowed(engine: Engine, gpu: int, *, trust: bool) -> None:
    """Raise NotTakenError for an engine that is not trusted or that this machine cannot run.

    `drexperts.runtime.trust` says what `trust` means.
    """
    if not trust and (distrust := objection(engine)):
        raise NotTakenError(distrust)
    if reason := obstacle(engine, gpu):
        raise NotTakenError(reason)


def obstacle(engine: Engine, gpu: int = 0) -> str | None:
    """Why this machine cannot run an engine; None if no reason is known before trying."""
    if engine.plan is not None:
        found = compatibility.gpus()
        chosen = found[gpu] if gpu < len(found) else None
        return compatibility.obstacle(engine, chosen, compatibility.library_version(engine))
    return why_no_driver() if BACKENDS[engine.backend].device == "cuda" else None


def capability(gpu: int = 0) -> str | None:
    """Compute capability of a GPU, such as "8.9"; None without that GPU or cuda-python."""
    found = compatibility.gpus()
    return found[gpu].capability if gpu < len(found) else None


def why_no_driver() -> str | None:
    """Why no library can use an NVIDIA GPU here; None if the driver offers one."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"it needs an NVIDIA GPU, but there is no driver here ({name})"
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value and not failed else "it needs an NVIDIA GPU, but there is none here"
