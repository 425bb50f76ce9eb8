"""The tables that the command line prints: scores, metrics and proofs."""

import dataclasses
import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table

from drexperts.runtime.explain import strongest
from drexperts.runtime.manifest import Engine, ScoreScale
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
from drexperts.runtime.score import Score
from drexperts.ui import markdown
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
_FAILS = "FAILS"


class Tally:
    """Summary of a stream of scores of any length, in little memory.

    Attributes:
        scored: how many images have a score
        failed: how many have an error
        enlarged: how many of the scored were enlarged, see `Score.enlarged`
        errors: the first few scores with an error
        videos: the first few scores of videos, which are none of images
    """

    def __init__(self, scale: ScoreScale) -> None:
        self._scale = scale
        self._kept: list[Score] = []
        self.scored = 0
        self.failed = 0
        self.enlarged = 0
        self.errors: list[Score] = []
        self.videos: list[Score] = []

    def add(self, score: Score) -> None:
        """Count a score, and keep it while it is one of those to show."""
        if score.error is not None:
            self.failed += 1
            self.errors += [score][: _ERRORS - len(self.errors)]
            return
        if score.frames is not None:
            self.videos += [score][: _ALL - len(self.videos)]
            return
        self.scored += 1
        self.enlarged += score.enlarged is not None
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
    if tally.videos:
        screen.tables.print(video_table(tally))
    if tally.failed:
        screen.tables.print(error_table(tally))
    summary = f"{tally.scored} scored, {tally.failed} failed"
    summary += f", {already_there} already there" * (already_there > 0)
    enlarged = f"; {tally.enlarged} smaller than the model's input, enlarged"
    screen.tables.print(summary + enlarged * (tally.enlarged > 0))


def score_table(tally: Tally) -> Table:
    """The scores, worst first; if there are many, only the worst and the best."""
    kept = tally.ranked()
    title = "scores, worst first"
    if not tally.is_complete:
        kept = kept[:_ENDS] + kept[-_ENDS:]
        title = f"the {_ENDS} worst and the {_ENDS} best of {tally.scored}"
    table = Table(title=title)
    table.add_column("image", no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("± std", justify="right")
    table.add_column("strongest experts", no_wrap=True)
    for place, score in enumerate(kept):
        experts = [f"{n} {score.distortions[n]:+.3g}" for n in strongest(score.distortions, 2)]
        last_worst = not tally.is_complete and place == _ENDS - 1
        row = (
            printable(score.source),
            f"{score.value:.{score.scale.decimals}f}",
            f"{score.std:.2g}",
            ", ".join(experts),
        )
        table.add_row(*row, end_section=last_worst)
    return table


def video_table(tally: Tally) -> Table:
    """The first scores of videos, which are means of those of their frames."""
    table = Table(title="videos")
    table.add_column("video", no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("± std", justify="right")
    table.add_column("frames", justify="right")
    for score in tally.videos:
        value = f"{score.value:.{score.scale.decimals}f}"
        table.add_row(printable(score.source), value, f"{score.std:.2g}", str(score.frames))
    return table


def error_table(tally: Tally) -> Table:
    """The first few images without a score, and why."""
    table = Table(title=f"{tally.failed} not scored")
    table.add_column("image", no_wrap=True)
    table.add_column("error")
    for score in tally.errors:
        table.add_row(printable(score.source), _reason(score))
    if tally.failed > len(tally.errors):
        table.add_row(f"and {tally.failed - len(tally.errors)} more", "")
    return table


def _reason(score: Score) -> str:
    """Why an image has no score, without its name, which stands beside it."""
    error = score.error or ""
    return error.partition(f"{score.source} as an image: ")[2] or error


def text_table(
    content: markdown.Table, title: str, caption: str | None = None, whole: Collection[int] = ()
) -> Table:
    """A table of text, which on a narrow screen breaks at spaces.

    whole: the columns that do not, such as those of names
    """
    table = Table(
        title=title,
        caption=caption,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_header=bool(content.headings),
    )
    headings = content.headings or ("", "")
    for place, (heading, numeric) in enumerate(zip(headings, content.numeric, strict=True)):
        justify: JustifyMethod = "right" if numeric else "left"
        table.add_column(heading, justify=justify, no_wrap=place in whole)
    for row in content.rows:
        table.add_row(*row)
    return table


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


def proof_table(
    engine: Engine, *, only_failed: bool = False, recorded: Collection[str] = ()
) -> Table:
    """What was measured to prove an engine, against its limits: parity, and batch invariance.

    only_failed: leave out what is within its limit
    recorded: "parity" and "batch invariance", if they were measured before this run and not in it
    """
    verdict = "proven" if engine.proven else f"NOT PROVEN, {engine.objection}"
    if engine.evidence != "executed":
        verdict = f"{engine.evidence}, never executed"
    if recorded:
        verdict += f"; not measured here: {' and '.join(recorded)}"
    table = Table("measured")
    table.title = f"{engine.file} ({engine.backend}, {engine.precision}): {verdict}"
    if engine.parity is not None:
        images = f"{engine.parity.images} images against {engine.parity.reference}"
        table.caption = images + reservations(engine.parity)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("")
    for heading, rows in _measured(engine, recorded):
        shown = [row for row in rows if row[-1] == _FAILS or not only_failed]
        for row in [(heading, "", "", "")] * bool(heading and shown) + shown:
            table.add_row(*row)
        table.add_section()
    if engine.parity is not None and (near := engine.parity.headroom(engine.precision)):
        label = near.measure.replace("_", " ")
        table.add_row(f"headroom: limit / measured, {label}", f"{near.factor:.2f}", "", "")
    return table


def reservations(parity: Parity) -> str:
    """What to know of the pictures of a proof: how many were seen, how many left out."""
    seen = f", of which the engine was made on {parity.seen}" if parity.seen else ""
    left_out = f", {parity.undetermined} left out as undetermined" if parity.undetermined else ""
    return seen + left_out


def _measured(engine: Engine, recorded: Collection[str]) -> Iterator[tuple[str, Iterator[_Row]]]:
    """Rows with a heading: of all images, of each set of them, and of batch invariance."""
    if (parity := engine.parity) is None:
        yield "", iter([("parity with the model", "never measured", "", "")])
    else:
        yield _older("parity", recorded), _parity_rows(parity, parity.limits)
        for name, each in parity.sets.items():
            limits = parity.limits if each.images >= MIN_IMAGES else {}
            note = "" if limits else ", too few for limits of their own"
            yield f"{name}: {each.images} images{note}", _parity_rows(each, limits)
    if engine.invariance is None:
        yield "", iter([("batch invariance", "never measured", "", "")])
    else:
        yield _older("batch invariance", recorded), _invariance_rows(engine.invariance)


def _older(proof: str, recorded: Collection[str]) -> str:
    """A heading for numbers that are older than the run that shows them, empty for others."""
    when = "recorded at export or verified earlier, not measured here"
    return f"{proof.upper()}: {when}" if proof in recorded else ""


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
    return f"{'≥' if floor else '≤'} {limit:g}", "holds" if kept else _FAILS
