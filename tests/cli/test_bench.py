"""`drx bench`: what its options ask for, and where the report goes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drexperts.bench import baselines as contenders
from drexperts.bench import bundle as bench
from drexperts.bench import lineup as entrants
from drexperts.bench import report as bench_report
from drexperts.bench import training_step as bench_training
from drexperts.bench.bundle import ROUNDS, SCENARIOS, Settings
from drexperts.cli.main import main

Call = Callable[..., tuple[int, Any, dict[str, Any]]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the measurements were asked for; nothing is measured."""
    found: dict[str, Any] = {}

    def bundle_measured(bundle: Path, settings: Settings, progress: Any) -> dict[str, Any]:
        found.update(bundle=bundle, settings=settings)
        return {"kind": "bench"}

    def step_measured(config: Any, **options: Any) -> dict[str, Any]:
        found.update(options, preset=config.preset)
        return {"kind": "training"}

    monkeypatch.setattr(bench, "bench_bundle", bundle_measured)
    monkeypatch.setattr(bench, "print_report", lambda report, console: None)
    monkeypatch.setattr(bench_training, "bench_training", step_measured)
    monkeypatch.setattr(bench_training, "print_training_report", lambda report, console: None)
    monkeypatch.setattr(
        bench_report, "write_report", lambda report, folder: found.update(out=(report, folder))
    )
    return found


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """call(...): the status and the document of `drx bench ... --json`."""

    def run(*arguments: Any) -> tuple[int, Any]:
        status = main(["bench", *map(str, arguments), "--json"])
        return status, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_as_it_is(call: Any, asked: dict[str, Any]) -> None:
    assert call("b") == (0, {"kind": "bench"})
    assert asked == {"bundle": Path("b"), "settings": Settings()}


def test_every_option_arrives(
    call: Any, asked: dict[str, Any], toy_bundle: Path, tmp_path: Path
) -> None:
    named = ("--baseline", "compile", "--baseline", "onnx-dense", "--against", toy_bundle)
    numbers = ("--batch", "1,8", "--repeats", "3", "--threads", "2", "--p99-bound", "0.5")
    files = ("--checkpoint", "c", "--images", "i", "--out", tmp_path / "o")
    scenarios = ("--scenario", "offline", "--scenario", "server", "--seconds", "4", "--profile")
    status, document = call("b", *named, *numbers, *files, *scenarios)
    assert status == 0
    assert asked["out"] == (document, tmp_path / "o")
    assert asked["settings"] == Settings(
        baselines=("compile", "onnx-dense"),
        others={"engine-float32": toy_bundle},
        batches=(1, 8),
        repeats=3,
        threads=2,
        checkpoint=Path("c"),
        images=Path("i"),
        scenarios=("offline", "server"),
        p99_bound=0.5,
        seconds=4.0,
        profile=True,
    )


def test_all_scenarios(call: Any, asked: dict[str, Any]) -> None:
    call("b", "--scenario", "all")
    assert asked["settings"].scenarios == SCENARIOS


def test_a_step_of_training(call: Any, asked: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "made" / "here"
    options = ("--preset", "official", "--amp", "bf16", "--batch", "2", "--out", out)
    assert call("--train", *options) == (0, {"kind": "training"})
    assert (asked["preset"], asked["amp"], asked["batch"]) == ("official", "bf16", 2)
    assert json.loads((out / "report.json").read_text()) == {"kind": "training"}
    assert [file.name for file in out.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a bundle to measure, or --train"),
        (("b", "--repeats", "0"), "one repeat at least"),
        (("b", "--seconds", "0"), "seconds must be above 0"),
        (("b", "--seconds", "inf"), "seconds must be above 0 and finite"),
        (("b", "--p99-bound", "inf"), "the p99 bound must be above 0 and finite"),
        (("b", "--threads", "0"), "one thread at least"),
        (("b", "--out", "/dev/null/out"), "name another folder with --out"),
        (("--train", "--out", "/dev/null/out"), "name another folder with --out"),
        (("--train", "--repeats", "0"), "one repeat at least"),
        (("--train", "--batch", "1,4"), "one batch size"),
        (("--train", "b"), "leave out BUNDLE"),
        (("--train", "--baseline", "all", "--profile"), "leave out --baseline, --profile"),
        (("--train", "--scenario", "all", "--images", "i"), "leave out --scenario, --images"),
        (("--train", "--against", "b", "--seconds", "0"), "leave out --against, --seconds"),
        (("--train", "--p99-bound", "0"), "leave out --p99-bound"),
        (("b", "--p99-bound", "nan"), "the p99 bound must be above 0"),
        (("b", "--against", "nowhere"), "nowhere"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], said: str, call: Any, asked: dict[str, Any]) -> None:
    status, document = call(*arguments)
    assert status == 2
    assert said in document["error"]
    assert asked == {}


def test_help_names_every_baseline_and_what_the_defaults_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    said = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    for name in (*contenders.CONTENDERS, *entrants.GPU_ENGINES, entrants.ALL):
        assert name.replace("musiq", "METRIC") in said
    assert f"rounds; {ROUNDS}, of --train {bench_training.ROUNDS}" in said
    assert "of --train JSON alone" in said
    assert f"photographs, {bench.MOST_IMAGES} at most" in said
    assert f"{bench.BOUND:g} times what an image alone takes" in said
