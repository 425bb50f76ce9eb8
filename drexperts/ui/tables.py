"""What the commands print: tables of scores, and of what a bundle is and was proven on."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from drexperts.runtime.explain import strongest
from drexperts.runtime.manifest import (
    LOWER_LIMITS,
    MIN_IMAGES,
    OPTIONAL_MEASURES,
    BatchInvariance,
    Engine,
    EnginePlan,
    Manifest,
    Parity,
    PrecisionTrial,
    ScoreScale,
    SetParity,
    invariance_limits,
)
from drexperts.runtime.scorer import Score
from drexperts.ui.screen import Screen

_ALL = 20  # scores up to which a table shows each
_ENDS = 5  # of more, the worst and the best
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
    "weights_srcc": "weights, SRCC of the worst expert",
    "weights_srcc_low": "that SRCC, 95 % over images",
    "weights_plcc": "weights, PLCC of the worst expert",
    "weights_plcc_low": "that PLCC, 95 % over images",
    "leading_flips": "another leading distortion, share of {images} images",
    "maps_max": "maps, largest difference",
    "maps_plcc": "maps, PLCC of the worst crop",
}
_METRICS = {
    "srcc": "SRCC",
    "plcc": "PLCC, raw",
    "plcc_fitted": "PLCC, after the logistic fit",
    "krcc": "KRCC",
    "rmse": "RMSE, after the fit",
}


class Tally:
    """What to show of a stream of scores of any length, in little memory.

    Attributes:
        scored: images with a score
        failed: images with an error
        errors: the first few rows with an error
    """

    def __init__(self, scale: ScoreScale) -> None:
        self._scale = scale
        self._kept: list[Score] = []
        self.scored = 0
        self.failed = 0
        self.errors: list[Score] = []

    def add(self, score: Score) -> None:
        """Count a score, and keep it while it is among those to show."""
        if score.error is not None:
            self.failed += 1
            self.errors += [score][: _ERRORS - len(self.errors)]
            return
        self.scored += 1
        # Maps take a megabyte an image and are in no table.
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
    """The tables of a run and one line that sums it up."""
    if tally.scored:
        screen.tables.print(score_table(tally))
    if tally.failed:
        screen.tables.print(error_table(tally))
    summary = f"{tally.scored} scored, {tally.failed} failed"
    screen.tables.print(summary + f", {already_there} already there" * (already_there > 0))


def score_table(tally: Tally) -> Table:
    """The scores, worst first; of many, the few worst and best."""
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
        row = (score.source, f"{score.value:.4g}", f"{score.std:.2g}", ", ".join(experts))
        table.add_row(*row, end_section=last_worst)
    return table


def error_table(tally: Tally) -> Table:
    """The first few images without a score, and why."""
    table = Table(title=f"{tally.failed} not scored")
    table.add_column("image", overflow="fold")
    table.add_column("error", overflow="fold")
    for score in tally.errors:
        table.add_row(score.source, score.error)
    if tally.failed > len(tally.errors):
        table.add_row(f"and {tally.failed - len(tally.errors)} more", "")
    return table


def scale_text(scale: ScoreScale) -> str:
    """Such as "0 to 100, higher is better"."""
    better = "higher" if scale.higher_is_better else "lower"
    return f"{scale.low:g} to {scale.high:g}, {better} is better"


def bundle_table(bundle: str, manifest: Manifest) -> Table:
    """What a bundle is: its model, its input, its outputs."""
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
    """One engine: its file, what became of it since, and whether this machine runs it.

    size: bytes, None if it is missing. obstacle: why this machine cannot run it.
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


def _tried(mixture: PrecisionTrial) -> str:
    verdict = "kept all limits" if mixture.passed else "failed"
    return (
        f"{mixture.islands} in float32, {mixture.weight_bytes / 2**20:.1f} MiB: "
        f"SRCC {mixture.srcc:.5f}, score within {mixture.score_max:.1e} of the span, {verdict}"
    )


def _largest_batch(engine: Engine) -> str:
    if engine.certified_batch == engine.max_batch:
        return str(engine.max_batch)
    return f"{engine.certified_batch}, of {engine.max_batch} built"


def _plan_rows(plan: EnginePlan) -> Iterator[tuple[str, str]]:
    yield "built for", f"compute capability {', '.join(plan.capabilities)}, {plan.platform}"
    yield "hardware compatibility", plan.hardware_compatibility
    yield "profiles, min:opt:max", " ".join(map(str, plan.profiles))
    yield "pooling", "Triton kernel, a plugin" if plan.plugin_layers else "standard operators"
    yield "attention", "fused where it can be" if plan.fused_attention else "kept from fusing"
    yield "other versions", "newer ones, too" if plan.version_compatible else "no"
    yield "weights", "left out, to be refitted" if plan.stripped else "inside"


def metrics_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """What a training came to: each metric with its interval, or its median over several splits."""
    table = Table("", "median" if len(results) > 1 else "", "", box=SIMPLE_HEAD, pad_edge=False)
    for name, heading in _METRICS.items():
        values = [result[name] for result in results]
        if None in values:  # of too few images, or of scores that are all the same
            table.add_row(heading, "-", "")
            continue
        low, high = min(values), max(values)
        spread = f"{low:.3f} to {high:.3f} over {len(results)} splits"
        if len(results) == 1:
            low, high = results[0]["intervals"][name].values()
            spread = "" if low is None else f"95 % over images: {low:.3f} to {high:.3f}"
        table.add_row(heading, f"{statistics.median(values):.4f}", spread)
    return table


def proof_table(engine: Engine) -> Table:
    """What was measured of an engine against its limits: parity, and batch invariance."""
    verdict = "proven" if engine.proven else "NOT PROVEN"
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
    table.add_section()
    if engine.invariance is None:
        table.add_row("batch invariance", "never measured", "", "")
    else:
        for row in _invariance_rows(engine.invariance):
            table.add_row(*row)
    return table


def _add_parity(table: Table, parity: Parity) -> None:
    """What was measured over all images, then over each set of them."""
    for row in _parity_rows(parity, parity.limits):
        table.add_row(*row)
    for name, each in parity.sets.items():
        table.add_section()
        limits = parity.limits if each.images >= MIN_IMAGES else {}
        note = "" if limits else ", too few for a gate of their own"
        table.add_row(f"{name}: {each.images} images{note}", "", "", "")
        for row in _parity_rows(each, limits):
            table.add_row(*row)
    table.caption = f"{parity.images} images against {parity.reference}"


def _parity_rows(
    measured: SetParity, limits: Mapping[str, float]
) -> Iterator[tuple[str, str, str, str]]:
    values = measured.measured() | {"score_units": getattr(measured, "score_units", None)}
    for name, label in _PARITY.items():
        value, limit = values.get(name), limits.get(name)
        if value is not None:
            shown, gate = _number(value), _at_most(value, limit)
            if name in LOWER_LIMITS:
                shown, gate = _correlation(measured, name, value), _at_least(value, limit)
        elif name in values and limit is not None and name not in OPTIONAL_MEASURES:
            sign = "≥" if name in LOWER_LIMITS else "≤"
            shown, gate = "not measured", (f"{sign} {limit:g}", _verdict(False))
        else:
            continue
        yield label.format_map(vars(measured)), shown, *gate


def _correlation(measured: SetParity, name: str, value: float) -> str:
    """In place of the low end of an interval, both."""
    if not name.endswith("_low"):
        return f"{value:.7f}"
    interval = getattr(measured, name.replace("_low", "_interval"))
    return f"{interval.low:.7f} to {interval.high:.7f}"


def _invariance_rows(invariance: BatchInvariance) -> Iterator[tuple[str, str, str, str]]:
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
            yield labels[name], _number(value), *_at_most(value, limit)


def _number(value: float) -> str:
    """Scores that are no numbers are recorded as beyond everything."""
    return f"{value:.2e}" if value < 1e300 else "no number"


def _at_most(value: float, limit: float | None) -> tuple[str, str]:
    return ("", "") if limit is None else (f"≤ {limit:g}", _verdict(value <= limit))


def _at_least(value: float, limit: float | None) -> tuple[str, str]:
    return ("", "") if limit is None else (f"≥ {limit:g}", _verdict(value >= limit))


def _verdict(kept: bool) -> str:
    return "holds" if kept else "FAILS"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
