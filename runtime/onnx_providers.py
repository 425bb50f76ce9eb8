"""Sessions of ONNX Runtime on the CPU, or on a GPU through its CUDA or TensorRT provider.

If a GPU provider cannot be used, ONNX Runtime logs a line and continues on the CPU. Here that is an
error, and `shared_with` tells which nodes a usable provider leaves to others.
The GPU providers have not been executed on a GPU; their refusal without one has.
"""

import contextlib
import hashlib
import importlib
import io
import logging
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from drexperts.runtime.cpus import available_cores
from drexperts.runtime.errors import BundleError, DeviceError
from drexperts.runtime.installing import install_command
from drexperts.runtime.onnx_file import Content
from drexperts.runtime.places import cache_folder

Model = Content | str  # its bytes, or the path of a file

_ERRORS_ONLY = 3
_USUAL_BATCH = 8  # the default of the Scorer
NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

CUDA_OPTIONS = {
    "use_tf32": "0",  # float32 stays float32
    # Chosen from the shapes by rule. The default searches, and may choose differently next time.
    "cudnn_conv_algo_search": "HEURISTIC",
}

# The ONNX model y = x for float32 [1], serialised: it opens a provider without our graph.
_IDENTITY = (
    b"\x08\x08:7\n\x10\n\x01x\x12\x01y\x22\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01"
    b"\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)

_MISSING_LIBRARY = re.compile(r"with error: (.+)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# A pattern of the cause, and what to do about it. The first that matches is used.
_REMEDIES = (
    ("nvinfer|nvonnxparser|TensorRT", "install the TensorRT version in the library's name"),
    (r"libcuda\.|nvcuda|driver", "install NVIDIA's driver"),
    ("cublas|cudnn|cudart|curand|cufft", 'pip install "onnxruntime-gpu[cuda,cudnn]"'),
    ("", "check whether `nvidia-smi` lists the GPU"),
)

_log = logging.getLogger(__name__)
_standard_error = threading.Lock()


class _Job(NamedTuple):
    """What the options of a provider depend on.

    model: the bytes of the ONNX file
    shape: of the graph's input, with a name for each dynamic dimension
    """

    model: Content
    version: str
    max_batch: int
    gpu: int
    input: str
    shape: list[Any]


def new_options(runtime: Any, threads: int | None) -> Any:
    """Session options. threads: CPU threads per operator; None is one per available core."""
    # The memory options keep their defaults, with which memory was lowest: see docs/log.md.
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    # Otherwise the bytes may be in ONNX Runtime's own format, which `onnx_file` does not read.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Where weights outside the model would be, which `onnx_file` refuses: no file is inside it.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    # The library's own default counts the machine's cores, also where a quota or the affinity
    # leaves fewer: under a quota of 1 of 2 CPUs a full-size model takes 1.5 times as long with it.
    options.intra_op_num_threads = available_cores() if threads is None else threads
    return options


def cpu_session(runtime: Any, model: Model, options: Any, name: str) -> Any:
    """A session on the CPU. Raises BundleError for a model that cannot be loaded.

    name: of the model's file, for the message
    """
    try:
        return _new_session(runtime, model, options, [NAMES["cpu"]])
    except Exception as cause:
        reason = str(cause).replace(model, name) if isinstance(model, str) else str(cause)
        raise BundleError(
            f"ONNX Runtime cannot load {name}: {reason}; export the bundle again with `drx export`"
        ) from cause


def gpu_session(
    runtime: Any, model: Content, options: Any, name: str, provider: str, gpu: int, max_batch: int
) -> Any:
    """A session on a GPU. Raises DeviceError if the provider cannot be used."""
    kind = NAMES[provider]
    _check_opens(runtime, kind, gpu)
    # On the CPU first: that tells a bad file from a bad device, and refuses a file with an engine
    # inside (EPContext), which the TensorRT provider would deserialise.
    graph_input = _graph_input(runtime, model, name)
    job = _Job(model, runtime.__version__, max_batch, gpu, graph_input.name, graph_input.shape)
    options.use_deterministic_compute = True
    # Not "session.disable_cpu_ep_fallback": it also refuses the shape arithmetic that ONNX Runtime
    # keeps on the CPU because it is faster there.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = _new_session(runtime, model, options, _PROVIDERS[provider](job))
    except Exception as cause:
        raise _unusable(kind, str(cause)) from cause
    if kind not in _nodes_by_provider(session):
        raise _unusable(kind, "it runs no node of this graph")
    return session


def _new_session(runtime: Any, model: Model, options: Any, providers: list[Any]) -> Any:
    """A session on these providers and no others, which does not keep the model's bytes."""
    session = runtime.InferenceSession(
        model,
        options,
        providers=providers,
        enable_fallback=0,
        read_config_from_model=0,  # whatever the environment says: options are ours
    )
    # ONNX Runtime's Python class keeps them for a fallback to other providers.
    if hasattr(session, "_model_bytes"):
        session._model_bytes = None
    return session


def _check_opens(runtime: Any, name: str, gpu: int) -> None:
    """Open the provider on this GPU without our graph. Raises DeviceError, which says why not."""
    if name not in runtime.get_available_providers():
        raise DeviceError(
            f"this onnxruntime was built without {name}: pip uninstall onnxruntime, then "
            f"{install_command('gpu')}; or use the CPU"
        )
    _load_libraries(runtime, name)
    asked = [(name, {"device_id": str(gpu)})]
    refusal = ""
    with _caught_standard_error() as caught:
        try:
            session = _new_session(runtime, _IDENTITY, new_options(runtime, None), asked)
            opened = session.get_providers()[0] == name
        except Exception as cause:
            opened, refusal = False, str(cause)
    log = caught()
    if not opened:
        raise _unusable(name, _missing_library_in(log) or refusal or log)
    os.write(2, log.encode())


def _load_libraries(runtime: Any, name: str) -> None:
    """Load libraries from Python packages, which the dynamic linker does not find."""
    with contextlib.redirect_stdout(io.StringIO()):  # it lists there what it does not find
        runtime.preload_dlls()
    if name == NAMES["tensorrt"]:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt")


@contextlib.contextmanager
def _caught_standard_error() -> Iterator[Callable[[], str]]:
    """Catch what is written to file descriptor 2, where alone a provider says why it failed."""
    text = ""
    with _standard_error, tempfile.TemporaryFile() as file:
        shown = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: text
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            file.seek(0)
            text = _COLOUR.sub("", file.read().decode(errors="replace"))


def _missing_library_in(log: str) -> str:
    """The shared library that could not be loaded, and why; empty if there is none."""
    found = _MISSING_LIBRARY.search(log)
    return found.group(1).strip() if found else ""


def _unusable(name: str, cause: str) -> DeviceError:
    remedy = next(remedy for words, remedy in _REMEDIES if re.search(words, cause))
    return DeviceError(f"ONNX Runtime cannot use {name}: {cause.strip()}; {remedy}, or use the CPU")


def _graph_input(runtime: Any, model: Content, name: str) -> Any:
    options = new_options(runtime, None)
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return cpu_session(runtime, model, options, name).get_inputs()[0]


def _cuda(job: _Job) -> list[tuple[str, dict[str, str]]]:
    return [(NAMES["cuda"], {"device_id": str(job.gpu), **CUDA_OPTIONS})]


def _tensorrt(job: _Job) -> list[tuple[str, dict[str, str]]]:
    """TensorRT, and CUDA for the nodes it refuses. The graph sets the precision, not a flag."""
    options = {"device_id": str(job.gpu), **_cache_options(job)}
    usual = min(_USUAL_BATCH, job.max_batch)
    for kind, batch in (("min", 1), ("opt", usual), ("max", job.max_batch)):
        shape = "x".join(str(size) for size in (batch, *job.shape[1:]))
        options[f"trt_profile_{kind}_shapes"] = f"{job.input}:{shape}"
    return [(NAMES["tensorrt"], options), *_cuda(job)]


def _cache_options(job: _Job) -> dict[str, str]:
    """Where TensorRT keeps engines and timings; nothing if there is no such place."""
    try:
        cache = str(_engine_cache(job))
    except OSError as cause:
        _log.info("TensorRT's engines are not kept: %s", cause)
        return {}
    kinds = ("engine", "timing")
    return {f"trt_{kind}_cache_enable": "1" for kind in kinds} | {
        f"trt_{kind}_cache_path": cache for kind in kinds
    }


def _engine_cache(job: _Job) -> Path:
    """A folder per model and version, because ONNX Runtime would reuse engines across them."""
    digest = hashlib.sha256(job.model).hexdigest()
    key = f"{digest[:16]}-{job.version}-batch{job.max_batch}"
    folder = cache_folder() / "onnx-tensorrt" / key
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


# The options of each provider, and those of the next best one for the nodes that it refuses.
_PROVIDERS: dict[str, Callable[[_Job], list[tuple[str, dict[str, str]]]]] = {
    "cuda": _cuda,
    "tensorrt": _tensorrt,
}


def _nodes_by_provider(session: Any) -> Counter[str]:
    """How many of the graph's nodes each provider runs."""
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return counts


def shared_with(session: Any, name: str) -> str:
    """What other providers run, such as ", 9 of 600 nodes on CPUExecutionProvider"."""
    nodes = _nodes_by_provider(session)
    total = nodes.total()
    others = sorted(nodes.keys() - {name})
    return "".join(f", {nodes[other]} of {total} nodes on {other}" for other in others)
