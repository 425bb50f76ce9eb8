"""`drx bench`: what its options ask for, and where the report goes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import sample_reports

from drexperts.bench import BenchOptions, BenchReport, TrainingReport, training_step
from drexperts.bench import bundle as measuring
from drexperts.bench.baselines import BASELINES
from drexperts.bench.json_files import read_json
from drexperts.bench.scenarios import SCENARIOS
from drexperts.bench.variants import ALL, GPU_ENGINES
from drexperts.cli.main import main
from drexperts.runtime.installing import install_command

Call = Callable[..., tuple[int, Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the measurements were asked for; nothing is measured."""
    found: dict[str, Any] = {}

    def bundle_measured(bundle: Path, options: BenchOptions, progress: Any) -> BenchReport:
        found.update(bundle=bundle, options=options)
        return sample_reports.bare()

    def step_measured(config: Any, **options: Any) -> TrainingReport:
        found.update(options, preset=config.preset)
        return sample_reports.training()

    monkeypatch.setattr(measuring, "bench", bundle_measured)
    monkeypatch.setattr(training_step, "bench_training", step_measured)
    return found


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """call(...): the status and the document of `drx bench ... --json`."""

    def run(*arguments: Any) -> tuple[int, Any]:
        status = main(["bench", *map(str, arguments), "--json"])
        return status, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_without_options(call: Call, asked: dict[str, Any]) -> None:
    status, document = call("b")
    assert (status, document["kind"]) == (0, "bench")
    assert document["summary"]["batches"][0]["latency"]["engine"]["p50"] > 0
    assert asked == {"bundle": Path("b"), "options": BenchOptions()}


def test_every_option_arrives(
    call: Call, asked: dict[str, Any], toy_bundle: Path, tmp_path: Path
) -> None:
    named = (
        "--engine",
        "openvino",
        "--baseline",
        "compile",
        "--baseline",
        "onnx-dense",
        "--against",
        toy_bundle,
    )
    numbers = ("--batch", "1,8", "--repeats", "3", "--threads", "2,1", "--p99-bound", "0.5")
    files = ("--checkpoint", "c", "--images", "i", "--out", tmp_path / "o")
    scenarios = ("--scenario", "offline", "--scenario", "server", "--seconds", "4", "--profile")
    status, _ = call("b", *named, *numbers, *files, *scenarios)
    assert status == 0
    assert read_json(tmp_path / "o" / "report.json", BenchReport) == sample_reports.bare()
    assert (tmp_path / "o" / "index.html").is_file()
    assert asked["options"] == BenchOptions(
        engine="openvino",
        baselines=("compile", "onnx-dense"),
        against={"engine-fp32": toy_bundle},
        batches=(1, 8),
        repeats=3,
        threads=(2, 1),
        checkpoint=Path("c"),
        images=Path("i"),
        scenarios=("offline", "server"),
        p99_bound=0.5,
        seconds=4.0,
        profile=True,
    )


def test_all_scenarios(call: Call, asked: dict[str, Any]) -> None:
    call("b", "--scenario", "all")
    assert asked["options"].scenarios == SCENARIOS


def test_a_step_of_training(call: Call, asked: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "made" / "here"
    options = ("--preset", "official", "--amp", "bf16", "--batch", "2", "--threads", "2")
    status, document = call("--train", *options, "--out", out)
    assert (status, document["kind"]) == (0, "training")
    assert document["summary"]["losses_agree"] is True
    assert (asked["preset"], asked["amp"], asked["batch"]) == ("official", "bf16", 2)
    assert asked["threads"] == 2
    assert read_json(out / "report.json", TrainingReport) == sample_reports.training()
    assert [file.name for file in out.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--train"),
        (("b", "--repeats", "0"), "0"),
        (("b", "--seconds", "0"), "seconds"),
        (("b", "--seconds", "inf"), "inf"),
        (("b", "--p99-bound", "inf"), "p99 bound"),
        (("b", "--p99-bound", "nan"), "nan"),
        (("b", "--out", "/dev/null/out"), "/dev/null/out"),
        (("b", "--against", "nowhere"), "nowhere"),
        (("--train", "--out", "/dev/null/out"), "/dev/null/out"),
        (("--train", "--repeats", "0"), "0"),
        (("--train", "--batch", "1,4"), "--batch"),
        (("--train", "--threads", "1,2"), "--threads"),
        (("--train", "b"), "BUNDLE"),
        (("--train", "--baseline", "all", "--profile"), "--baseline, --profile"),
        (("--train", "--scenario", "all", "--images", "i"), "--scenario, --images"),
        (("--train", "--against", "b", "--seconds", "0"), "--against, --seconds"),
        (("--train", "--p99-bound", "0"), "--p99-bound"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], named: str, call: Call, asked: dict[str, Any]
) -> None:
    status, document = call(*arguments)
    assert status == 2
    assert named in document["error"]
    assert asked == {}


@pytest.mark.parametrize("option", ["--batch", "--threads"])
@pytest.mark.parametrize("numbers", ["0", "1,0", "1,,2", "-1", "1.5", "x", ""])
def test_numbers_are_at_least_one(
    option: str, numbers: str, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "b", f"{option}={numbers}"])
    assert ended.value.code == 2
    assert f"argument {option}" in capsys.readouterr().err
    assert asked == {}


def test_a_page_without_its_libraries_is_refused_before_anything_is_measured(
    call: Call, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "drexperts.bench.page", raising=False)
    monkeypatch.delitem(sys.modules, "drexperts.ui.pages", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    status, document = call("b", "--out", tmp_path)
    assert status == 2
    assert install_command("report") in document["error"]
    assert asked == {}


def test_help_names_every_baseline_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    for name in (*BASELINES, *GPU_ENGINES, ALL):
        assert name.replace("musiq", "METRIC") in text
    assert f"(default: {measuring.ROUNDS}, with --train {training_step.ROUNDS})" in text
    assert f"at most {measuring.MOST_IMAGES}" in text
    assert f"(default: {measuring.BOUND:g} times" in text
