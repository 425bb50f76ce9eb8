"""A bundle as a model repository of NVIDIA's Triton Inference Server: `drx triton-repo`.

The server is unrelated to the Triton language of `drexperts.kernels`. It gets an entry for each way
to run the bundle, `<name>_onnx` (ONNX Runtime on the CPU), `<name>_onnx_cuda` and
`<name>_tensorrt`, each limited to what the bundle's proof covers: its kind of device and its batch.
Clients cut crops and average their scores; the repository's README.md says how.
Tests check the configurations against the server's own schema, and server 2.51 has read and served
one, with ONNX Runtime behind its Python backend. Its own ONNX Runtime and TensorRT backends have
not been executed with them.
"""

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from google.protobuf.text_encoding import CEscape  # type: ignore[import-untyped]

from drexperts.runtime import trust as trusted
from drexperts.runtime.errors import BundleError, ConfigError, UserError
from drexperts.runtime.files import folder_written_whole
from drexperts.runtime.manifest import BatchProfile, Engine, Manifest, read_manifest
from drexperts.runtime.onnx_file import check_self_contained
from drexperts.runtime.onnx_providers import CUDA_OPTIONS
from drexperts.runtime.wording import remedy

_MARK = "Written by `drx triton-repo`."
_CONFIG, _VERSION, _README = "config.pbtxt", "1", "README.md"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class _Kind(NamedTuple):
    """How the server runs the engines of one backend; `suffix` ends the entry's name."""

    suffix: str
    backend: str
    device: str


_KINDS = {
    "onnx": _Kind("onnx", "onnxruntime", "KIND_CPU"),
    "onnx-cuda": _Kind("onnx_cuda", "onnxruntime", "KIND_GPU"),
    "tensorrt": _Kind("tensorrt", "tensorrt", "KIND_GPU"),
}
_NOT_SERVED = {
    "onnx-tensorrt": "ONNX Runtime would build its engine in the server; `drx build` makes a plan",
    "openvino": "the server's OpenVINO may be of another version, and computes in other types",
    "tensorrt-rtx": "the server's TensorRT is not the one for RTX",
}


class _Entry(NamedTuple):
    """A model of the repository; `served` has engines by compute capability, "" for any other."""

    name: str
    kind: _Kind
    served: dict[str, Engine]

    @property
    def engines(self) -> list[Engine]:
        return list({engine.file: engine for engine in self.served.values()}.values())

    @property
    def batch(self) -> int:
        return min(_served_batch(engine) for engine in self.engines)

    @property
    def profiles(self) -> tuple[BatchProfile, ...]:
        """Those of its plans, which are the same for all."""
        plan = self.engines[0].plan
        return () if plan is None else plan.profiles


def write_triton_repository(
    bundle: str | Path,
    out: str | Path,
    *,
    name: str = "drexperts",
    instances: int = 1,
    max_queue_delay: int = 500,
    allow_unverified: bool = False,
    trust: bool = False,
    digest: str | None = None,
) -> list[Path]:
    """Write a bundle as a model repository to `out`, whole or not at all.

    Args:
        name: prefix of the entries' names.
        instances: how many of each model the server starts on each device.
        max_queue_delay: how long a request may wait for others to share its batch, microseconds.
        allow_unverified: also include engines that have not passed their proof.
        trust: also include TensorRT engines that were not built here: they can run their maker's
            code in the server.
        digest: the only bundle to accept, as `drx info` prints it; None accepts any.

    Returns:
        The repository's files.

    Raises:
        BundleError: the bundle is missing, changed or of another digest, or has nothing to serve.
        ConfigError: a name, a number of instances or a delay that is out of range.
        UserError: `out` is something other than such a repository.

    Example:
        from drexperts.export import write_triton_repository

        write_triton_repository("bundle/", "models/", instances=2)
    """
    bundle, out = Path(bundle), Path(out).resolve()
    _check_arguments(name, instances, max_queue_delay)
    manifest = read_manifest(bundle, digest)
    entries, left_out = _entries(manifest, name, allow_unverified, trust)
    if not entries:
        raise BundleError(f"{bundle} has nothing to serve: {'; '.join(left_out)}")
    if out.is_relative_to(bundle.resolve()):
        raise UserError(f"{out} is inside the bundle: choose another place")
    with folder_written_whole(out) as aside:
        _check_replaceable(out)
        for entry in entries:
            config = _config(entry, manifest, instances, max_queue_delay)
            _write_entry(aside / entry.name, entry, config, bundle)
        (aside / _README).write_text(_readme(entries, left_out, manifest), encoding="utf-8")
    return sorted(path for path in out.rglob("*") if path.is_file())


def _check_arguments(name: str, instances: int, max_queue_delay: int) -> None:
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"the name must be letters, digits, '-' and '_', got {name!r}")
    if not 1 <= instances <= 64:
        raise ConfigError(f"instances must be 1 to 64, got {instances}")
    if not 0 <= max_queue_delay <= 60_000_000:
        raise ConfigError(f"the delay must be 0 to 60000000 microseconds, got {max_queue_delay}")


def _entries(
    manifest: Manifest, name: str, allow_unverified: bool, trust: bool
) -> tuple[list[_Entry], list[str]]:
    """The entries, and for each engine that is in none of them, why."""
    entries: dict[_Kind, _Entry] = {}
    left_out = []
    # As `runtime.load` prefers them: 16-bit engines before float32.
    for engine in sorted(manifest.engines, key=lambda engine: engine.precision == "fp32"):
        reason = _objection(engine, allow_unverified, trust)
        if reason is None:
            kind = _KINDS[engine.backend]
            entry = entries.setdefault(kind, _Entry(f"{name}_{kind.suffix}", kind, {}))
            reason = _claim(engine, entry.served)
        if reason is not None:
            left_out.append(f"{engine.file} ({engine.backend}): {reason}")
    return list(entries.values()), left_out


def _objection(engine: Engine, allow_unverified: bool, trust: bool) -> str | None:
    if engine.backend not in _KINDS:
        return _NOT_SERVED[engine.backend]
    if engine.plan is not None and engine.plan.stripped:
        return "it is without its weights, and the server does not put them back"
    if _served_batch(engine) < 1:
        return "none of its profiles allows a batch of 1, which the server may send"
    if engine.objection and not allow_unverified:
        prove = remedy(
            "prove it with `drx verify BUNDLE --checkpoint FILE`, or pass --allow-unverified",
            "prove it with `drexperts.export.verify(bundle, checkpoint=...)`, or pass "
            "allow_unverified=True",
        )
        return f"{engine.objection}: {prove}"
    return None if trust else trusted.objection(engine)


def _claim(engine: Engine, served: dict[str, Engine]) -> str | None:
    """Serve an engine for each of its compute capabilities that is free; returns why it cannot."""
    free = [capability for capability in _capabilities(engine) if capability not in served]
    if not free:
        return "a preferred one is served in its place"
    # An entry has one list of profiles for all its plans.
    first = next(iter(served.values()), engine)
    if engine.plan and first.plan and engine.plan.profiles != first.plan.profiles:
        return f"its profiles differ from those of {first.file}: build both with the same ones"
    served.update(dict.fromkeys(free, engine))
    return None


def _capabilities(engine: Engine) -> tuple[str, ...]:
    if engine.plan is None:
        return ("",)
    any_later = engine.plan.hardware_compatibility == "ampere+"
    return (*engine.plan.capabilities, "") if any_later else engine.plan.capabilities


def _served_batch(engine: Engine) -> int:
    """The largest batch up to which every size is certified and in a profile."""
    sizes: Iterator[int] = iter(range(1, engine.certified_batch + 1))
    if engine.plan is not None:
        profiles = engine.plan.profiles
        sizes = takewhile(lambda size: any(p.includes(size) for p in profiles), sizes)
    return sum(1 for _ in sizes)


def _quoted(text: str) -> str:
    """A string in protobuf's text format."""
    return f'"{CEscape(text, as_utf8=False)}"'


def _config(entry: _Entry, manifest: Manifest, instances: int, max_queue_delay: int) -> str:
    """The entry's ModelConfig, in the text format of the server's model_config.proto."""
    crop = manifest.preprocessing.crop
    pixels = f"data_type: TYPE_UINT8 dims: [3, {crop}, {crop}]"
    group, batching = f"count: {instances} kind: {entry.kind.device}", ""
    if len(profiles := entry.profiles) > 1:
        # The server uses only the first unless all are named; then it forms batches for each.
        group += f" profile: [{', '.join(_quoted(str(i)) for i in range(len(profiles)))}]"
        preferred = {entry.batch, *(p.opt for p in profiles if p.opt <= entry.batch)}
        batching = f" preferred_batch_size: {sorted(preferred)}"
    lines = [
        f"name: {_quoted(entry.name)}",
        f"backend: {_quoted(entry.kind.backend)}",
        f"max_batch_size: {entry.batch}",
        f'input {{ name: "pixels" {pixels} }}',
        *(
            f"output {{ name: {_quoted(name)} data_type: TYPE_FP32 {_dims(name, manifest)} }}"
            for name in manifest.outputs
        ),
        f"instance_group {{ {group} }}",
        f"dynamic_batching {{ max_queue_delay_microseconds: {max_queue_delay}{batching} }}",
        f"version_policy {{ specific {{ versions: [{_VERSION}] }} }}",
        *(
            f'model_warmup {{ name: "batch {size}" batch_size: {size} '
            f'inputs {{ key: "pixels" value {{ {pixels} random_data: true }} }} }}'
            for size in sorted({1, entry.batch})
        ),
        *(_plan_files(entry) if entry.kind.backend == "tensorrt" else ()),
    ]
    if entry.kind == _KINDS["onnx-cuda"]:
        options = " ".join(
            f"parameters {{ key: {_quoted(key)} value: {_quoted(value)} }}"
            for key, value in CUDA_OPTIONS.items()
        )
        cuda = f'gpu_execution_accelerator {{ name: "cuda" {options} }}'
        lines.append(f"optimization {{ execution_accelerators {{ {cuda} }} }}")
    return "\n".join(lines)


def _dims(output: str, manifest: Manifest) -> str:
    experts = len(manifest.distortions)
    if output == "score":  # [B] in the graph; the server needs at least one dimension
        return "dims: [1] reshape { shape: [] }"
    if output == "weights":
        return f"dims: [{experts}]"
    if manifest.grid is None:
        raise BundleError(
            "the manifest does not say the encoder's patch size: export the bundle again"
        )
    return f"dims: [{experts}, {manifest.grid}, {manifest.grid}]"


def _plan_files(entry: _Entry) -> Iterator[str]:
    """Which plan each GPU gets; on another GPU the server finds no file rather than a wrong one."""
    for capability, engine in sorted(entry.served.items()):
        if capability:
            pair = f"key: {_quoted(capability)} value: {_quoted(engine.file)}"
            yield f"cc_model_filenames {{ {pair} }}"
        else:
            yield f"default_model_filename: {_quoted(engine.file)}"


def _write_entry(folder: Path, entry: _Entry, config: str, bundle: Path) -> None:
    (folder / _VERSION).mkdir(parents=True)
    for engine in entry.engines:
        content = engine.read(bundle / engine.file)  # these bytes are served, whatever follows
        if engine.plan is None:
            check_self_contained(content, engine.file)
        (folder / _VERSION / _served_file(entry, engine)).write_bytes(content)
    comments = [f"# {line}\n" for line in (_MARK, *map(_evidence, entry.engines))]
    (folder / _CONFIG).write_text("".join(comments) + config + "\n", encoding="utf-8")


def _served_file(entry: _Entry, engine: Engine) -> str:
    return engine.file if entry.kind.backend == "tensorrt" else "model.onnx"


def _evidence(engine: Engine) -> str:
    proof = "proven equal to the model" if engine.proven else "not proven equal to the model"
    return f"{engine.file}: {engine.backend}, {engine.precision}, {engine.evidence}, {proof}"


def _check_replaceable(out: Path) -> None:
    """Raises UserError unless there is nothing, an empty folder, or only a repository of ours."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not all(_is_ours(path) for path in out.iterdir()):
        raise UserError(f"{out} holds other things than `drx triton-repo` wrote: choose another")


def _is_ours(path: Path) -> bool:
    written = path if path.name == _README else path / _CONFIG
    if not written.is_file() or _MARK not in written.read_text("utf-8", errors="replace"):
        return False
    return path.is_file() or {child.name for child in path.iterdir()} == {_CONFIG, _VERSION}


_README_TEXT = """\
# DR.Experts for Triton Inference Server

{mark} Write it again when the bundle changes. The configurations
follow the server's schema; they have not been executed with its TensorRT or ONNX Runtime backend.

{models}

Start the server:

    tritonserver --model-repository=<this folder>{options}

{needs}

## What to send

`pixels` are crops, uint8 [n, 3, {crop}, {crop}], RGB, as `drexperts.runtime.preprocess` cuts them.
An image's score is the mean of its crops' `score`, from {low} to {high}; {better} is better.
`weights` are in this order: {distortions}.

```python
import numpy as np
import tritonclient.http
from drexperts.runtime.decoding import decode
from drexperts.runtime.preprocess import Preprocessing, crops_from_image

preprocessing = {preprocessing!r}
server = tritonclient.http.InferenceServerClient("localhost:8000")


def scores(crops):
    pixels = tritonclient.http.InferInput("pixels", list(crops.shape), "UINT8")
    pixels.set_data_from_numpy(crops)
    return server.infer("{model}", [pixels]).as_numpy("score")[:, 0]


crops = crops_from_image(decode("photo.jpg"), preprocessing).pixels
batches = [crops[i : i + {batch}] for i in range(0, len(crops), {batch})]
print(np.concatenate([scores(batch) for batch in batches]).mean())
```
"""


def _readme(entries: list[_Entry], left_out: list[str], manifest: Manifest) -> str:
    rows = ["| model | batch up to | files |", "|---|---|---|"]
    for entry in entries:
        files = "; ".join(_evidence(engine) for engine in entry.engines)
        rows.append(f"| {entry.name} | {entry.batch} | {files} |")
    if left_out:
        rows += ["", "Left out:", "", *(f"- {reason}" for reason in left_out)]
    plans = [engine.plan for entry in entries for engine in entry.engines if engine.plan]
    compatible = any(plan.version_compatible for plan in plans)
    return _README_TEXT.format(
        mark=_MARK,
        models="\n".join(rows),
        options=" --backend-config=tensorrt,version-compatible=true" if compatible else "",
        needs=_needs(entries),
        crop=manifest.preprocessing.crop,
        low=manifest.scale.low,
        high=manifest.scale.high,
        better="higher" if manifest.scale.higher_is_better else "lower",
        distortions=", ".join(manifest.distortions),
        preprocessing=manifest.preprocessing,
        model=entries[0].name,
        batch=entries[0].batch,
    )


def _needs(entries: list[_Entry]) -> str:
    """What the server needs to run each engine."""
    lines = []
    for entry in entries:
        if entry.kind.backend == "onnxruntime":
            lines.append(f"- {entry.name} needs a server with ONNX Runtime 1.18 or later.")
        for engine in entry.engines:
            if engine.plan is not None:
                later = " or later" if engine.plan.version_compatible else ""
                gpus = ", ".join(engine.plan.capabilities)
                needed = f"TensorRT {engine.plan.version}{later} and compute capability {gpus}"
                lines.append(f"- {engine.file} needs {needed}.")
    if any(engine.plan for entry in entries for engine in entry.engines):
        lines.append("- A plan can run its maker's code: serve only plans from makers you trust.")
    return "\n".join(lines)
