"""What was measured to prove an engine, and what this version accepts as a proof.

A manifest states its own limits, and whoever writes one can state any. So the limits of a proof
must be at least as strict as those of this file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from drexperts.runtime.json_document import require, require_plain

# Of fewer a rank correlation says little: one swap of neighbours among n images moves the low end
# of its interval by about 180/n^3, which is 2e-4 of 100.
MIN_IMAGES = 100
CLEAR_DIFFERENCE = (
    0.01  # of the span: what people do not tell apart, an opinion's interval being wider
)
LOWER_LIMITS = (
    *("srcc", "srcc_low", "plcc", "plcc_low", "maps_plcc", "maps_plcc_p01"),
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
    "weights_p99",
    "maps_p99",
    "maps_plcc_p01",
)
# The measure of the farthest image for that of 99 of 100, which older proofs may not have.
EXTREME_OF = {
    "score_p99": "score_max",
    "weights_p99": "weights_max",
    "maps_p99": "maps_max",
    "maps_plcc_p01": "maps_plcc",
}

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

# What an engine may differ by, for each precision of the graph. Distances are the largest ones, and
# with `_p99` those of 99 of 100 images: of scores as a share of the span, of weights as a share of
# the largest reference weight, of maps as they are. Flips are shares: of pairs, of pairs clearly
# apart, of images whose leading distortion changes. `_low` is the low end of a correlation's
# interval over images, which exists for enough of them.
# float32 leaves only the order of summation. The blocks' activations keep 11 bits in float16 and 8
# in bfloat16, and a dozen blocks add up their rounding. int8 has 8 bits per operand, on scales that
# are fixed for each tensor: it is asked to rank as float32 does.
# Correlations of weights are those of the worst expert, correlations of maps those of the worst
# crop, and with `_p01` of the crop at the first percentile. For the model of `drx demo`, whose maps
# are sharp, the lowest were 0.99999 and 0.9998 in float16, 0.9976 (SRCC) and 0.949 in int8; a crop
# with maps of its own has about 0. bfloat16 rounds eight times coarser than float16, which puts
# correlations up to 64 times as far from 1. Single places of a map differ most, where a sharp
# softmax chooses between two logits that tie: by 1e-4 in float32, 0.026 in float16, and 0.54 in
# int8, which has no limit on them.
# Such a tie moves an image's score and weights many times as far as those of most others, and on
# which images it happens, others do not tell. So in a reduced precision the limit is on 99 of 100
# images, and the farthest one only has a bound (`benchmarks/crossings.py`).
# bfloat16's limits were held against engines that were broken on purpose, on four models of the
# tutorial's size (`benchmarks/openvino_crossings.py`). With the margin of an export they refused,
# on either half of the photographs, all with weights of six or four bits and all with one layer
# off by 20 %, left out, or reversed, and kept every sound engine of three models. The fourth has
# softmaxes so sharp that bfloat16 moves 1 of 100 scores by 3 % of the span: it was refused, too.
# No measure alone tells them apart: six bits rank well (SRCC 0.9992) where scores are 3.5 % off,
# and where these are 1 % off, weights and maps are too far. One layer off by 2 % looks like
# rounding.
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_LIMITS: dict[str, tuple[float | None, ...]] = {
    "score_max": (1e-4, 3e-2, 1e-1, 1e-1),
    "score_p99": (None, 5e-3, 2e-2, 1.5e-2),
    "srcc": (0.9999, 0.995, 0.98, 0.999),
    "srcc_low": (0.9995, 0.99, 0.97, 0.996),
    "plcc": (0.9999, 0.999, 0.99, 0.999),
    "plcc_low": (0.9995, 0.998, 0.98, 0.996),
    "order_flips": (1e-3, 2e-2, 5e-2, 2e-2),
    "clear_flips": (0.0, 1e-3, 1e-2, 5e-3),
    "weights_max": (1e-3, 1.5e-1, 5e-1, 5e-1),
    "weights_p99": (None, 2.5e-2, 1e-1, 1e-1),
    "weights_srcc": (0.9999, 0.995, 0.98, 0.99),
    "weights_plcc": (0.9999, 0.999, 0.99, 0.99),
    "leading_flips": (1e-2, 5e-2, 1e-1, 1e-1),
    "maps_max": (3e-4, None, None, None),
    "maps_p99": (None, 5e-2, 4e-1, None),
    "maps_plcc": (0.9999, 0.99, 0.9, 0.75),
    "maps_plcc_p01": (None, 0.999, 0.95, 0.95),
}
LIMITS: dict[str, dict[str, float]] = {
    precision: {name: row[i] for name, row in _LIMITS.items() if row[i] is not None}  # type: ignore[misc]
    for i, precision in enumerate(PRECISIONS)
}
# How many times nearer to the model than its limits an engine must be where it is made, so that it
# keeps them on other images. Four times for the low end of an interval, which moves with the images
# and with its own width. The bounds of the farthest image are not narrowed.
_NARROWED = _LIMITS.keys() - {"score_max", "weights_max", "maps_plcc"}
MARGINS = {name: 4.0 if name.endswith("_low") else 2.0 for name in _NARROWED}
SEARCH_MARGIN = 2.0  # of a candidate once more, since its proof is measured on other images as well


def tightened(limits: Mapping[str, float], margins: Mapping[str, float]) -> dict[str, float]:
    """Limits that are nearer to perfect agreement, each by its margin, a factor of at least 1."""
    return {
        name: _at(name, distance(name, limit) / margins.get(name, 1.0))
        for name, limit in limits.items()
    }


def distance(name: str, value: float) -> float:
    """How far a measure is from perfect agreement, at which correlations are 1 and others 0."""
    return 1 - value if name in LOWER_LIMITS else value


_at = distance  # its own inverse

# What an engine must keep when it is made. float32 has no margin: its limits are of rounding alone.
EXPORT_LIMITS = {
    precision: limits if precision == "fp32" else tightened(limits, MARGINS)
    for precision, limits in LIMITS.items()
}
SEARCH_LIMITS = {
    precision: limits
    if precision == "fp32"
    else tightened(limits, dict.fromkeys(MARGINS, SEARCH_MARGIN))
    for precision, limits in EXPORT_LIMITS.items()
}
# Of batch invariance. A static int8 graph computes each row alone, on scales that no batch changes.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 8e-3, "int8": 1e-5}


def within(measured: Mapping[str, float | None], limits: Mapping[str, float]) -> bool:
    """Whether every measure is within its limit, which NaN never is.

    A limit is a maximum, except for the names in LOWER_LIMITS. A missing measure is within its
    limit only if it is one of OPTIONAL_MEASURES.
    """

    def is_within(name: str, limit: float) -> bool:
        value = measured.get(name)
        return name in OPTIONAL_MEASURES if value is None else _keeps(name, value, limit)

    return all(is_within(name, limit) for name, limit in limits.items())


def _keeps(name: str, value: float, limit: float) -> bool:
    return value >= limit if name in LOWER_LIMITS else value <= limit


def looser(limits: Mapping[str, float], required: Mapping[str, float]) -> list[str]:
    """The names whose limit is missing, or allows more than the required one."""
    return [
        name
        for name, limit in required.items()
        if name not in limits or not _keeps(name, limits[name], limit)
    ]


class Headroom(NamedTuple):
    """The measure that is nearest to its limit.

    factor: how many times as far from perfect agreement the limit is as what was measured; at
        least 1 if the limit holds
    """

    factor: float
    measure: str


@dataclass(frozen=True)
class ConfidenceInterval:
    """A 95 % bootstrap interval over images."""

    low: float
    high: float

    def __post_init__(self) -> None:
        require(self.low <= self.high, f"an interval runs from {self.low} to {self.high}")


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
        require(self.images >= 1, "parity was measured on no image")
        require(0 <= self.order_flips <= self.pairs, "order_flips must be 0 to pairs")
        require(self.pairs <= self.images * (self.images - 1) // 2, "there are fewer pairs")
        clear = 0 <= (self.clear_flips or 0) <= (self.clear_pairs or 0) <= self.pairs
        require(clear, "clear_flips must be 0 to clear_pairs, and those at most pairs")
        require(self.score_max >= 0, "a parity distance is negative")
        require(max(abs(self.srcc), abs(self.plcc)) <= 1.0001, "a correlation is beyond 1")

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
    weights_max, weights_p99: largest |difference|, as a fraction of the reference's largest
        |weight|; that of 99 of 100 images
    weights_srcc, weights_plcc: the correlation over images for the expert whose correlation is
        lowest; None if every expert's weight is constant over the images
    weights_srcc_interval, weights_plcc_interval: for that expert; None for fewer than MIN_IMAGES
    leading_flips: number of images in which another distortion has the largest |weight|
    maps_max, maps_p99: largest |difference|; that of 99 of 100 crops; None for an engine without
        maps, like `maps_plcc`
    maps_plcc: the correlation over distortions and positions for the crop whose correlation is
        lowest; None if all maps are constant. Maps have no SRCC: most positions are close to
        zero, and their order means nothing.
    maps_plcc_p01: the same for the crop at the first percentile
    limits: the limit of each value in `measured()`
    sets: the same measures for each subset of the images. A subset of at least MIN_IMAGES must be
        within the limits by itself. "synthetic" consists of distorted crops of "photographs".
    pictures: what identifies the photographs, "sha256:…" of their digests as in `Engine`
    undetermined: how many images were left out because float32 does not determine the model's own
        answer; at most one of 100, and only for float32 engines
    seen: how many of the photographs the engine was calibrated or searched on; None for older
        proofs, which do not say
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
    weights_p99: float | None = None
    maps_p99: float | None = None
    maps_plcc_p01: float | None = None
    pictures: str | None = None
    seen: int | None = None
    undetermined: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rows >= self.images, "there are fewer crops than images")
        require_plain("reference", self.reference, *self.sets)
        digest = self.pictures is None or _DIGEST.fullmatch(self.pictures) is not None
        require(digest, "pictures is no digest")
        require(0 <= (self.seen or 0) <= self.images, "seen is beyond images")
        require(0 <= self.undetermined <= self.images / 50, "too many images are undetermined")
        unknown = self.limits.keys() - self.measured().keys()
        require(not unknown, f"there are limits of unknown measures: {sorted(unknown)!s:.80}")
        distances = (self.score_mean, self.score_p99, self.weights_max, self.maps_max or 0.0)
        require(min(distances) >= 0, "a parity distance is negative")
        require(0 <= (self.leading_flips or 0) <= self.images, "leading_flips is beyond images")
        kept = self.within_limits
        require(kept or not self.passed, "parity is recorded as passed, but failed")

    def measured(self) -> dict[str, float | None]:
        share = None if self.leading_flips is None else self.leading_flips / self.images
        names = ("score_mean", "weights_srcc", "weights_plcc", *EXTREME_OF, *EXTREME_OF.values())
        others = {name: getattr(self, name) for name in names}
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

    def objection(self, precision: str) -> str | None:
        """Why this version accepts no such proof of an engine of `precision`; None if it does."""
        if not self.passed:
            return "it failed its proof"
        if self.images < MIN_IMAGES:
            return f"its proof was measured on {self.images} images, at least {MIN_IMAGES} count"
        if names := [*self._looser(LIMITS[precision])]:
            limits = f"limits of {', '.join(names)}"
            return f"its proof has none or looser {limits} than this version asks of {precision}"
        return None if self._sets_agree else "the sets in its proof contradict the whole"

    def _looser(self, required: Mapping[str, float]) -> Iterator[str]:
        """The names whose limit is missing or too loose, as in `looser`.

        A proof from before a measure of 99 of 100 images is judged by what it did measure.
        """
        measured = self.measured()
        for name in looser(self.limits, required):
            value = measured[name]
            if name in EXTREME_OF and name not in self.limits:
                value = measured[EXTREME_OF[name]] if value is None else value
                if value is None or _keeps(name, value, required[name]):
                    continue
            yield name

    def headroom(self, precision: str) -> Headroom | None:
        """How near the proof is to this version's limits for `precision`; None if it is perfect.

        As for the limits, all images count, and each set of them that is large enough.
        """
        enough = [each for each in self.sets.values() if each.images >= MIN_IMAGES]
        found = [
            Headroom(distance(name, limit) / distance(name, value), name)
            for measured in (self.measured(), *(each.measured() for each in enough))
            for name, limit in LIMITS[precision].items()
            if (value := measured.get(name)) is not None and distance(name, value) > 0
        ]
        return min(found, default=None)

    @property
    def _sets_agree(self) -> bool:
        """Whether the subsets, if there are any, can be parts of all images."""
        sets = self.sets.values()
        return not sets or (
            sum(each.images for each in sets) == self.images
            and sum(each.pairs for each in sets) <= self.pairs
            and sum(each.order_flips for each in sets) <= self.order_flips
            and max(each.score_max for each in sets) <= self.score_max
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
        require(min(self.batches, default=0) >= 1, "batches is empty or below 1")
        require(
            min(self.score_max, self.tolerance) >= 0,
            "a batch-invariance value is negative",
        )
        limits = invariance_limits(self.tolerance)
        kept = within({name: getattr(self, name) for name in limits}, limits)
        require(kept or not self.passed, "batch invariance is recorded as passed, but failed")
        require_plain("cases", *self.cases)

    def objection(self, precision: str) -> str | None:
        """Why this version accepts no such proof of an engine of `precision`; None if it does."""
        if not self.passed:
            return "it failed its proof"
        if self.tolerance > TOLERANCES[precision]:
            asked = f"{TOLERANCES[precision]:g}, which this version asks of {precision}"
            return f"its batch invariance has a tolerance of {self.tolerance:g}, more than {asked}"
        return None
