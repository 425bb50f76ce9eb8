"""The full-size benchmark's receipt names every proof that is missing."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from support.openvino_engines import add_openvino_engine
from support.sample_reports import cpu

from drexperts.bench.json_files import read_json, write_json
from drexperts.bench.reports import ColdStart, ImageTimes
from drexperts.benchmarks.bench_full_size import (
    chosen_engine,
    empty_cache,
    has_openvino,
    proofs,
)
from drexperts.benchmarks.receipt_types.full_size_receipt import (
    EngineCosts,
    FullSizeReceipt,
    StreamTimes,
    parts,
    summary,
)
from drexperts.benchmarks.receipt_types.receipt import markdown
from drexperts.runtime.manifest import read_manifest, write_manifest


def test_a_missing_proof_is_a_failure(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(toy_bundle, tmp_path / "bundle")
    manifest = read_manifest(bundle)
    unproven = dataclasses.replace(manifest.engines[0], invariance=None)
    write_manifest(dataclasses.replace(manifest, engines=(unproven,)), bundle)
    found = {"engine": proofs(manifest.engines[0]), "engine-int8": proofs(unproven)}
    write_json(FullSizeReceipt(cpu(), found), tmp_path / "receipt.json")
    receipt = read_json(tmp_path / "receipt.json", FullSizeReceipt)
    assert receipt.proofs == found
    assert receipt.failures == ["batch invariance of engine-int8"]


def test_what_the_receipt_shows(toy_bundle: Path, tmp_path: Path) -> None:
    proven = proofs(read_manifest(toy_bundle).engines[0])
    report = cpu()
    ours = dataclasses.replace(report.bundle, backend="openvino", precision="bf16")
    machine = dataclasses.replace(report.machine, versions={"torch": "2.15.0"})
    report = dataclasses.replace(report, machine=machine, against={"engine-openvino-bf16": ours})
    batches = tuple(
        dataclasses.replace(
            each,
            seconds=each.seconds
            | {"engine-openvino-bf16": tuple(t / 2 for t in each.seconds["engine"])},
        )
        for each in report.batches
    )
    report = dataclasses.replace(report, batches=batches)
    searched = dataclasses.replace(proven, searched=True)
    found = {"engine": proven, "engine-openvino-bf16": searched}
    cold = ColdStart(0.1, 2.5, 0.2, 900_000_000, None)
    warm = dataclasses.replace(cold, load_s=0.75)
    costs = EngineCosts(cold, (warm,), ImageTimes(0, (6,), (0.01,), (0.66,)))
    streams = StreamTimes("x.onnx", 2, 8, {"1": (0.8,), "2": (0.4,)})
    made = FullSizeReceipt(report, found, {"engine-openvino-bf16": costs}, streams)
    write_json(made, tmp_path / "receipt.json")
    receipt = read_json(tmp_path / "receipt.json", FullSizeReceipt)
    assert receipt == made
    first, second = (row for row in markdown(summary(receipt)).splitlines() if "drexperts, " in row)
    assert first.startswith("| drexperts, ONNX Runtime fp32 |")  # the slowest first
    assert second.startswith("| drexperts, OpenVINO bf16 (--precision auto) |")
    shown = markdown(parts(receipt))
    assert "| OpenVINO bf16 (--precision auto) | 2.50 | 0.75 | 0.20 | 900 | 0.66 |" in shown
    assert "| 1 of 2 threads | 100 |" in shown
    assert "| 2 of 1 threads | 50 |" in shown


def test_processes_have_an_empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "before")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    with empty_cache():
        assert os.environ["XDG_CACHE_HOME"] != "before"
        assert "XDG_STATE_HOME" in os.environ
    assert os.environ["XDG_CACHE_HOME"] == "before"
    assert "XDG_STATE_HOME" not in os.environ


def test_the_engine_that_is_measured_most(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(toy_bundle, tmp_path / "bundle")
    assert chosen_engine(bundle, None).backend == "onnx"
    for precision in ("fp32", "bf16"):
        add_openvino_engine(bundle, precision)
        assert chosen_engine(bundle, None).precision == precision
        assert has_openvino(bundle, precision)
    assert not has_openvino(bundle, "auto")
    assert chosen_engine(bundle, "onnx").backend == "onnx"
