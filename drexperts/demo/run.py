"""`drx demo`: every stage on a small model, from photographs to a verified bundle and a page."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from drexperts import runtime
from drexperts.bench.bundle import Settings, bench_bundle, print_report
from drexperts.demo.page import Point, write_page
from drexperts.demo.training import HeldOut, TrainedDemo, train_demo
from drexperts.evaluation.metrics import plcc, srcc
from drexperts.export.bundle import export_bundle
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.runtime.explain import explanation
from drexperts.runtime.progress import Progress
from drexperts.runtime.scorer import Score
from drexperts.training.trainer import Step
from drexperts.ui.tables import proof_table

AIM = 0.8  # SRCC on content that was not trained on
PICTURES = 6
VERIFIED_ON = 24  # held-out images that the bundle is proven on


def run_demo(out: Path, console: Console, progress: Progress) -> dict[str, Any]:
    """Train, export, verify, score what was held out, measure; leave a bundle and a page in `out`.

    Returns:
        A JSON-ready report. `passed` is whether the bundle is proven and the aim was reached.
    """

    def tell(phase: str, step: Step) -> None:
        if step.number % 10 == 0 or step.number == step.steps:
            progress(f"training the {phase}: step {step.number} of {step.steps}, {step.loss:.4f}")

    progress("distorting photographs")
    trained = train_demo(tell)
    checkpoint = Checkpoint(trained.model, trained.scale, trained.preprocessing)
    save_checkpoint(checkpoint, out / "model.safetensors")
    bundle = out / "bundle"
    shown = _evenly(trained.held_out, VERIFIED_ON)
    pictures = [item.image for item in shown]
    engine = export_bundle(checkpoint, bundle, images=pictures, progress=progress).engines[0]
    console.print(proof_table(engine))
    if not engine.proven:
        return {"passed": False, "bundle": str(bundle)}
    progress("scoring what was held out")
    scores = runtime.load(bundle).score([item.image for item in trained.held_out])
    held_out = _judged(trained, scores)
    _print_scores(trained.held_out, scores, console)
    console.print(
        f"{held_out['images']} images of content it has not seen: SRCC {held_out['srcc']:.3f} "
        f"(aim {AIM}), PLCC {held_out['plcc']:.3f}"
    )
    settings = Settings(baselines=("eager-dense", "eager-reduced"))
    bench = bench_bundle(bundle, settings, progress)
    print_report(bench, console)
    drawn = _draw(bundle, trained.held_out, out)
    report = {"bundle": str(bundle), "held_out": held_out, "bench": bench}
    points = [
        Point(item.label, score.value, item.distortion)
        for item, score in zip(trained.held_out, scores, strict=True)
    ]
    write_page(out / "index.html", report, engine, points, drawn)
    console.print(f"a bundle in {bundle}, a page with pictures in {out / 'index.html'}")
    return report | {"passed": held_out["srcc"] >= AIM, "page": str(out / "index.html")}


def _judged(trained: TrainedDemo, scores: list[Score]) -> dict[str, Any]:
    labels, values = [i.label for i in trained.held_out], [s.value for s in scores]
    return {
        "images": len(values),
        "contents": sorted({item.content for item in trained.held_out}),
        "srcc": srcc(labels, values),
        "plcc": plcc(labels, values),
    }


def _print_scores(held_out: list[HeldOut], scores: list[Score], console: Console) -> None:
    """The mean label and score of each distortion and level."""
    table = Table("distortion", "level", "label", "score", title="held-out content, means")
    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for item, score in zip(held_out, scores, strict=True):
        groups.setdefault((item.distortion, item.level), []).append((item.label, score.value))
    for (distortion, level), pairs in groups.items():
        label, value = np.mean(pairs, axis=0)
        table.add_row(distortion, str(level), f"{label:.0f}", f"{value:.0f}")
    console.print(table)


def _draw(bundle: Path, held_out: list[HeldOut], out: Path) -> list[Path]:
    """A few images of different quality as files in `out`, and the explanation of each."""
    for folder in ("images", "pictures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    scorer = runtime.load(bundle)
    drawn = []
    for item in _evenly(sorted(held_out, key=lambda item: item.label), PICTURES):
        name = f"{item.content}-{item.distortion}-{item.level}.png"
        item.image.save(out / "images" / name)
        score = scorer.score(out / "images" / name, maps=True)
        explanation(item.image, score).save(out / "pictures" / name)
        drawn.append(out / "pictures" / name)
    return drawn


def _evenly(items: list[HeldOut], count: int) -> list[HeldOut]:
    """`count` of the items, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]
