"""The tables that the command line prints: scores, metrics, bundles and their proofs."""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.table import Table

from drexperts.runtime.explain import strongest
from drexperts.runtime.manifest import (
    Engine,
    EnginePlan,
    Manifest,
    PrecisionTrial,
    ScoreScale,
)
from drexperts.runtime.proof import (
    LOWER_LIMITS,
    MIN_IMAGES,
    OPTIONAL_MEASURES,
    BatchInvariance,
    Parity,
    SetParity,
    invariance_limits,
)
from drexperts.runtime.quoting import printable
from drexperts.runtime.scorer import Score
from drexperts.ui.screen import Screen

_ALL = 20  # a table shows up to this many scores,
_ENDS = 5  # or else so many of the worst and of the best
_ERRORS = 10

_PARITY = {
    "score_max": "score, largest difference / span",
    "score_units": "score, largest difference in its units",
    "score_p99": "score, 99th percentile / span",
    "score_mean": "score, mean difference / span",
    "srcc": "rank correlation (SRCC)",
    "srcc_low": "SRCC, 95 % over images",
    "plcc": "linear correlation (PLCC)",
    "plcc_low": "PLCC, 95 % over images",
    "order_flips": "order flips, share of {pairs} pairs",
    "clear_flips": "order flips, share of {clear_pairs} pairs 1 % of the span apart",
    "weights_max": "weights, largest difference",
    "weights_p99": "weights, 99th percentile",
    "weights_srcc": "weights, SRCC of the worst expert",
    "weights_srcc_low": "its SRCC, 95 % over images",
    "weights_plcc": "weights, PLCC of the worst expert",
    "weights_plcc_low": "its PLCC, 95 % over images",
    "leading_flips": "leading distortion changed, share of {images} images",
    "maps_max": "maps, largest difference",
    "maps_p99": "maps, 99th percentile",
    "maps_plcc": "maps, PLCC of the worst crop",
    "maps_plcc_p01": "maps, PLCC, first percentile",
}
_METRICS = {
    "srcc": "SRCC",
    "plcc": "PLCC, raw",
    "plcc_fitted": "PLCC, after the logistic fit",
    "krcc": "KRCC",
    "rmse": "RMSE, after the fit",
}
_Row = tuple[str, str, str, str]


class Tally:
    """Summary of a stream of scores of any length, in little memory.

    Attributes:
        scored: how many images have a score
        failed: how many have an error
        errors: the first few scores with an error
    """

    def __init__(self, scale: ScoreScale) -> None:
        self._scale = scale
        self._kept: list[Score] = []
        self.scored = 0
        self.failed = 0
        self.errors: list[Score] = []

    def add(self, score: Score) -> None:
        """Count a score, and keep it while it is one of those to show."""
        if score.error is not None:
            self.failed += 1
            self.errors += [score][: _ERRORS - len(self.errors)]
            return
        self.scored += 1
        # Maps take a megabyte per image and no table shows them.
        self._kept.append(dataclasses.replace(score, maps=None))
        if len(self._kept) > _ALL:
            ranked = self.ranked()
            self._kept = ranked[:_ENDS] + ranked[-_ENDS:]

    def ranked(self) -> list[Score]:
        """The kept scores, worst first."""
        sign = 1 if self._scale.higher_is_better else -1
        return sorted(self._kept, key=lambda score: sign * score.value)

    @property
    def is_complete(self) -> bool:
        """Whether every score is among the kept ones."""
        return self.scored == len(self._kept)


def print_scores(tally: Tally, already_there: int, screen: Screen) -> None:
    """Print the tables of a run of `drx score`, and one line that sums it up."""
    if tally.scored:
        screen.tables.print(score_table(tally))
    if tally.failed:
        screen.tables.print(error_table(tally))
    summary = f"{tally.scored} scored, {tally.failed} failed"
    screen.tables.print(summary + f", {already_there} already there" * (already_there > 0))


def score_table(tally: Tally) -> Table:
    """The scores, worst first; if there are many, only the worst and the best."""
    kept = tally.ranked()
    title = "scores, worst first"
    if not tally.is_complete:
        kept = kept[:_ENDS] + kept[-_ENDS:]
        title = f"the {_ENDS} worst and the {_ENDS} best of {tally.scored}"
    table = Table(title=title)
    table.add_column("image", overflow="fold")
    table.add_column("score", justify="right")
    table.add_column("± std", justify="right")
    table.add_column("strongest experts")
    for place, score in enumerate(kept):
        experts = [f"{n} {score.distortions[n]:+.3g}" for n in strongest(score.distortions, 2)]
        last_worst = not tally.is_complete and place == _ENDS - 1
        row = (
            printable(score.source),
            f"{score.value:.4g}",
            f"{score.std:.2g}",
            ", ".join(experts),
        )
        table.add_row(*row, end_section=last_worst)
    return table


def error_table(tally: Tally) -> Table:
    """The first few images without a score, and why."""
    table = Table(title=f"{tally.failed} not scored")
    table.add_column("image", overflow="fold")
    table.add_column("error", overflow="fold")
    for score in tally.errors:
        table.add_row(printable(score.source), score.error)
    if tally.failed > len(tally.errors):
        table.add_row(f"and {tally.failed - len(tally.errors)} more", "")
    return table


def scale_text(scale: ScoreScale) -> str:
    """A scale in words, such as "0 to 100, higher is better"."""
    better = "higher" if scale.higher_is_better else "lower"
    return f"{scale.low:g} to {scale.high:g}, {better} is better"


def bundle_table(bundle: str, manifest: Manifest) -> Table:
    """The model, the input and the outputs of a bundle."""
    spec = manifest.preprocessing
    table = Table("", "", title=bundle, show_header=False)
    table.add_row("preset", manifest.preset)
    table.add_row("score", scale_text(manifest.scale))
    table.add_row("outputs", ", ".join(manifest.outputs))
    table.add_row("distortions", ", ".join(manifest.distortions))
    table.add_row(
        "preprocessing",
        f"shorter side {spec.short_side_min} to {spec.short_side_max} px, at most "
        f"{spec.crops_per_side} x {spec.crops_per_side} crops of {spec.crop} px",
    )
    table.add_row("made with", _versions(manifest.created_with), end_section=True)
    for name, value in manifest.config.items():
        table.add_row(f"config {name}", str(value))
    return table


def engine_table(engine: Engine, state: str, size: int | None, obstacle: str | None) -> Table:
    """An engine: its file, and whether this machine can run it.

    state: of the file compared with the manifest, such as "intact"
    size: of the file in bytes, None if it is missing
    obstacle: why this machine cannot run the engine, None if it can
    """
    table = Table("", title=f"engine {engine.file}", show_header=False)
    table.add_column(overflow="fold")
    table.add_row("file", state if size is None else f"{state}, {size / 2**20:.1f} MiB")
    table.add_row("SHA-256", engine.sha256)
    table.add_row("backend", f"{engine.backend}, {engine.precision}")
    table.add_row("evidence", engine.evidence)
    table.add_row("runs here", "yes" if obstacle is None else f"no: {obstacle}")
    table.add_row("largest batch", _largest_batch(engine))
    table.add_row("made with", _versions(engine.versions))
    if engine.islands:
        table.add_row("stays in float32", ", ".join(engine.islands))
    for tried in engine.frontier:
        table.add_row("tried", _tried(tried))
    if engine.plan is not None:
        for row in _plan_rows(engine.plan):
            table.add_row(*row)
    return table


def _tried(trial: PrecisionTrial) -> str:
    verdict = "kept all limits" if trial.passed else "failed"
    return (
        f"{trial.islands} in float32, {trial.weight_bytes / 2**20:.1f} MiB: "
        f"SRCC {trial.srcc:.5f}, score within {trial.score_max:.1e} of the span, {verdict}"
    )


def _largest_batch(engine: Engine) -> str:
    if engine.certified_batch == engine.max_batch:
        return str(engine.max_batch)
    return f"{engine.certified_batch} (built for {engine.max_batch})"


def _plan_rows(plan: EnginePlan) -> Iterator[tuple[str, str]]:
    yield "built for", f"compute capability {', '.join(plan.capabilities)}, {plan.platform}"
    yield "hardware compatibility", plan.hardware_compatibility
    yield "profiles, min:opt:max", " ".join(map(str, plan.profiles))
    yield "pooling", "Triton kernel, as a plugin" if plan.plugin_layers else "standard operators"
    yield "attention", "fused where possible" if plan.fused_attention else "not fused"
    yield "other versions", "newer ones too" if plan.version_compatible else "no"
    yield "weights", "left out, to be refitted" if plan.stripped else "inside"


class MetricsOfSplit(Protocol):
    """What `metrics_table` reads of `evaluation.metrics.Metrics`; NaN is a metric without a value.

    intervals: the ends of each metric's confidence interval
    """

    @property
    def intervals(self) -> Mapping[str, tuple[float, float]]: ...


def metrics_table(splits: Sequence[MetricsOfSplit]) -> Table:
    """Each metric of one split with its interval, or its median and range over several splits."""
    table = Table("", "median" if len(splits) > 1 else "", "", box=SIMPLE_HEAD, pad_edge=False)
    for name, heading in _METRICS.items():
        values: list[float] = [getattr(metrics, name) for metrics in splits]
        low, high = min(values), max(values)
        spread = f"{low:.3f} to {high:.3f} over {len(splits)} splits"
        if len(splits) == 1:
            low, high = splits[0].intervals[name]
            spread = "" if math.isnan(low) else f"95 % over images: {low:.3f} to {high:.3f}"
        # Too few images, or the same score for all of them, leave a metric undefined.
        undefined = any(map(math.isnan, values))
        shown = ("-", "") if undefined else (f"{statistics.median(values):.4f}", spread)
        table.add_row(heading, *shown)
    return table


def proof_table(engine: Engine) -> Table:
    """What was measured to prove an engine, against its limits: parity, and batch invariance."""
    verdict = "proven" if engine.proven else f"NOT PROVEN, {engine.objection}"
    if engine.evidence != "executed":
        verdict = f"{engine.evidence}, never executed"
    table = Table(
        "measured", title=f"{engine.file} ({engine.backend}, {engine.precision}): {verdict}"
    )
    table.add_column("value", justify="right")
    table.add_column("limit", justify="right")
    table.add_column("")
    if engine.parity is None:
        table.add_row("parity with the model", "never measured", "", "")
    else:
        _add_parity(table, engine.parity)
        if near := engine.parity.headroom(engine.precision):
            table.add_section()
            label = near.measure.replace("_", " ")
            table.add_row(f"headroom: limit / measured, {label}", f"{near.factor:.2f}", "", "")
    table.add_section()
    if engine.invariance is None:
        table.add_row("batch invariance", "never measured", "", "")
    else:
        _add_rows(table, _invariance_rows(engine.invariance))
    return table


def _add_parity(table: Table, parity: Parity) -> None:
    """Add what was measured over all images, then what was over each set of them."""
    _add_rows(table, _parity_rows(parity, parity.limits))
    for name, each in parity.sets.items():
        table.add_section()
        limits = parity.limits if each.images >= MIN_IMAGES else {}
        note = "" if limits else ", too few for limits of their own"
        table.add_row(f"{name}: {each.images} images{note}", "", "", "")
        _add_rows(table, _parity_rows(each, limits))
    table.caption = f"{parity.images} images against {parity.reference}"


def _add_rows(table: Table, rows: Iterator[_Row]) -> None:
    for row in rows:
        table.add_row(*row)


def _parity_rows(measured: SetParity, limits: Mapping[str, float]) -> Iterator[_Row]:
    values = measured.measured() | {"score_units": getattr(measured, "score_units", None)}
    for name, label in _PARITY.items():
        value, limit, floor = values.get(name), limits.get(name), name in LOWER_LIMITS
        required = name in values and limit is not None and name not in OPTIONAL_MEASURES
        if value is not None:
            shown = _correlation(measured, name, value) if floor else _number(value)
        elif required:
            shown = "not measured"
        else:
            continue
        yield label.format_map(vars(measured)), shown, *_gate(value, limit, floor)


def _correlation(measured: SetParity, name: str, value: float) -> str:
    """A correlation; both ends of an interval where `name` is its lower end."""
    if not name.endswith("_low"):
        return f"{value:.7f}"
    interval = getattr(measured, name.replace("_low", "_interval"))
    return f"{interval.low:.7f} to {interval.high:.7f}"


def _invariance_rows(invariance: BatchInvariance) -> Iterator[_Row]:
    batches = ", ".join(map(str, invariance.batches))
    tested = f"({', '.join(invariance.cases)}; batches {batches})"
    labels = {
        "score_max": f"batch invariance of the score / span {tested}",
        "weights_max": "batch invariance of the weights",
        "maps_max": "batch invariance of the maps",
    }
    for name, limit in invariance_limits(invariance.tolerance).items():
        value = getattr(invariance, name)
        if value is not None:
            yield labels[name], _number(value), *_gate(value, limit, floor=False)


def _number(value: float) -> str:
    """A difference. One that involves NaN is recorded as larger than 1e300."""
    return f"{value:.2e}" if value < 1e300 else "NaN"


def _gate(value: float | None, limit: float | None, floor: bool) -> tuple[str, str]:
    """A limit and whether a value keeps it. floor: the value must not be below the limit."""
    if limit is None:
        return "", ""
    kept = value is not None and (value >= limit if floor else value <= limit)
    return f"{'≥' if floor else '≤'} {limit:g}", "holds" if kept else "FAILS"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
