"""The report of `drx bench`: its form, its contenders, its mistakes. No test asserts a time."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from rich.console import Console

from drexperts.bench import bundle as bench
from drexperts.bench import profile as profiling
from drexperts.bench import provenance
from drexperts.bench.bundle import SCENARIOS, Settings, alternately, bench_bundle, print_report
from drexperts.bench.provenance import source_hash
from drexperts.bench.report import markdown, write_report
from drexperts.bench.tables import AGAIN
from drexperts.bench.timing import ratio, statistics
from drexperts.export.graph.to_onnx import onnx_from_model
from drexperts.model.checkpoint import Checkpoint, save_checkpoint
from drexperts.model.config import DISTORTIONS
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import ScoreScale, read_manifest, sha256_of, write_manifest
from drexperts.runtime.preprocess import Preprocessing

RUNNING = {"eager-dense", "eager-reduced"}
LEFT_OUT = {"pyiqa:nothing-of-the-kind"}


@pytest.fixture(scope="module")
def checkpoint(tiny: Callable[..., Any], random_model: Callable[..., Any]) -> Checkpoint:
    scale = ScoreScale(0.0, 100.0, higher_is_better=True)
    return Checkpoint(random_model(tiny("official")), scale, Preprocessing(64, 64, 128, 2))


@pytest.fixture(scope="module")
def bundle(
    checkpoint: Checkpoint, toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of the model with the toy's proof: proving takes longer than what is tested."""
    out = tmp_path_factory.mktemp("bench") / "bundle"
    out.mkdir()
    onnx.save(onnx_from_model(checkpoint.model, maps=True), out / "model.onnx")
    toy = read_manifest(toy_bundle)
    sha256 = sha256_of(out / "model.onnx")
    manifest = dataclasses.replace(
        toy,
        preset="official",
        config=checkpoint.model.config.as_dict(),
        preprocessing=checkpoint.preprocessing,
        distortions=DISTORTIONS,
        engines=(dataclasses.replace(toy.engines[0], sha256=sha256, precision="fp32"),),
    )
    write_manifest(manifest, out)
    return out


@pytest.fixture(scope="module")
def weights(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_checkpoint(checkpoint, file)
    return file


@pytest.fixture(scope="module")
def report(bundle: Path, weights: Path) -> dict[str, Any]:
    """Everything there is, a little of each."""
    settings = Settings(
        baselines=(*sorted(RUNNING), *LEFT_OUT),
        others={"engine-other": bundle},
        batches=(1, 2),
        repeats=3,
        threads=1,
        checkpoint=weights,
        scenarios=SCENARIOS,
        seconds=0.5,
        profile=True,
    )
    return bench_bundle(bundle, settings)


def test_contenders_of_every_batch(report: dict[str, Any]) -> None:
    assert [entry["batch"] for entry in report["batches"]] == [1, 2]
    for entry in report["batches"]:
        names = list(entry["latency"])
        assert names[0] == "engine"
        assert set(names) == {"engine", AGAIN, "engine-other", *RUNNING}
        assert set(entry["ratio"]) == set(names) - {"engine"}
        assert all(len(times["samples"]) == 3 for times in entry["latency"].values())
        assert entry["boundary"] == "engine_e2e"
    assert set(report["left_out"]) == LEFT_OUT
    assert report["against"].keys() == {"engine-other"}


def test_figures_come_from_the_samples(report: dict[str, Any]) -> None:
    for entry in report["batches"]:
        samples = {name: times["samples"] for name, times in entry["latency"].items()}
        for name, times in entry["latency"].items():
            assert times == statistics(samples[name])
        for name, found in entry["ratio"].items():
            assert found == ratio(samples[name], samples["engine"])
    assert report["noise_floor"] == report["batches"][0]["ratio"][AGAIN]


def test_it_says_where_it_is_from(report: dict[str, Any], bundle: Path, weights: Path) -> None:
    assert (report["kind"], report["machine"]["threads"]) == ("bench", 1)
    assert report["source"]["sha256"] == source_hash(*report["source"]["modules"])
    assert report["weights"] == sha256_of(weights)
    assert report["bundle"]["backend"] == "onnx"
    assert report["bundle"]["bytes"] == (bundle / "model.onnx").stat().st_size
    assert report["command"] == (
        "drx bench BUNDLE --baseline eager-dense --baseline eager-reduced "
        "--baseline pyiqa:nothing-of-the-kind --against ENGINE-OTHER --scenario single_stream "
        "--scenario multi_stream --scenario server --scenario offline --batch 1,2 --repeats 3 "
        "--threads 1 --seconds 0.5 --checkpoint FILE --profile"
    )
    assert str(bundle.parent) not in json.dumps(report)
    assert str(weights.parent) not in json.dumps(report)


def test_who_is_timed_computes_the_same(report: dict[str, Any]) -> None:
    assert set(report["agreement"]) == {"engine", *RUNNING}
    assert max(report["agreement"].values()) < 1e-3
    assert report["bundle"]["sha256"] != report["weights"]


def test_the_source_is_all_that_makes_the_numbers(report: dict[str, Any]) -> None:
    parts = ("bench", "entrants", "model_parts", "profiling", "scenarios", "timing")
    export = ("calibration", "int8_products", "precision", "sensitivity")
    wanted = {f"drexperts.{name}" for name in (*parts, *(f"export.{name}" for name in export))}
    assert wanted <= set(report["source"]["modules"])


def test_what_is_measured_of_the_engine_alone(report: dict[str, Any]) -> None:
    assert [entry["batch"] for entry in report["engine_gpu"]] == [1, 2]
    assert all(list(entry["latency"]) == ["engine"] for entry in report["engine_gpu"])
    assert report["image"]["crops"] == 4
    assert report["image"]["photographs"] == 0
    assert len(report["image"]["preprocess"]["samples"]) == 3
    assert report["cold_start"]["resident_bytes"] > 1e6
    assert report["memory"]["host_peak_bytes"] >= report["cold_start"]["peak_bytes"]
    assert report["energy"]["source"]
    assert tuple(report["scenarios"]) == SCENARIOS
    assert report["scenarios"]["server"]["bound_s"] == pytest.approx(
        3 * report["image"]["image_e2e"]["p50"]
    )
    assert sum(part["seconds"] for part in report["profile"]["parts"]) > 0
    assert report["roofline"]["flop_per_image"] > 0


def test_it_is_shown_and_written(report: dict[str, Any], tmp_path: Path) -> None:
    shown = io.StringIO()
    print_report(report, Console(file=shown, width=140))
    text = shown.getvalue()
    for promised in (
        "eager-dense",
        "engine-other",
        "noise floor",
        "engine_gpu",
        "folded",
        "server",
        "pyiqa:nothing-of-the-kind",
        "warning: p99 of 3 samples",
        "encoder",
        "the dearest layers",
    ):
        assert promised.lower() in text.lower()
    assert f" {AGAIN} " not in text
    write_report(report, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert "eager-dense" in markdown(report)


def test_photographs_of_ones_own(
    bundle: Path, tmp_path: Path, photo: Callable[..., Any], encode: Callable[..., bytes]
) -> None:
    for number, (width, height) in enumerate([(64, 64), (128, 64)]):
        (tmp_path / f"{number}.jpg").write_bytes(encode(photo(width, height), "JPEG"))
    (tmp_path / "broken.jpg").write_bytes(b"junk")
    settings = Settings(images=tmp_path, batches=(1,), repeats=1, threads=1)
    report = bench_bundle(bundle, settings)
    assert report["image"]["photographs"] == 2
    assert report["image"]["crops"] == 1.5
    assert (report["scenarios"], report["profile"], report["left_out"]) == ({}, None, {})
    assert report["agreement"] == {}
    assert set(report["batches"][0]["latency"]) == {"engine", AGAIN}
    for file in tmp_path.glob("?.jpg"):
        file.unlink()
    with pytest.raises(UserError, match="no readable image"):
        bench_bundle(bundle, settings)


def test_a_gpu_is_read_before_and_right_after_the_rounds(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a profile that cannot be made costs the report nothing else; threads are what ran."""
    events: list[str] = []

    def cards() -> list[dict[str, str]]:
        events.append("cards")
        throttled = 4 * ("batch 2: round 1 of 1" in events)
        return [{"name": "G", "clocks_throttle_reasons.active": f"0x{throttled}"}]

    def no_profile(*_: Any, **__: Any) -> None:
        raise UserError("onnx is not installed: install it")

    monkeypatch.setattr(provenance, "gpu_cards", cards)
    monkeypatch.setattr(bench, "gpu_cards", cards)
    monkeypatch.setattr(bench, "physical_cores", lambda: 1)
    monkeypatch.setattr(profiling, "profile_engine", no_profile)
    settings = Settings(batches=(1, 2), repeats=1, profile=True)
    report = bench_bundle(bundle, settings, events.append)
    after = len(events) - events[::-1].index("cards") - 1
    assert events[after - 1] == "batch 2: round 1 of 1"
    assert events.index("cards") < events.index("batch 1: round 0 of 1") < after
    assert report["machine"]["gpus"][0]["clocks_throttle_reasons.active"] == "0x0"
    assert report["gpus_after"][0]["clocks_throttle_reasons.active"] == "0x4"
    assert any("power cap" in warning for warning in report["warnings"])
    assert report["profile"] is None
    assert report["left_out"] == {"profile": "onnx is not installed: install it"}
    assert report["machine"]["threads"] == 1
    assert "--threads" not in report["command"]


def test_a_checkpoint_of_other_weights(
    checkpoint: Checkpoint, bundle: Path, tmp_path: Path, random_model: Callable[..., Any]
) -> None:
    other = random_model(checkpoint.model.config)
    with torch.no_grad():
        other.score.bias.add_(50.0)  # half of the scale's span
    save_checkpoint(checkpoint._replace(model=other), tmp_path / "o.safetensors")
    settings = Settings(checkpoint=tmp_path / "o.safetensors", batches=(1,), repeats=1, threads=1)
    said: list[str] = []
    with pytest.raises(UserError, match="other weights than the bundle"):
        bench_bundle(bundle, settings, said.append)
    assert said == ["holding the checkpoint against the bundle"]


def test_mistakes(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown baseline sgd: choose of all, eager-dense"):
        bench_bundle(bundle, Settings(baselines=("sgd",), repeats=1))
    with pytest.raises(UserError, match="admits batches of 1 to 16"):
        bench_bundle(bundle, Settings(batches=(64,), repeats=1))
    with pytest.raises(UserError, match="not a bundle"):
        bench_bundle(tmp_path, Settings(repeats=1))
    with pytest.raises(UserError, match="unknown scenario burst: take single_stream"):
        Settings(scenarios=("burst",))


def test_everybody_has_a_turn_in_every_round() -> None:
    turns: list[str] = []
    calls = {name: lambda name=name: turns.append(name) for name in "abc"}
    times = alternately(calls, 4)
    assert {name: len(taken) for name, taken in times.items()} == dict.fromkeys("abc", 4)
    rounds = ["".join(turns[i : i + 3]) for i in range(0, len(turns), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 1  # not always in the same order


def test_statistics() -> None:
    found = statistics([1.0, 2.0, 3.0])
    assert (found["p50"], found["mean"]) == (2.0, 2.0)
    assert found["cv"] == pytest.approx((2 / 3) ** 0.5 / 2)
