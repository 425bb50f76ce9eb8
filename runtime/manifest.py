"""`manifest.json`: what a bundle holds, and what was proven about it."""

import dataclasses
import hashlib
import json
import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from drexperts.runtime.errors import BundleError, ConfigError
from drexperts.runtime.files import written_whole
from drexperts.runtime.preprocess import Preprocessing

SCHEMA = 1
FILE_NAME = "manifest.json"
OUTPUTS = ("score", "weights", "maps")
TENSORRT_BACKENDS = ("tensorrt", "tensorrt-rtx")  # their files are TensorRT plans

# Of fewer a rank correlation says little: one swap of neighbours among n images moves the low end
# of its interval by about 180/n^3, which is 2e-4 of 100.
MIN_IMAGES = 100
CLEAR_DIFFERENCE = (
    0.01  # of the span: what people do not tell apart, an opinion's interval being wider
)
LOWER_LIMITS = (
    *("srcc", "srcc_low", "plcc", "plcc_low", "maps_plcc"),
    *("weights_srcc", "weights_srcc_low", "weights_plcc", "weights_plcc_low"),
)
# Not measured for an engine without maps, for proofs older than the measure, where all scores are
# alike, and where weights or maps hardly differ between images or places.
OPTIONAL_MEASURES = (
    "maps_max",
    "maps_plcc",
    "weights_max",
    "weights_srcc",
    "weights_plcc",
    "clear_flips",
)

_MAX_BYTES = 4 * 2**20
_MAX_INT = 2**53  # beyond it JSON readers disagree about the value
_ENGINE_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9]")
_HARDWARE = ("none", "ampere+", "same-capability")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def within(measured: Mapping[str, float | None], limits: Mapping[str, float]) -> bool:
    """Whether every measure is within its limit, which NaN never is.

    A limit is a maximum, except for the names in LOWER_LIMITS. A missing measure is within its
    limit only if it is one of OPTIONAL_MEASURES.
    """

    def is_within(name: str, limit: float) -> bool:
        value = measured.get(name)
        if value is None:
            return name in OPTIONAL_MEASURES
        return value >= limit if name in LOWER_LIMITS else value <= limit

    return all(is_within(name, limit) for name, limit in limits.items())


@dataclass(frozen=True)
class ScoreScale:
    """The range of the score and its direction."""

    low: float
    high: float
    higher_is_better: bool

    def __post_init__(self) -> None:
        _require(self.low < self.high, f"score scale is empty: {self.low} to {self.high}")

    @property
    def span(self) -> float:
        """The width of the range, the unit in which score differences are reported."""
        return self.high - self.low


@dataclass(frozen=True)
class ConfidenceInterval:
    """A 95 % bootstrap interval over images."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _require(self.low <= self.high, f"an interval runs from {self.low} to {self.high}")


def _low(interval: ConfidenceInterval | None) -> float | None:
    return None if interval is None else interval.low


@dataclass(frozen=True, kw_only=True)
class SetParity:
    """How far an engine's scores of a set of images are from those of the reference.

    score_max: largest |difference of scores|, as a fraction of the score's span
    srcc, plcc: correlation between engine and reference
    srcc_interval, plcc_interval: None for fewer than MIN_IMAGES images
    order_flips: how many of `pairs` the engine ranks in the opposite order; images with equal
        reference scores are not counted as a pair
    clear_flips, clear_pairs: the same for pairs whose reference scores differ by more than
        CLEAR_DIFFERENCE of the span
    """

    images: int
    score_max: float
    srcc: float
    plcc: float
    order_flips: int
    pairs: int
    srcc_interval: ConfidenceInterval | None = None
    plcc_interval: ConfidenceInterval | None = None
    clear_flips: int | None = None
    clear_pairs: int | None = None

    def __post_init__(self) -> None:
        _require(self.images >= 1, "parity was measured on no image")
        _require(0 <= self.order_flips <= self.pairs, "order_flips must be 0 to pairs")
        clear = 0 <= (self.clear_flips or 0) <= (self.clear_pairs or 0)
        _require(clear, "clear_flips must be 0 to clear_pairs")
        _require(self.score_max >= 0, "a parity distance is negative")
        _require(max(abs(self.srcc), abs(self.plcc)) <= 1.0001, "a correlation is beyond 1")

    def measured(self) -> dict[str, float | None]:
        """The measures that have limits: counts as shares, intervals by their lower end."""
        return {
            "score_max": self.score_max,
            "srcc": self.srcc,
            "srcc_low": _low(self.srcc_interval),
            "plcc": self.plcc,
            "plcc_low": _low(self.plcc_interval),
            "order_flips": self.order_flips / max(self.pairs, 1),
            "clear_flips": (self.clear_flips or 0) / self.clear_pairs if self.clear_pairs else None,
        }

    def keeps(self, limits: Mapping[str, float]) -> bool:
        """Whether every measure of this set is within its limit."""
        measured = self.measured()
        return within(measured, {name: limits[name] for name in limits.keys() & measured.keys()})


@dataclass(frozen=True, kw_only=True)
class Parity(SetParity):
    """How far an engine is from the reference, measured through the shipping Scorer.

    score_mean, score_p99: mean and 99th percentile of |difference of scores|, as fractions of the
        score's span
    score_units: `score_max` in units of the score
    weights_max: largest |difference|, as a fraction of the reference's largest |weight|
    weights_srcc, weights_plcc: the correlation over images for the expert whose correlation is
        lowest; None if every expert's weight is constant over the images
    weights_srcc_interval, weights_plcc_interval: for that expert; None for fewer than MIN_IMAGES
    leading_flips: number of images in which another distortion has the largest |weight|
    maps_max: largest |difference|; None for an engine without maps, like `maps_plcc`
    maps_plcc: the correlation over distortions and positions for the crop whose correlation is
        lowest; None if all maps are constant. Maps have no SRCC: most positions are close to
        zero, and their order means nothing.
    limits: the limit of each value in `measured()`
    sets: the same measures for each subset of the images. A subset of at least MIN_IMAGES must be
        within the limits by itself. "synthetic" consists of distorted crops of "photographs", and
        the scales and islands of an int8 engine were chosen on both: no image was held out.
    """

    rows: int
    reference: str
    score_mean: float
    score_p99: float
    weights_max: float
    maps_max: float | None
    limits: dict[str, float]
    passed: bool
    score_units: float | None = None
    weights_srcc: float | None = None
    weights_plcc: float | None = None
    weights_srcc_interval: ConfidenceInterval | None = None
    weights_plcc_interval: ConfidenceInterval | None = None
    leading_flips: int | None = None
    maps_plcc: float | None = None
    sets: dict[str, SetParity] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.rows >= 1, "parity was measured on no image")
        distances = (self.score_mean, self.score_p99, self.weights_max, self.maps_max or 0.0)
        _require(min(distances) >= 0, "a parity distance is negative")
        _require(0 <= (self.leading_flips or 0) <= self.images, "leading_flips is beyond images")
        kept = self.within_limits
        _require(kept or not self.passed, "parity is recorded as passed, but failed")

    def measured(self) -> dict[str, float | None]:
        share = None if self.leading_flips is None else self.leading_flips / self.images
        names = ("score_mean", "score_p99", "weights_max", "weights_srcc", "weights_plcc")
        others = {name: getattr(self, name) for name in (*names, "maps_max", "maps_plcc")}
        ends = {
            "weights_srcc_low": _low(self.weights_srcc_interval),
            "weights_plcc_low": _low(self.weights_plcc_interval),
        }
        return super().measured() | others | ends | {"leading_flips": share}

    @property
    def within_limits(self) -> bool:
        """Whether there are limits, and all images and each large enough subset are within them."""
        enough = [each for each in self.sets.values() if each.images >= MIN_IMAGES]
        return bool(self.limits) and all(
            [within(self.measured(), self.limits), *(each.keeps(self.limits) for each in enough)]
        )


def invariance_limits(tolerance: float) -> dict[str, float]:
    """How much the batch may change each output; weights ten times as much as the score."""
    return {"score_max": tolerance, "weights_max": 10 * tolerance, "maps_max": tolerance}


@dataclass(frozen=True, kw_only=True)
class BatchInvariance:
    """Whether an image's score depends on the batch that it is scored in.

    batches: the batch sizes tested
    cases: what was varied, such as "repeated", "permuted", "neighbours", "threads"
    score_max: largest |difference of scores|, as a fraction of the score's span
    tolerance: limit of `score_max`; `invariance_limits` derives the others from it
    weights_max: largest |difference of weights|, as a fraction of the largest |weight|
    maps_max: largest |difference| in a map; None for an engine without maps
    """

    batches: tuple[int, ...]
    cases: tuple[str, ...]
    score_max: float
    tolerance: float
    passed: bool
    weights_max: float | None = None
    maps_max: float | None = None

    def __post_init__(self) -> None:
        _require(min(self.batches, default=0) >= 1, "batches is empty or below 1")
        _require(
            min(self.score_max, self.tolerance) >= 0,
            "a batch-invariance value is negative",
        )
        limits = invariance_limits(self.tolerance)
        kept = within({name: getattr(self, name) for name in limits}, limits)
        _require(kept or not self.passed, "batch invariance is recorded as passed, but failed")


@dataclass(frozen=True)
class BatchProfile:
    """The smallest, optimal and largest batch of one TensorRT optimisation profile."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        ordered = 1 <= self.min <= self.opt <= self.max <= 65536
        _require(ordered, f"a profile must be 1 <= min <= opt <= max, got {self}")

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
        _require(len(self.capabilities) >= 1, "a plan needs at least one compute capability")
        for capability in self.capabilities:
            known = _CAPABILITY.fullmatch(capability) is not None
            _require(known, f"{capability!r} is not a compute capability such as '8.9'")
        _require(len(self.profiles) >= 1, "a plan needs at least one optimisation profile")
        known = self.hardware_compatibility in _HARDWARE
        _require(known, f"hardware_compatibility must be one of {_HARDWARE}")
        _require(self.plugin_layers >= 0, "plugin_layers is negative")
        _require(
            _SHA256.fullmatch(self.onnx_sha256) is not None, "onnx_sha256 is not 64 hex digits"
        )


@dataclass(frozen=True, kw_only=True)
class PrecisionTrial:
    """A set of float32 islands that the precision search tried, and its parity.

    islands: how many parts stayed in float32
    weight_bytes: size of the constants
    score_max: see `SetParity`
    srcc: the low end of its confidence interval
    passed: whether its parity kept all limits
    """

    islands: int
    weight_bytes: int
    score_max: float
    srcc: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One way to compute scores: a file of the bundle, and the library that runs it.

    backend: "onnx" (ONNX Runtime on the CPU), "onnx-cuda" and "onnx-tensorrt" (its GPU providers
        on the same file), "tensorrt" or "tensorrt-rtx"
    sha256: of the file, which holds graph and weights
    plan: for TensorRT engines only
    proven_on: compute capability of the GPU on which the proofs were measured, such as "8.9"; None
        for a CPU engine and where it is unknown
    islands: the parts that stayed in float32, because `precision` was not enough for them
    frontier: what the precision search tried; empty if there was no search
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

    def __post_init__(self) -> None:
        plain = _ENGINE_FILE.fullmatch(self.file) is not None
        _require(
            plain,
            f"engine file {self.file!r} is not a plain file name inside the bundle",
        )
        _require(_SHA256.fullmatch(self.sha256) is not None, "sha256 is not 64 hex digits")
        _require(
            1 <= self.max_batch <= 65536,
            f"max_batch {self.max_batch} is not 1 to 65536",
        )
        planned = (self.plan is not None) == (self.backend in TENSORRT_BACKENDS)
        _require(planned, f"an engine of {self.backend!r} has a plan, or lacks one")

    def file_state(self, bundle: str | os.PathLike[str]) -> str:
        """Whether the file in the bundle's folder is "intact", "CHANGED" or "MISSING"."""
        path = Path(bundle) / self.file
        if not path.is_file():
            return "MISSING"
        return "intact" if sha256_of(path) == self.sha256 else "CHANGED"

    @property
    def evidence(self) -> str:
        """What is known about the engine: "built", then "inspected", then "executed"."""
        if self.parity is not None or self.invariance is not None:
            return "executed"
        return "inspected" if self.plan is not None and self.plan.inspected else "built"

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
    def proven(self) -> bool:
        """Whether both proofs are present and passed."""
        return bool(self.parity and self.parity.passed) and bool(
            self.invariance and self.invariance.passed
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that the runtime knows about a bundle. `config` holds JSON values only.

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

    def __post_init__(self) -> None:
        _require(self.schema == SCHEMA, f"schema must be {SCHEMA}, got {self.schema}")
        _require(len(self.distortions) >= 1, "there are no distortions")
        unique = len(set(self.distortions)) == len(self.distortions)
        _require(unique, "a distortion is named twice")
        known = self.outputs in (OUTPUTS[:2], OUTPUTS)
        _require(known, f"outputs must be {OUTPUTS[:2]} or {OUTPUTS}, got {self.outputs}")


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a bundle folder. Raises BundleError if it is missing or invalid."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise BundleError(
            f"{str(folder)!r} is not a bundle: it has no {FILE_NAME}; "
            "make one with `drx export CKPT --out BUNDLE`"
        )
    try:
        return _manifest_from_text(_read_text(path))
    except (OSError, ValueError, RecursionError, ConfigError) as cause:
        raise BundleError(
            f"{str(path)!r} cannot be used: {cause}; "
            "restore it, or export the bundle again with `drx export`"
        ) from cause


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


def _read_text(path: Path) -> str:
    with open(path, "rb") as stream:
        content = stream.read(_MAX_BYTES + 1)
    _require(len(content) <= _MAX_BYTES, f"it is longer than {_MAX_BYTES} bytes")
    return content.decode("utf-8")


def _manifest_from_text(text: str) -> Manifest:
    document = json.loads(
        text,
        parse_int=_parse_int,
        parse_float=_parse_float,
        parse_constant=_parse_float,
    )
    _require(isinstance(document, dict), "it is not a JSON object")
    schema = document.get("schema")
    # Before the fields, because another schema has other fields.
    _require(
        type(schema) is int and schema == SCHEMA,
        f"its schema is {schema!r:.40}, this drexperts reads {SCHEMA}: install the matching one",
    )
    manifest = _decode(Manifest, document, "manifest")
    assert isinstance(manifest, Manifest)
    return manifest


def _parse_int(digits: str) -> int:
    _require(len(digits) <= 17 and abs(int(digits)) <= _MAX_INT, "an integer is beyond 2**53")
    return int(digits)


def _parse_float(text: str) -> float:
    value = float(text)
    _require(abs(value) < float("inf"), f"{text:.40} is not a finite number")
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Convert a parsed JSON value to the type `kind`.

    Supports dataclasses, X | None, tuple[X, ...], dict[str, X], Any, bool, int, float and str.
    Raises ConfigError, which names the place.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _decode(arguments[0], value, where)
    if origin is tuple:
        items = _checked(list, value, where)
        return tuple(_decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if origin is dict:
        entries = _checked(dict, value, where)
        return {key: _decode(arguments[1], v, f"{where}[{key!r}]") for key, v in entries.items()}
    if kind is float:
        return float(_checked((int, float), value, where))
    return _checked(kind, value, where)


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    entries = _checked(dict, value, where)
    hints = get_type_hints(kind)
    # Fields that were added later have defaults, so that older manifests can be read.
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing, unknown = required - entries.keys(), entries.keys() - hints.keys()
    _require(not missing, f"{where} lacks {sorted(missing)}")
    _require(not unknown, f"{where} has unknown fields {sorted(unknown)!s:.200}")
    return kind(
        **{name: _decode(hints[name], entries[name], f"{where}.{name}") for name in entries}
    )


def _checked(kinds: Any, value: Any, where: str) -> Any:
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    # By type, not isinstance: in Python a bool is an int, in a manifest it is a mistake.
    if type(value) not in wanted:
        names = " or ".join(kind.__name__ for kind in wanted)
        raise ConfigError(f"{where} must be {names}, got {type(value).__name__}")
    return value
