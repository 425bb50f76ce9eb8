"""`manifest.json`: what a bundle holds, and what was proven about it."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drexperts.runtime.cpus import CPU_LEVELS
from drexperts.runtime.errors import BundleError, ChangedFileError, ConfigError
from drexperts.runtime.files import written_whole
from drexperts.runtime.json_document import canonical, decode, parse, require, require_plain
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.proof import PRECISIONS, TOLERANCES, BatchInvariance, Parity
from drexperts.runtime.training import Training
from drexperts.runtime.wording import EXPORT_AGAIN, rebuild

SCHEMA = 1
FILE_NAME = "manifest.json"
OUTPUTS = ("score", "weights", "maps")
PRESETS = ("paper", "official", "custom")
TENSORRT_BACKENDS = ("tensorrt", "tensorrt-rtx")  # their files are TensorRT plans
IN_MEMORY = "torch"  # the backend of a PyTorch model, which is in no bundle
CPU_BACKENDS = ("openvino", "onnx")
BACKENDS = (*TENSORRT_BACKENDS, *CPU_BACKENDS, "onnx-cuda", "onnx-tensorrt", IN_MEMORY)
PRODUCT_TYPES = ("fp32", "bf16", "fp16", "int8")

MAX_MANIFEST_BYTES = 4 * 2**20
MAX_ENGINE_BYTES = 2**31 - 1  # of a protobuf message, and far more than the model needs
_MAX_ENGINES = 100
_ENGINE_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PICTURE = re.compile(r"[0-9a-f]{12}")
_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9]")
_CPU = re.compile(rf"[a-z0-9_]{{1,32}}(-({'|'.join(CPU_LEVELS)}))?")
_PLATFORM = re.compile(r"[a-z0-9_]{1,32}-[a-z0-9_]{1,32}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,63}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HARDWARE = ("none", "ampere+", "same-capability")


def _require_match(what: str, pattern: re.Pattern[str], *texts: str) -> None:
    for text in texts:
        require(pattern.fullmatch(text) is not None, f"{text!r:.80} is not {what}")


def _require_one_of(what: str, known: Iterable[str], text: str) -> None:
    require(text in known, f"{what} must be one of {', '.join(known)}, got {text!r:.80}")


def _require_versions(versions: dict[str, str]) -> None:
    _require_match("a package or its version", _VERSION, *versions, *versions.values())


@dataclass(frozen=True)
class ScoreScale:
    """The range of the score and its direction."""

    low: float
    high: float
    higher_is_better: bool

    def __post_init__(self) -> None:
        filled = 0 < self.span < float("inf")
        require(filled, f"score scale is empty or endless: {self.low} to {self.high}")

    def __str__(self) -> str:
        """Such as "0 to 100, higher is better"."""
        better = "higher" if self.higher_is_better else "lower"
        return f"{self.low:g} to {self.high:g}, {better} is better"

    @property
    def span(self) -> float:
        """The width of the range, the unit in which score differences are reported."""
        return self.high - self.low

    @property
    def decimals(self) -> int:
        """How many decimals of a score to show: the last one stands for 1e-5 of the span or less.

        That is what the strictest proof allows a score to vary by, see `proof.TOLERANCES`, so the
        order of two scores that a proof tells apart can be seen.
        """
        finest = min(TOLERANCES.values()) * self.span
        return max(0, math.ceil(round(-math.log10(finest), 6)))


@dataclass(frozen=True)
class BatchProfile:
    """The smallest, optimal and largest batch of one TensorRT optimisation profile."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        ordered = 1 <= self.min <= self.opt <= self.max <= 65536
        require(ordered, f"a profile must be 1 <= min <= opt <= max, got {self}")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    def includes(self, batch: int) -> bool:
        return self.min <= batch <= self.max


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """How a TensorRT engine was built: what a machine must match to deserialise it.

    version: version of the library that built it
    capabilities: compute capabilities that it was built for, such as "8.9"
    platform: operating system and architecture, such as "linux-x86_64"
    hardware_compatibility: "none", "ampere+" or "same-capability"
    stripped: whether the weights were left out, so that the engine must be refitted
    plugin_layers: number of layers that run the Triton kernel; with 0, the pooling runs as
        standard operators
    fused_attention: False if the graph was changed to prevent fused attention
    onnx_sha256: of the graph that it was built from; for compute capability 7.5, of the graph from
        which the float16 graph was made
    inspected: whether its types were read back after the build and matched the graph
    """

    version: str
    capabilities: tuple[str, ...]
    platform: str
    profiles: tuple[BatchProfile, ...]
    version_compatible: bool
    hardware_compatibility: str
    stripped: bool
    plugin_layers: int
    fused_attention: bool
    onnx_sha256: str
    inspected: bool

    def __post_init__(self) -> None:
        require(len(self.capabilities) >= 1, "a plan needs at least one compute capability")
        _require_match("a compute capability such as '8.9'", _CAPABILITY, *self.capabilities)
        _require_match("a version", _VERSION, self.version)
        _require_match("a platform such as 'linux-x86_64'", _PLATFORM, self.platform)
        require(len(self.profiles) >= 1, "a plan needs at least one optimisation profile")
        _require_one_of("hardware_compatibility", _HARDWARE, self.hardware_compatibility)
        require(self.plugin_layers >= 0, "plugin_layers is negative")
        _require_match("64 hex digits", _SHA256, self.onnx_sha256)


@dataclass(frozen=True, kw_only=True)
class PrecisionTrial:
    """A set of float32 islands that the precision search tried, and its parity.

    islands: how many parts stayed in a higher precision: in float32, or in bfloat16 those of an
        int8 engine for OpenVINO where the CPU has it
    weight_bytes: size of the constants
    score_max: see `SetParity`
    srcc: the low end of its confidence interval
    passed: whether its parity kept all limits
    srcc_found: SRCC itself; None in older bundles
    precision: of the other parts; None is that of the engine
    ms: for one crop, on the machine that searched and while it did; None where it did not run the
        engine. Trials are timed one after another, so only large differences mean something.
    """

    islands: int
    weight_bytes: int
    score_max: float
    srcc: float
    passed: bool
    srcc_found: float | None = None
    precision: str | None = None
    ms: float | None = None

    def __post_init__(self) -> None:
        if self.precision is not None:
            _require_one_of("precision", PRECISIONS, self.precision)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One way to compute scores: a file of the bundle, and the library that runs it.

    backend: "onnx" (ONNX Runtime on the CPU), "onnx-cuda" and "onnx-tensorrt" (its GPU providers
        on the same file), "openvino", "tensorrt" or "tensorrt-rtx"
    sha256: of the file, which holds graph and weights
    plan: for TensorRT engines only
    proven_on: where the proofs were measured: the compute capability of the GPU, such as "8.9", or
        for OpenVINO the capability of the CPU, such as "x86_64-amx"; None for "onnx" and where it
        is unknown
    islands: the parts that stayed in float32, because `precision` was not enough for them
    bf16_layers: the linear layers of an int8 engine that are in bfloat16, because int8 was not
        enough for them
    frontier: what the precision search tried; empty if there was no search
    missed: how many candidates failed the proof before this one was tried
    calibrated_on, searched_on: the pictures that its scales and its islands were chosen on: of each
        the first 12 hex digits of the SHA-256 of its size and pixels
    products: for OpenVINO, how many matrix products are computed in each type, read back after the
        build; an attention that is compiled as one counts once. Empty where that was not done
    """

    backend: str
    file: str
    sha256: str
    precision: str
    max_batch: int
    versions: dict[str, str]
    parity: Parity | None
    invariance: BatchInvariance | None
    plan: EnginePlan | None = None
    proven_on: str | None = None
    islands: tuple[str, ...] = ()
    frontier: tuple[PrecisionTrial, ...] = ()
    missed: int = 0
    calibrated_on: tuple[str, ...] = ()
    searched_on: tuple[str, ...] = ()
    products: dict[str, int] = field(default_factory=dict)
    bf16_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_one_of("backend", BACKENDS, self.backend)
        _require_one_of("precision", PRECISIONS, self.precision)
        _require_match("a plain file name inside the bundle", _ENGINE_FILE, self.file)
        require(self.file != FILE_NAME, f"{FILE_NAME} is no engine")
        _require_match("64 hex digits", _SHA256, self.sha256)
        require(1 <= self.max_batch <= 65536, f"max_batch {self.max_batch} is not 1 to 65536")
        _require_versions(self.versions)
        require_plain("islands", *self.islands, *self.bf16_layers)
        require(self.missed >= 0, "missed is negative")
        _require_match("12 hex digits", _PICTURE, *self.calibrated_on, *self.searched_on)
        self._check_where()
        self._check_products()
        planned = (self.plan is not None) == (self.backend in TENSORRT_BACKENDS)
        require(planned, f"an engine of {self.backend!r} has a plan, or lacks one")

    def _check_where(self) -> None:
        if self.proven_on is None:
            return
        if self.backend == "openvino":
            _require_match("a CPU such as 'x86_64-avx2'", _CPU, self.proven_on)
        else:
            _require_match("a compute capability such as '8.9'", _CAPABILITY, self.proven_on)

    def _check_products(self) -> None:
        is_openvino = self.backend == "openvino"
        require(is_openvino or not self.products, f"an engine of {self.backend!r} has no products")
        known = "openvino" in self.versions or not is_openvino
        require(known, "an engine of 'openvino' needs the version of openvino that it was made for")
        for kind, count in self.products.items():
            _require_one_of("the type of products", PRODUCT_TYPES, kind)
            require(count >= 1, f"there are {count} products of {kind}")

    @property
    def made_on(self) -> frozenset[str]:
        """The pictures that the engine was calibrated or searched on."""
        return frozenset((*self.calibrated_on, *self.searched_on))

    def file_state(self, bundle: str | os.PathLike[str]) -> str:
        """Whether the file in the bundle's folder is "intact", "CHANGED" or "MISSING"."""
        path = Path(bundle) / self.file
        if not path.is_file():
            return "MISSING"
        return "intact" if sha256_of(path) == self.sha256 else "CHANGED"

    def read(self, path: str | os.PathLike[str]) -> bytes:
        """The recorded bytes of the engine's file. Raises ChangedFileError if it holds others.

        What was hashed is what is returned: a file that is opened again by its name may be another.
        """
        return read_recorded(path, self.sha256, f"restore it, or {self.made_again}")

    def check(self, path: str | os.PathLike[str]) -> None:
        """Raise ChangedFileError unless the engine's file holds the recorded bytes.

        It takes no memory, but what is read from the file later may be something else.
        """
        with contextlib.suppress(OSError):
            if sha256_of(path) == self.sha256:
                return
        self.read(path)

    @property
    def made_again(self) -> str:
        """What to do to have the engine's file made again."""
        if self.backend in ("openvino", *TENSORRT_BACKENDS):
            return rebuild(self.backend)
        return EXPORT_AGAIN

    @property
    def evidence(self) -> str:
        """What is known about the engine: "built", then "inspected", then "executed"."""
        if self.parity is not None or self.invariance is not None:
            return "executed"
        inspected = self.products or (self.plan is not None and self.plan.inspected)
        return "inspected" if inspected else "built"

    @property
    def certified_batch(self) -> int:
        """The largest batch to use: at most the largest whose batch invariance was measured."""
        certified = self.max_batch if self.invariance is None else max(self.invariance.batches)
        return min(self.max_batch, certified)

    @property
    def refuted(self) -> bool:
        """Whether a proof was measured and failed."""
        return any(
            proof is not None and not proof.passed for proof in (self.parity, self.invariance)
        )

    @property
    def objection(self) -> str | None:
        """Why the engine counts as unproven; None if both proofs are there, passed and accepted.

        `drexperts.runtime.proof` says which proofs this version accepts.
        """
        if self.parity is None or self.invariance is None:
            return "it failed its proof" * self.refuted or f"it is {self.evidence} and not proven"
        return (
            self.parity.objection(self.precision)
            or self.invariance.objection(self.precision)
            or "the types that it is computed in were never read back" * self.types_unknown
            or None
        )

    @property
    def types_unknown(self) -> bool:
        """Whether no one can tell if OpenVINO computes it here as where it was proven."""
        return self.backend == "openvino" and not self.products

    @property
    def proven(self) -> bool:
        """Whether both proofs are there, passed, and accepted by this version."""
        return self.objection is None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that the runtime knows about a bundle. `config` holds JSON values only.

    weights: digest of the weights that all engines were made of, such as "sha256:…"; None for a
        bundle of an earlier version
    trained: what the model was trained on; None if its checkpoint does not say
    created: when the bundle was exported, in UTC, such as "2026-11-28T20:00:00Z"; None if it is
        older than this record
    reference_score: what the float32 eager model scores `reference_crop`; None if it is older than
        this record

    It and the dataclasses inside it raise ConfigError for invalid values.
    """

    schema: int
    preset: str
    config: dict[str, Any]
    preprocessing: Preprocessing
    scale: ScoreScale
    distortions: tuple[str, ...]
    outputs: tuple[str, ...]
    engines: tuple[Engine, ...]
    created_with: dict[str, str]
    weights: str | None = None
    trained: Training | None = None
    created: str | None = None
    reference_score: float | None = None

    def __post_init__(self) -> None:
        require(self.schema == SCHEMA, f"schema must be {SCHEMA}, got {self.schema}")
        _require_one_of("preset", PRESETS, self.preset)
        require(len(self.engines) <= _MAX_ENGINES, f"there are more than {_MAX_ENGINES} engines")
        require(len(self.distortions) >= 1, "there are no distortions")
        require_plain("distortion", *self.distortions)
        unique = len(set(self.distortions)) == len(self.distortions)
        require(unique, "a distortion is named twice")
        known = self.outputs in (OUTPUTS[:2], OUTPUTS)
        require(known, f"outputs must be {OUTPUTS[:2]} or {OUTPUTS}, got {self.outputs!s:.80}")
        _require_versions(self.created_with)
        if self.created is not None:
            _require_match("a time such as '2026-11-28T20:00:00Z'", _TIME, self.created)
        if self.weights is not None:
            _require_match("a digest such as 'sha256:…'", _DIGEST, self.weights)

    @property
    def grid(self) -> int | None:
        """Side of a map; None if the configuration does not say the encoder's patch size."""
        encoder = self.config.get("encoder")
        patch = encoder.get("patch_size") if isinstance(encoder, dict) else None
        crop = self.preprocessing.crop
        return crop // patch if type(patch) is int and 1 <= patch <= crop else None


def read_manifest(folder: str | os.PathLike[str], pinned: str | None = None) -> Manifest:
    """The manifest of a bundle folder.

    pinned: the `digest` of the only manifest to accept; None accepts any

    Raises BundleError if it is missing, invalid or another, and ConfigError for a `pinned` of
    another form.
    """
    path = Path(folder) / FILE_NAME
    _check_pinned(pinned)
    if not path.is_file():
        raise BundleError(
            f"{str(folder)!r} is not a bundle: it has no {FILE_NAME}; make one with `drx export`"
        )
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as cause:
        raise _unusable(path, cause) from cause
    return parse_manifest(content, path, pinned)


def parse_manifest(
    content: bytes, name: str | os.PathLike[str], pinned: str | None = None
) -> Manifest:
    """The manifest in the bytes of a file, see `read_manifest`; `name` is for messages."""
    _check_pinned(pinned)
    try:
        require(len(content) <= MAX_MANIFEST_BYTES, f"it is longer than {MAX_MANIFEST_BYTES} bytes")
        manifest = _manifest_from_text(content.decode("utf-8"))
    except (ValueError, RecursionError, ConfigError) as cause:
        raise _unusable(name, cause) from cause
    if pinned not in (None, found := digest(manifest)):
        raise BundleError(
            f"{os.fspath(name)!r} has the digest {found}, not {pinned}: restore the bundle, or "
            "look with `drx info` whether this one is meant as well"
        )
    return manifest


def _check_pinned(pinned: str | None) -> None:
    if pinned is not None:
        _require_match("a digest as `drx info` prints it, sha256:...", _DIGEST, pinned)


def _unusable(name: str | os.PathLike[str], cause: Exception) -> BundleError:
    return BundleError(
        f"{os.fspath(name)!r} cannot be used: {cause}; "
        "restore it, or export the bundle again with `drx export`"
    )


def digest(manifest: Manifest) -> str:
    """What identifies a bundle, such as "sha256:…": every field, and so every file by its hash.

    The SHA-256 of the manifest's canonical JSON: fields that have their default left out, keys
    sorted, ASCII, no spaces.
    """
    text = json.dumps(canonical(manifest), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def write_manifest(manifest: Manifest, folder: str | os.PathLike[str]) -> None:
    """Write `manifest.json` into an existing folder, whole or not at all. Raises OSError."""
    path = Path(folder) / FILE_NAME
    text = json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True, allow_nan=False)
    with written_whole(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, as 64 hex digits. Raises OSError."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_recorded(path: str | os.PathLike[str], sha256: str, remedy: str) -> bytes:
    """The bytes of a file with this SHA-256. Raises ChangedFileError for any other, or none."""
    name = repr(os.fspath(path))
    if not os.path.isfile(path):
        raise ChangedFileError(f"{name} is missing; {remedy}")
    try:
        if os.path.getsize(path) > MAX_ENGINE_BYTES:
            raise OSError("it is larger than 2 GiB")
        content = Path(path).read_bytes()
    except OSError as cause:
        raise ChangedFileError(f"{name} cannot be read: {cause}; {remedy}") from cause
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ChangedFileError(
            f"{name} has changed: its SHA-256 differs from the recorded one; {remedy}"
        )
    return content


def _manifest_from_text(text: str) -> Manifest:
    document = parse(text)
    require(isinstance(document, dict), "it is not a JSON object")
    schema = document.get("schema")
    # Before the fields, because another schema has other fields.
    require(
        type(schema) is int and schema == SCHEMA,
        f"its schema is {schema!r:.40}, this drexperts reads {SCHEMA}: install the matching one",
    )
    manifest = decode(Manifest, document, "manifest")
    assert isinstance(manifest, Manifest)
    in_memory = any(engine.backend == IN_MEMORY for engine in manifest.engines)
    require(not in_memory, f"backend {IN_MEMORY!r} is in no bundle")
    return manifest
