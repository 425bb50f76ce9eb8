"""`run_demo`: every stage on a small model, from photographs to a verified bundle and a page."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drexperts import runtime
from drexperts.bench import BenchOptions, BenchReport, bench, tables
from drexperts.bench.report import with_summary
from drexperts.demo.training import PREPROCESSING, SCALE, HeldOut, train_demo
from drexperts.evaluation.metrics import plcc, srcc
from drexperts.export.bundle import export_bundle
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.runtime.explain import explanation
from drexperts.runtime.manifest import Engine
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.score import Score
from drexperts.training.trainer import Step
from drexperts.ui.charts import Words, scatter
from drexperts.ui.markdown import Table
from drexperts.ui.pages import render

AIM = 0.8  # SRCC on contents that were not trained on
PICTURES = 6
VERIFIED_ON = 24  # held-out images that the bundle is proven on


class ScoredVersion(NamedTuple):
    """A distorted version of a held-out photograph, its label and its score, both 0..100."""

    content: str
    distortion: str
    level: int
    label: float
    score: float


@dataclass(frozen=True)
class DemoReport:
    """What the demo made and measured. Without a proven engine, nothing is scored or timed."""

    bundle: Path
    engine: Engine
    held_out: tuple[ScoredVersion, ...] = ()
    bench: BenchReport | None = None
    page: Path | None = None

    @property
    def srcc(self) -> float:
        """Spearman's correlation of the held-out labels and scores."""
        return srcc([each.label for each in self.held_out], [each.score for each in self.held_out])

    @property
    def plcc(self) -> float:
        """Pearson's correlation of the held-out labels and scores."""
        return plcc([each.label for each in self.held_out], [each.score for each in self.held_out])

    @property
    def contents(self) -> list[str]:
        """The photographs that were held out."""
        return sorted({each.content for each in self.held_out})

    @property
    def passed(self) -> bool:
        """Whether the bundle is proven and the correlation `AIM` was reached."""
        return self.engine.proven and self.srcc >= AIM

    def as_json(self) -> dict[str, Any]:
        """The document of `drx demo --json`."""
        document = {"passed": self.passed, "bundle": str(self.bundle)}
        if not self.engine.proven:
            return document
        held_out = {"images": len(self.held_out), "contents": self.contents}
        held_out |= {"srcc": self.srcc, "plcc": self.plcc}
        timed = None if self.bench is None else with_summary(self.bench)
        return document | {"held_out": held_out, "bench": timed, "page": str(self.page)}


def run_demo(out: str | Path, progress: Progress = SILENT) -> DemoReport:
    """Train, export, verify, score held-out images, and measure; takes a few minutes on a CPU.

    Leaves in `out` a checkpoint, a bundle, explained images and a page of the results.

    Example:
        report = run_demo("runs/demo")
        report.passed, report.page
    """

    def tell(phase: str, step: Step) -> None:
        if step.number % 10 == 0 or step.number == step.steps:
            message = f"training the {phase}, loss {step.loss:.4f}"
            progress(message, step.number, step.steps)

    out = Path(out)
    progress("distorting photographs")
    trained = train_demo(tell)
    checkpoint = Checkpoint(trained.model, SCALE, PREPROCESSING)
    save_checkpoint(checkpoint, out / "model.safetensors")
    bundle = out / "bundle"
    verified_on = [item.image for item in _evenly(trained.held_out, VERIFIED_ON)]
    engine = export_bundle(checkpoint, bundle, images=verified_on, progress=progress).engines[0]
    if not engine.proven:
        return DemoReport(bundle, engine)
    progress("scoring the held-out images")
    scores = runtime.load(bundle).score([item.image for item in trained.held_out])
    progress("explaining some of them")
    pictures = _explain(bundle, trained.held_out, out)
    measured = bench(bundle, BenchOptions(baselines=("eager-dense", "eager-reduced")), progress)
    held_out = tuple(map(_scored, trained.held_out, scores))
    report = DemoReport(bundle, engine, held_out, measured, out / "index.html")
    (out / "index.html").write_text(_page(report, pictures), encoding="utf-8")
    return report


def _scored(item: HeldOut, score: Score) -> ScoredVersion:
    return ScoredVersion(item.content, item.distortion, item.level, item.label, score.value)


def _explain(bundle: Path, held_out: Sequence[HeldOut], out: Path) -> list[str]:
    """Write a few images of different quality and their explanations; the latter's names."""
    for folder in ("images", "pictures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    scorer = runtime.load(bundle)
    pictures = []
    for item in _evenly(sorted(held_out, key=lambda item: item.label), PICTURES):
        name = f"{item.content}-{item.distortion}-{item.level}.png"
        item.image.save(out / "images" / name)
        score = scorer.score(out / "images" / name, maps=True)
        explanation(item.image, score).save(out / "pictures" / name)
        pictures.append(f"pictures/{name}")
    return pictures


def _evenly(items: Sequence[HeldOut], count: int) -> list[HeldOut]:
    """`count` of the items, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def _page(report: DemoReport, pictures: Sequence[str]) -> str:
    groups = defaultdict(list)
    for each in report.held_out:
        groups[each.distortion].append((each.label, each.score))
    return render(
        "demo.html.j2",
        title="drx demo",
        report=report,
        plot=scatter(groups, Words("score against label", "label", "score")),
        proof=Table(("measure", "value", "limit"), _proof(report.engine)),
        latency=tables.latency(report.bench.batches if report.bench else ()),
        pictures=pictures,
    )


def _proof(engine: Engine) -> list[tuple[str, str, str]]:
    """The name, value and limit of everything that was measured to prove an engine."""
    rows = []
    if engine.parity is not None:
        measured = engine.parity.measured()
        for name, limit in engine.parity.limits.items():
            value = measured.get(name)
            shown = "" if value is None else f"{value:.3g}"
            rows.append((name.replace("_", " "), shown, f"{limit:g}"))
    if engine.invariance is not None:
        drift, limit = engine.invariance.score_max, engine.invariance.tolerance
        rows.append(("batch invariance", f"{drift:.3g}", f"{limit:g}"))
    return rows
