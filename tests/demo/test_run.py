"""The demo from end to end, on a shortened training."""

import argparse
import dataclasses
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from drexperts import runtime
from drexperts.bench import BenchOptions
from drexperts.cli import demo as verb
from drexperts.cli.arguments import DONE, GATE_FAILED
from drexperts.demo import run as demo
from drexperts.demo.training import train_demo
from drexperts.ui.screen import Screen

pytestmark = pytest.mark.slow  # what they share takes seconds to make


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[demo.DemoReport]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "train_demo", partial(train_demo, epochs=1, crops=1))
        patch.setattr(demo, "BenchOptions", partial(BenchOptions, batches=(1,), repeats=2))
        yield demo.run_demo(str(tmp_path_factory.mktemp("demo")))


def test_it_leaves_a_bundle_that_scores(report: demo.DemoReport) -> None:
    image = next((report.bundle.parent / "images").glob("*.png"))
    assert runtime.load(report.bundle).score(image).value > 0
    document = report.as_json()
    assert document["held_out"]["images"] == len(report.held_out) == 78
    assert document["held_out"]["contents"] == ["camera", "cat", "coffee"]


def test_its_page_has_its_pictures_and_every_score(report: demo.DemoReport) -> None:
    assert report.page is not None
    page = report.page.read_text()
    sources = re.findall(r'<img src="([^"]+)"', page)
    assert len(sources) == demo.PICTURES
    assert all((report.page.parent / source).is_file() for source in sources)
    assert page.count("<use ") >= len(report.held_out)
    for name in {each.distortion for each in report.held_out}:
        assert f">{name}</text>" in page
    assert "eager-dense" in page


@pytest.mark.parametrize(("score", "passed"), [(80.0, True), (10.0, False)])
def test_the_verb_prints_the_results_and_fails_a_low_correlation(
    report: demo.DemoReport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    score: float,
    passed: bool,
) -> None:
    good, better = (report.held_out[0]._replace(label=x, score=x) for x in (40.0, 50.0))
    changed = dataclasses.replace(report, held_out=(good, better._replace(score=score)))
    monkeypatch.setattr(demo, "run_demo", lambda out, progress: changed)
    monkeypatch.setenv("COLUMNS", "200")  # nothing is wrapped
    outcome = verb.run(argparse.Namespace(out=report.bundle.parent), Screen())
    assert outcome.status == (DONE if passed else GATE_FAILED)
    assert outcome.document == changed.as_json()
    assert outcome.document["passed"] is passed
    shown = capsys.readouterr().out
    for promised in ("proven", "SRCC", "times the engine", "eager-dense", "index.html"):
        assert promised in shown


def test_an_engine_that_is_not_proven_fails(report: demo.DemoReport) -> None:
    unproven = demo.DemoReport(Path("b"), dataclasses.replace(report.engine, parity=None))
    assert unproven.as_json() == {"passed": False, "bundle": "b"}
