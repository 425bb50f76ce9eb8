"""Which engine of a bundle this machine can run, and why not the others."""

import ctypes
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from drexperts.runtime import compatibility
from drexperts.runtime.cpus import cpu_capability
from drexperts.runtime.errors import NotTakenError, UserError
from drexperts.runtime.interface import Tensor
from drexperts.runtime.manifest import CPU_BACKENDS, Engine
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.openvino_cache import CompiledModels
from drexperts.runtime.openvino_library import openvino_version
from drexperts.runtime.openvino_session import DEVICE, PROPERTIES, OpenvinoSession, settings_of
from drexperts.runtime.sealed import sealed_copy
from drexperts.runtime.session import Session
from drexperts.runtime.tensorrt_session import TensorrtSession
from drexperts.runtime.trust import objection
from drexperts.runtime.wording import rebuild, remedy


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


_Opened = TypeVar("_Opened", bound=EngineSession)


class Resources(NamedTuple):
    """What an engine may use, each for the backends that have it.

    threads: of the CPU; None is one per core that this process may use
    streams: how many calls an OpenVINO engine computes at once, which share the threads
    gpu: the GPU's number
    """

    threads: int | None = None
    streams: int = 1
    gpu: int = 0


class Backend(NamedTuple):
    """The kind of device that runs an engine, and the function that opens it.

    `open` reads the engine's file once, and raises ChangedFileError unless it is the recorded one.
    """

    device: str
    open: Callable[[Path, Engine, Resources], EngineSession]


def _open_onnx(path: Path, engine: Engine, use: Resources, *, provider: str) -> EngineSession:
    options: dict[str, Any] = {"max_batch": engine.certified_batch, "threads": use.threads}
    if provider != "cpu":
        options |= {"provider": provider, "gpu": use.gpu}
        # TensorRT's provider names its cached engines after the model's file, if there is one.
        return OnnxSession(path, content=engine.read(path), **options)
    return _opened_sealed(OnnxSession, path, engine, options)


def _open_openvino(path: Path, engine: Engine, use: Resources) -> EngineSession:
    options: dict[str, Any] = {
        **{"max_batch": engine.certified_batch, "wanted": engine.products},
        **{"threads": use.threads, "streams": use.streams},
    }
    kept = CompiledModels(
        engine.sha256, cpu_capability(), version=openvino_version(), set=PROPERTIES
    )
    before = kept.imported(DEVICE, settings_of(use.threads, use.streams), engine.products)
    if before is not None:
        engine.check(path)
        return OpenvinoSession(path, compiled=before, **options)
    session = _opened_sealed(OpenvinoSession, path, engine, options)
    kept.keep(session.compiled)
    return session


def _opened_sealed(
    kind: Callable[..., _Opened], path: Path, engine: Engine, options: dict[str, Any]
) -> _Opened:
    """A session on a copy of the file that cannot change, or on its bytes where there is none."""
    with sealed_copy(path, engine.sha256) as copy:
        if copy is None:
            return kind(path, content=engine.read(path), **options)
        return kind(path, content=copy.content, source=copy.path, **options)


def _open_plan(path: Path, engine: Engine, use: Resources) -> EngineSession:
    return TensorrtSession(path, engine, gpu=use.gpu)


# Best first.
BACKENDS = {
    "tensorrt": Backend("cuda", _open_plan),
    "tensorrt-rtx": Backend("cuda", _open_plan),
    "onnx-tensorrt": Backend("cuda", functools.partial(_open_onnx, provider="tensorrt")),
    "onnx-cuda": Backend("cuda", functools.partial(_open_onnx, provider="cuda")),
    "openvino": Backend("cpu", _open_openvino),
    "onnx": Backend("cpu", functools.partial(_open_onnx, provider="cpu")),
}


def parse_device(text: str) -> Device:
    """Read "auto", "cpu", "cuda" or "cuda:1". Raises UserError for anything else."""
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d{1,3}))?", text) if isinstance(text, str) else None
    if match is None or (match[2] is not None and match[1] != "cuda"):
        raise UserError(f"device must be 'auto', 'cpu', 'cuda' or like 'cuda:1', got {text!r}")
    return Device(match[1], int(match[2] or 0))


def chosen(engines: tuple[Engine, ...], name: str | None) -> tuple[Engine, ...]:
    """The engines of a backend, or of a file of the bundle; all of them for None.

    Raises UserError, with what there is, for any other name.
    """
    if name is None:
        return engines
    found = tuple(engine for engine in engines if name in (engine.backend, engine.file))
    if not found:
        there = ", ".join(f"{engine.file} ({engine.backend})" for engine in engines)
        raise UserError(
            f"the bundle has no engine {name!r}: name a backend or a file of {there or 'none'}"
        )
    return found


def by_preference(engines: tuple[Engine, ...]) -> Iterator[Engine]:
    """The engines of known backends, best first: by backend, and 16-bit before float32.

    OpenVINO's with 8 bits, which are the fastest on a CPU, come before those with 16.
    """
    for backend in BACKENDS:
        of_it = [engine for engine in engines if engine.backend == backend]
        yield from sorted(of_it, key=_slowness)


def _slowness(engine: Engine) -> int:
    if engine.backend == "openvino":
        return ("int8", "bf16", "fp16", "fp32").index(engine.precision)
    return engine.precision == "fp32"


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
        how = rebuild(engine.backend) if engine.types_unknown else prove
        raise NotTakenError(f"{reason}, so it may differ from the model: {how}")
    here, runs_on = capability_for(engine, device.gpu), BACKENDS[engine.backend].device
    # A processor of another capability runs other kernels of the same engine.
    known = (here,) if engine.backend == "openvino" else (None, here)
    if engine.proven_on not in known:
        kind = {"cpu": "CPU", "cuda": "GPU"}[runs_on]
        where = engine.proven_on or f"an unknown {kind}"
        raise NotTakenError(f"it was proven on {where}, this {kind} is {here}: {prove}")


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
    if engine.backend == "openvino":
        return compatibility.openvino_obstacle(engine, openvino_version())
    if engine.plan is not None:
        found = compatibility.gpus()
        chosen = found[gpu] if gpu < len(found) else None
        return compatibility.obstacle(engine, chosen, compatibility.library_version(engine))
    return why_no_driver() if BACKENDS[engine.backend].device == "cuda" else None


def capability(gpu: int = 0) -> str | None:
    """Compute capability of a GPU, such as "8.9"; None without that GPU or cuda-python."""
    found = compatibility.gpus()
    return found[gpu].capability if gpu < len(found) else None


def capability_for(engine: Engine, gpu: int = 0) -> str | None:
    """The capability of this machine that a proof of an engine holds for.

    Of the CPU for OpenVINO, such as "x86_64-amx"; None for ONNX Runtime on the CPU, whose float32
    is the same on each; that of the GPU otherwise.
    """
    if engine.backend == "openvino":
        return cpu_capability()
    return None if engine.backend in CPU_BACKENDS else capability(gpu)


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
