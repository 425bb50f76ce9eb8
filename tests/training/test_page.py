"""A run's page, from a folder as a run leaves it."""

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import browser
from support.reporting import Recorder

from drexperts.data.dataset import Dataset, Sample
from drexperts.evaluation.metrics import compute_metrics
from drexperts.runtime.errors import UserError
from drexperts.runtime.installing import install_command
from drexperts.runtime.manifest import ScoreScale
from drexperts.training.files import finished, refresh_page, show_again
from drexperts.training.page import duration, write_page
from drexperts.training.result import Epoch, TrainingResult, TrainingSoFar

EPOCHS = (Epoch(1, 0.5, 0.4, 12.5, 14.0), Epoch(2, 0.6, 0.7, 8.25, 9.0))
SETTINGS: dict[str, Any] = {
    "config": {"epochs": 2, "seed": 7},
    "dataset": "livec",
    "images": [20, 2, 30],
    "selected_on": "validation",
    "selected_by": "srcc",
    "split_digest": "0123456789ab",
    "asked": "as asked",
}
HOSTILE = "<b>&.png"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Thirty pictures, the last of which is missing."""
    names = [f"{i:02}.png" for i in range(28)] + [HOSTILE, "missing.png"]
    for i, name in enumerate(names[:-1]):
        Image.new("RGB", (300, 200), (8 * i, 0, 0)).save(tmp_path / name)
    samples = tuple(Sample(name, float(i), name) for i, name in enumerate(names))
    return Dataset("livec", tmp_path, samples, ScoreScale(0.0, 100.0, higher_is_better=True))


@pytest.fixture
def going(tmp_path: Path) -> Path:
    """The folder of a run after its first epoch."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(SETTINGS))
    lines: list[dict[str, Any]] = [{"step": i, "loss": 13.0 - i} for i in range(1, 5)]
    lines += [{"step": 4, "seconds": 62.0, "machine": "an <abacus>"}]
    lines += [{"step": 4} | EPOCHS[0]._asdict()]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def done(going: Path, dataset: Dataset) -> Path:
    """The folder of a run that is done: two pictures have by far the largest errors."""
    with open(going / "log.jsonl", "a") as stream:
        stream.write(json.dumps({"step": 8} | EPOCHS[1]._asdict()) + "\n")
    scores = [sample.label + 0.5 for sample in dataset.samples]
    scores[28:] = [90.0, 80.0]
    rows = zip(dataset.samples, scores, strict=True)
    with open(going / "predictions.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("path", "label", "score", "std"))
        table.writerows((sample.name, sample.label, score, 0.0) for sample, score in rows)
    result = TrainingResult(
        settings=SETTINGS,
        images=(20, 2, 30),
        selected_on="validation",
        selected_by="srcc",
        processes=1,
        skipped=("<i>x.png</i> is no picture",),
        test=compute_metrics([sample.label for sample in dataset.samples], scores, resamples=50),
        epochs=EPOCHS,
        best_epoch=2,
        versions={"torch": "9.9"},
    )
    (going / "result.json").write_text(json.dumps(result.as_json()))
    return going


def test_a_run_that_goes_on_shows_its_epochs_and_reads_itself_again(
    going: Path, dataset: Dataset
) -> None:
    text = write_page(going, dataset).read_text()
    assert "After 1 of 2 epochs" in text
    assert "the SRCC of the validation images" in text
    assert 'http-equiv="refresh"' in text
    assert text.count("<svg") == 2
    assert "1 min 2 s" in text
    assert "an &lt;abacus&gt;" in text
    assert "Worst pictures" not in text


def test_before_the_first_epoch_there_is_a_page(going: Path, dataset: Dataset) -> None:
    (going / "log.jsonl").write_text("")
    assert "After 0 of 2 epochs" in write_page(going, dataset).read_text()


def test_an_epoch_that_the_log_misses_is_no_harm(going: Path, dataset: Dataset) -> None:
    log = (going / "log.jsonl").read_text()
    (going / "log.jsonl").write_text(log.replace('"epoch": 1', '"epoch": 2'))
    text = write_page(going, dataset).read_text()
    assert "<dt>best epoch so far</dt><dd>2 of 2</dd>" in text
    assert "<dt>SRCC of the best epoch so far</dt><dd>0.400</dd>" in text


def test_a_run_without_correlations_has_its_losses(going: Path, dataset: Dataset) -> None:
    line = {"step": 1, "loss": 2.0}
    epoch = {"step": 1} | Epoch(1, None, None, 2.0, None)._asdict()
    (going / "log.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(epoch)}\n")
    assert write_page(going, dataset).read_text().count("<svg") == 1


def test_a_run_that_is_done_shows_its_test_and_its_worst_pictures(
    done: Path, dataset: Dataset
) -> None:
    text = write_page(done, dataset).read_text()
    assert "refresh" not in text
    assert text.count("<svg") == 3
    result = json.loads((done / "result.json").read_text())
    for name in ("srcc", "plcc", "plcc_fitted", "krcc"):
        assert f"{result['test'][name]:.3f}" in text
    ends = result["test"]["intervals"]["rmse"]
    assert f"{ends['low']:.4g} to {ends['high']:.4g}" in text
    shown = re.findall(r"rated ([0-9.]+), predicted ([0-9.]+)", text)
    assert len(shown) == 12
    assert shown[:2] == [("28", "90"), ("29", "80")]
    assert "&lt;b&gt;&amp;.png" in text
    assert HOSTILE not in text
    assert text.count("data:image/jpeg") == 11  # one picture is missing
    assert "&lt;i&gt;x.png" in text
    assert "0123456789ab" in text
    assert "config.seed" in text
    assert "torch" in text


def test_a_test_that_chose_the_epoch_is_said_to_have(done: Path, dataset: Dataset) -> None:
    (done / "run.json").write_text(json.dumps(SETTINGS | {"selected_on": "test"}))
    assert "These images chose the epoch" in write_page(done, dataset).read_text()


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.25, "5.2 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_its_libraries_the_page_says_what_to_install(
    done: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Recorder()
    seen: list[TrainingSoFar] = []
    result = finished(done, "as asked")
    assert result is not None
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("drexperts.training.page")]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "drexperts.ui.charts", None)
        show_again(result, done, dataset, seen.append, progress)
    assert seen == [TrainingSoFar(EPOCHS, 2, "validation", "srcc")]
    assert install_command("report") in progress.notes[0]
    assert not (done / "index.html").exists()
    show_again(result, done, dataset, seen.append, progress)
    assert (done / "index.html").exists()
    assert len(progress.notes) == 1


def test_a_page_older_than_the_result_is_written_again(done: Path, dataset: Dataset) -> None:
    result = finished(done, "as asked")
    assert result is not None
    page = done / "index.html"
    page.write_text("After 2 of 2 epochs")
    later = page.stat().st_mtime_ns + 1
    os.utime(done / "result.json", ns=(later, later))
    show_again(result, done, dataset, lambda _: None, Recorder())
    assert "Done: 2 epochs" in page.read_text()
    page.write_text("kept")
    show_again(result, done, dataset, lambda _: None, Recorder())
    assert page.read_text() == "kept"


def test_a_damaged_folder_leaves_a_run_without_a_page(done: Path, dataset: Dataset) -> None:
    (done / "log.jsonl").write_text("torn")
    assert "cannot be written" in (refresh_page(done, dataset) or "")


@pytest.mark.parametrize("kind", [OSError, UserError, ValueError])
def test_a_page_that_cannot_be_written_ends_no_training(
    kind: type[Exception], done: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise kind("the disk is full")

    monkeypatch.setattr("drexperts.training.page.write_page", full)
    assert "the disk is full" in (refresh_page(done, dataset) or "")


def test_only_the_same_question_has_the_result(done: Path) -> None:
    assert finished(done, "as asked") is not None
    assert finished(done, "something else") is None
    assert finished(done.parent, "as asked") is None
    (done / "state.safetensors").write_bytes(b"")
    assert finished(done, "as asked") is None


@pytest.mark.slow
@pytest.mark.skipif(browser.executable() is None, reason="needs Chromium and playwright")
def test_the_page_can_be_read_in_every_light_and_width(done: Path, dataset: Dataset) -> None:
    page = write_page(done, dataset)
    with browser.browser() as chromium:
        for width, dark in ((1200, False), (1200, True), (390, False)):
            chromium.open(page, width, dark=dark)
            assert chromium.evaluate(browser.TEXT_FAULTS) == []
            assert chromium.evaluate(browser.CONTRAST_FAULTS) == []
            assert chromium.evaluate("document.documentElement.scrollWidth") == width
            assert chromium.messages == []
            assert chromium.requests == [page.as_uri()]
