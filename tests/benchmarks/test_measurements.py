"""The README's measured sections are what the committed receipts say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import sample_reports

from drexperts.bench import tables as bench_tables
from drexperts.bench.provenance import source_card
from drexperts.benchmarks import readme_table, receipt_tables
from drexperts.benchmarks.readme_table import README, SECTIONS, section, written
from drexperts.benchmarks.receipt_tables import markdown
from drexperts.benchmarks.receipts import FOLDER, MODULES
from drexperts.runtime.errors import UserError

Report = dict[str, Any]
KERNELS = "kernels-cpu.json"
SCENARIOS = ("| single-stream", "| multi-stream", "| server", "| offline")


def test_the_readme_is_what_the_receipts_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert readme_table.main(["--check"]) == 0, capsys.readouterr().out


def test_an_edit_by_hand_is_shown_and_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    shown = section("head", FOLDER)
    readme.write_text(README.read_text().replace(shown, shown.replace("training step", "step")))
    monkeypatch.setattr(readme_table, "README", readme)
    assert readme_table.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "-| 1 | step |" in said
    assert "+| 1 | training step |" in said
    assert readme_table.main([]) == 0
    assert readme.read_text() == README.read_text()


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Callable[[Report], None]], Path]:
    """edited(change): a folder with the kernels' receipt, changed."""

    def make(change: Callable[[Report], None]) -> Path:
        report = json.loads((FOLDER / KERNELS).read_text())
        report["source"] = source_card(*MODULES["kernels"])
        change(report)
        (tmp_path / KERNELS).write_text(json.dumps(report))
        return tmp_path

    return make


def test_a_changed_number_changes_the_table(edited: Callable[..., Path]) -> None:
    def change(report: Report) -> None:
        report["rows"][0]["latency"]["CLS row"]["p50"] = 0.0123

    shown = section("head", edited(change))
    assert "| 1 | forward | 12.3 |" in shown
    assert "**These numbers do not hold" in shown


def test_an_older_source_is_said(edited: Callable[..., Path]) -> None:
    def change(report: Report) -> None:
        report["source"] |= {"sha256": "0" * 64, "commit": "abc1234"}

    assert "older source" not in section("head", edited(lambda _: None))
    assert section("head", edited(change)).startswith("\n*Measured on an older source: abc1234.*\n")


def test_a_failed_gate_is_said(edited: Callable[..., Path]) -> None:
    def fail(report: Report) -> None:
        next(iter(report["verdicts"].values()))[0]["repeatable"] = False
        report["gates"]["correct"] = False

    def accept(report: Report) -> None:
        fail(report)
        report["known_negative"] = {"correct": "sums come in any order."}

    assert "**These numbers do not hold" in section("head", edited(fail))
    assert "Failed: correct.**" in section("head", edited(fail))
    known = "*Known negative result, correct: sums come in any order.*"
    assert known in section("head", edited(accept))
    assert "do not hold" not in section("head", edited(accept))


def test_a_benchmark_with_everything_in_it() -> None:
    report = sample_reports.cpu()
    report["machine"]["versions"]["torch"] = "2.15.0"
    report["against"] = {"engine-int8": report["bundle"] | {"precision": "int8", "bytes": 13e7}}
    shown = markdown(receipt_tables.bench(report))
    assert "engine-int8 preset `official`, int8, 130 MB" in shown
    assert "| 1 | eager-dense | 1951 | 2642 | 2731 | 6.38 (6.09-6.76) |" in shown
    assert "| engine again |" not in shown
    assert "is 1.01 (0.98-1.02) times as slow" in shown
    assert len([line for line in shown.splitlines() if line.startswith(SCENARIOS)]) == 4
    assert "Left out. tensorrt (no NVIDIA GPU); " in shown
    assert "| peak memory, host | 3400 MB |" in shown


def test_a_search_for_precision() -> None:
    parity = {"srcc": 0.9995, "srcc_interval": {"low": 0.9993, "high": 0.9997}, "score_max": 0.012}
    way = {"bytes": 120e6, "parity": parity, "batch_drift": 0.0, "invariant": True}
    report = sample_reports.head() | {"preset": "official", "weights": "random", "images": 60}
    report |= {"layers": 149, "islands": ["a"], "searched": [{"islands": 1, "passed": True}]}
    report |= {"ways": {"auto": way}, "latency": {"auto": {"p50": 0.1}}, "ratio": {}}
    shown = markdown(receipt_tables.precision(report))
    assert "| auto | 120 | 100 |  | 0.9995 (0.9993-0.9997) | 1.2 | yes |" in shown
    assert "keeps 1 of 149 linear layers in float32. Tried: 1 (kept)." in shown


def test_drift() -> None:
    same = {"pixel_max": 0, "srcc_interval": None}
    other = {"pixel_max": 17, "pixel_mean": 1.104, "score_max": 0.02, "score_mean": 0.003}
    other |= {"srcc": 0.99, "srcc_interval": {"low": 0.98, "high": 0.995}}
    other |= {"order_flips": 3, "pairs": 10}
    sets = [
        {
            "set": f"JPEG q{quality}",
            "span": 100.0,
            "reference": "the runtime",
            "scores": {"the runtime": [50.0, 60.0, 90.0]},
            "drift": {"OpenCV": same, "fast": other},
        }
        for quality in (95, 75)
    ]
    report = {
        "bundle": {"preset": "paper", "session": "onnxruntime 1.31"},
        "weights": "demo",
        "pictures": ["a", "b", "c"],
        "decoders": {"OpenCV": "5.0"},
        "left_out": {"nvImageCodec": "there is no GPU"},
        "sets": sets,
    }
    shown = markdown(receipt_tables.drift(report))
    assert "3 pictures, scores from 50 to 90, half of them below 60; preset `paper`" in shown
    assert "| OpenCV | JPEG q95, JPEG q75 | the same |" in shown
    cells = "17, 1.10 | 2 | 0.3 | 2 | 0.9900 (0.9800-0.9950) | 3 of 10 |"
    assert f"| fast | JPEG q75 | {cells}" in shown
    assert "Left out. nvImageCodec (there is no GPU)." in shown


def on_a_gpu(kind: str) -> Report:
    head = sample_reports.head()
    head["machine"]["versions"]["torch"] = "2.15.0"
    head["machine"]["gpus"] = [{"name": "NVIDIA H100", "driver_version": "580.1"}]
    return head | {"kind": kind}


def test_kernels_on_a_gpu() -> None:
    medians = {"ours": 1e-5, "ours, other": 9e-6, "eager": 9e-5, "compiled": 2e-5}
    row = sample_reports.batch(64, medians, 9) | {"ours": ["ours", "ours, other"]}
    row |= {"problem": "pooling/single/B64/N577/float16", "mode": "forward, hot, graph"}
    left_out = row | {"problem": "pooling/single/B1/N577/float16"}
    shown = markdown(receipt_tables.gpu(on_a_gpu("kernels") | {"rows": [row, left_out]}))
    assert shown.startswith("\nNVIDIA H100, driver 580.1; ")
    (line,) = (line for line in shown.splitlines() if line.startswith("| pooling/single"))
    assert line.startswith("| pooling/single/B64/N577/float16 | forward | 9.91 | compiled | 20.2 |")


@pytest.mark.parametrize("changed", [{"kind": "kernels-trial"}, {"machine": {"gpus": []}}])
def test_what_no_gpu_measured_is_no_receipt_of_one(
    changed: Report, edited: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match="without a GPU has no place here"):
        markdown(receipt_tables.gpu(on_a_gpu("kernels") | {"rows": []} | changed))
    folder = edited(lambda _: None)
    (folder / KERNELS).rename(folder / "kernels-gpu.json")
    with pytest.raises(UserError, match=r"^kernels-gpu\.json cannot be shown: .*no place here"):
        section("gpu", folder)


def test_a_receipt_that_lacks_what_is_shown_is_named(edited: Callable[..., Path]) -> None:
    def change(report: Report) -> None:
        del report["machine"]["versions"]["torch"]

    with pytest.raises(UserError, match=r"^kernels-cpu\.json cannot be shown: .*'torch'"):
        section("head", edited(change))


def test_the_model_on_a_gpu() -> None:
    medians = {"reduced, compiled": 0.002, "dense, eager": 0.04, bench_tables.AGAIN: 0.002}
    verdict = {"precision": "fp16", "batch": 8}
    parity = {key: {"score_max": 0.0012, "srcc": 0.99991} for key in medians}
    report = on_a_gpu("gpu-model") | {
        "preset": "official",
        "weights": "random",
        "boundary": "device events",
        "verdicts": [verdict | {"parity": parity}],
        "batches": [sample_reports.batch(8, medians, 9) | verdict],
    }
    lines = markdown(receipt_tables.gpu(report)).splitlines()
    rows = [line for line in lines if line.startswith("| 8 |")]
    assert len(rows) == 2
    assert rows[1].startswith("| 8 | fp16, dense, eager |")
    assert rows[1].endswith(" | 0.12 | 0.99991 |")


def test_without_a_receipt_a_section_is_empty(tmp_path: Path) -> None:
    shutil.copy(FOLDER / KERNELS, tmp_path)
    made = written(README.read_text(), tmp_path)
    assert "<!-- training -->\n<!-- end of training -->" in made
    assert section("head", tmp_path) in made
    assert "No measurement on a GPU is committed" in section("gpu", tmp_path)


def test_a_readme_without_a_sections_markers_is_an_error() -> None:
    for name in SECTIONS:
        with pytest.raises(UserError, match=f"needs one <!-- {name} -->"):
            written(README.read_text().replace(f"<!-- end of {name} -->", ""))
