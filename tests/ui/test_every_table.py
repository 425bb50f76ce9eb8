"""Every table of `drx` at 80 columns, with long names: no name and no number is broken."""

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType
from rich.table import Table
from support import sample_reports
from support.result_files import result_file

from drexperts.bench.report import print_report, print_training_report
from drexperts.bench.reports import ENGINE
from drexperts.cli.compare import comparison_tables
from drexperts.cli.demo import _score_table
from drexperts.cli.divergence import divergence_table
from drexperts.cli.eval import _differences_table, _metrics_table
from drexperts.evaluation import compare_results
from drexperts.evaluation.metrics import Change, Interval, Spread, compute_metrics
from drexperts.export.engines.debug_layers import Divergence, LayerReport, TensorError
from drexperts.runtime.manifest import (
    Engine,
    Manifest,
    PrecisionTrial,
    ScoreScale,
    digest,
    read_manifest,
)
from drexperts.runtime.score import Score
from drexperts.runtime.training import Training
from drexperts.ui import bundles, fitting, tables
from drexperts.ui.fitting import Name
from drexperts.ui.screen import _Console

NAMES = [
    "a.png",
    "/data/" + "photographs-of-boats_" * 2 + "0123456789.jpg",
    "/data/" + "my holiday at the sea/" * 3 + "0123.jpg",
    "/srv/" + "0123456789abcdef" * 12 + ".safetensors",
]
assert [len(name) for name in NAMES] == [5, 62, 80, 209]


class Recording(_Console):
    """A console of a given width that keeps the tables that it is asked to print."""

    def __init__(self, width: int) -> None:
        self.stream = io.StringIO()
        self.shown: list[Table] = []
        super().__init__(file=self.stream, width=width, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        self.shown += [each for each in objects if isinstance(each, Table)]
        super().print(*objects, **options)


def score(name: str, error: str | None = None) -> Score:
    weights = {f"distortion-{i}": 0.01 * i - 0.1234 for i in range(10)}
    fields = {field.name: None for field in dataclasses.fields(Score)}
    values = {"source": name, "value": 43.21, "std": 1.25, "distortions": weights, "error": error}
    values["scale"] = ScoreScale(0, 100, higher_is_better=True)
    return Score(**fields | values)  # type: ignore[arg-type]


def scores(manifest: Manifest) -> Iterator[Table]:
    for names in ([NAMES[0]], NAMES[:2], NAMES):
        tally = tables.Tally(manifest.scale)
        for name in names:
            tally.add(score(name))
            tally.add(score(name, f"cannot read {name} as an image: a PNG of 123456789 pixels"))
        yield tables.score_table(tally)
        yield tables.error_table(tally)


def of_bundles(manifest: Manifest, planned: Callable[..., Engine]) -> Iterator[Table]:
    trained = Training(
        dataset="photographs-of-boats",
        data_digest="0123456789abcdef" * 4,
        split_digest="0123456789abcdef",
        images=(930, 116, 116),
        selected_on="validation",
        selected_by="srcc",
        epoch=7,
        when="2026-11-28T20:00:00Z",
        srcc=0.8312,
    )
    trial = PrecisionTrial(
        islands=12, weight_bytes=123456789, score_max=0.01234, srcc=0.99912, passed=True
    )
    (onnx,) = manifest.engines
    searched = dataclasses.replace(onnx, frontier=(trial,), islands=("encoder.blocks.0.mlp",) * 9)
    timed = dataclasses.replace(trial, precision="int8", ms=87.6543, srcc_found=0.99956)
    openvino = dataclasses.replace(
        onnx,
        backend="openvino",
        file="openvino-int8-01234567.onnx",
        precision="int8",
        versions={"openvino": "2026.4.1"},
        proven_on="x86_64-avx512-bf16",
        products={"bf16": 44, "fp32": 16, "int8": 100},
        bf16_layers=("controller.vit.blocks.11.query",) * 9,
        frontier=(timed,),
    )
    full = dataclasses.replace(
        manifest,
        trained=trained,
        created="2026-11-28T21:00:00Z",
        engines=(searched, openvino, planned()),
    )
    for name in NAMES:
        place = Path(name)
        yield bundles.about_bundle(place, full, {"encoder": "ViT of 4 blocks"}, digest(full))
        yield bundles.facts(name, [("next", Name(bundles.next_step(place, onnx)))])
    for engine in full.engines:
        yield bundles.engine_table(engine, "intact", 123456789, f"{engine.file} needs a GPU")
        yield tables.proof_table(engine)
    yield bundles.configuration(full, {"encoder": {"width": 384, "architecture": NAMES[1]}})


def of_evaluations() -> Iterator[Table]:
    labels = np.linspace(0, 100, 30)
    metrics = compute_metrics(labels, labels + np.sin(labels) * 30, resamples=20)
    names = ("srcc", "plcc", "plcc_fitted", "krcc", "rmse")
    spread = SimpleNamespace(**dict.fromkeys(names, Spread(0.81, 0.01, 0.78, 0.85)))
    for splits in (1, 2):
        models = [SimpleNamespace(label=n, splits=[metrics] * splits, median=spread) for n in NAMES]
        for some in (models[:1], models[:2], models):
            evaluation: Any = SimpleNamespace(models=some, data=SimpleNamespace(splits=splits))
            yield _metrics_table(evaluation)
        yield tables.metrics_table([metrics] * splits)
    measured = {
        "reference": NAMES[2],
        "same_weights": True,
        "score_max": 0.00123,
        "srcc": 0.9999,
        "plcc": 0.99987,
        "changes": (dict.fromkeys(("srcc", "plcc"), Change(-0.0123, Interval(-0.0456, 0.0111))),),
    }
    differences: Any = [SimpleNamespace(model=name, **measured) for name in NAMES]
    yield _differences_table(differences)


def of_comparisons(folder: Path) -> Iterator[Table]:
    before: dict[str, float | str] = {name: 10.0 * i for i, name in enumerate(NAMES)}
    after: dict[str, float | str] = dict.fromkeys(NAMES, 123.456)
    found = compare_results(
        result_file(folder / "a.csv", before | {"an image.jpg": 1.0}),
        result_file(folder / "b.csv", after | {"an image.jpg": "cannot read it"}),
    )
    yield from comparison_tables(found)
    for name in NAMES:
        sides = dataclasses.replace(found.a, name=name), dataclasses.replace(found.b, name=name)
        yield comparison_tables(dataclasses.replace(found, a=sides[0], b=sides[1]))[0]


def of_others() -> Iterator[Table]:
    profile = tuple(TensorError(name, "MatMul", 1e-3, 0.123456, {}) for name in NAMES)
    first = Divergence(profile[1].tensor, "Add", 0.5, 0.1, {}, hidden=True)
    yield divergence_table(LayerReport(None, profile))
    yield divergence_table(LayerReport(first, profile))
    held_out: Any = [
        SimpleNamespace(distortion=name, level=i, label=71.5, score=70.25)
        for i, name in enumerate(NAMES)
    ]
    yield _score_table(held_out)


@pytest.fixture(params=[80, 120])
def console(request: pytest.FixtureRequest) -> Recording:
    return Recording(request.param)


def check(console: Recording) -> None:
    """Every word of every cell that was printed is in the output, whole."""
    found = set(console.stream.getvalue().split())
    columns = [column for table in console.shown for column in table.columns]
    wanted = {word for column in columns for cell in column.cells for word in str(cell).split()}
    assert len(wanted) > 10
    assert sorted(wanted - found) == []


def test_tables_of_scores_and_bundles(
    console: Recording, toy_bundle: Path, planned: Callable[..., Engine]
) -> None:
    manifest = read_manifest(toy_bundle)
    for table in (*scores(manifest), *of_bundles(manifest, planned)):
        console.print(table)
    check(console)
    for name in NAMES:
        assert console.stream.getvalue().count(name) >= 3


def test_tables_of_evaluations_and_others(console: Recording) -> None:
    for table in (*of_evaluations(), *of_others()):
        console.print(table)
    check(console)
    for name in NAMES:
        assert console.stream.getvalue().count(name) >= 3


def test_tables_of_comparisons(console: Recording, tmp_path: Path) -> None:
    for table in of_comparisons(tmp_path):
        console.print(table)
    check(console)
    for name in NAMES:
        assert console.stream.getvalue().count(name) >= 3


@pytest.fixture
def fits_itself(console: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """The console also keeps the tables that are fitted before they are printed."""
    real = fitting.fitted

    def watched(table: Table, on: Console) -> RenderableType:
        console.shown.append(table)
        return real(table, on)

    monkeypatch.setattr(fitting, "fitted", watched)


@pytest.mark.usefixtures("fits_itself")
@pytest.mark.parametrize("report", ["cpu", "gpu", "bare"])
def test_tables_of_benchmarks(console: Recording, report: str) -> None:
    found = getattr(sample_reports, report)()
    longer = [dataclasses.replace(each, seconds=_renamed(each.seconds)) for each in found.batches]
    print_report(dataclasses.replace(found, batches=longer), console)
    check(console)


def _renamed(seconds: dict[str, Any]) -> dict[str, Any]:
    """A series besides the engine's, which has a long name."""
    return seconds | {f"against:{NAMES[1]}": seconds[ENGINE]}


@pytest.mark.usefixtures("fits_itself")
def test_the_table_of_training_steps(console: Recording) -> None:
    print_training_report(sample_reports.training(), console)
    check(console)


def test_the_check_finds_a_broken_word() -> None:
    console = Recording(40)
    table = Table("image", "score")
    table.add_row(NAMES[1], "0.123456")
    console.shown.append(table)
    Console(file=console.stream, width=40).print(table)
    with pytest.raises(AssertionError):
        check(console)
