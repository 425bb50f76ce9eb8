"""What the receipt of scoring a collection derives, and that it can be measured."""

from pathlib import Path

import pytest

from drexperts.bench.json_files import read_json
from drexperts.bench.provenance import Machine, Source
from drexperts.benchmarks import bench_scale
from drexperts.benchmarks.receipt_types.receipt import markdown
from drexperts.benchmarks.receipt_types.scale_receipt import (
    PLAIN,
    Cores,
    Listing,
    Memory,
    Rows,
    ScaleReceipt,
    Stages,
    capacity,
    parts,
)


@pytest.fixture
def receipt() -> ScaleReceipt:
    return ScaleReceipt(
        command="c",
        machine=Machine("cpu", 2, None, "Linux", "3.11", {}, ()),
        source=Source(None, None, ()),
        weights="trained",
        engine="an engine",
        crops=4,
        image_bytes=200_000,
        images=10,
        inputs={PLAIN: (1.0, 2.0, 1.0), "tar": (1.1, 2.0, 1.2)},
        ray_start=None,
        stages=Stages(batch=8, decode=(0.02, 0.01, 0.02), engine=(0.4, 0.4)),
        cores=(
            Cores(cores=1, processes=1, images=10, seconds=(2.0,)),
            Cores(cores=2, processes=1, images=10, seconds=(1.25,)),
            Cores(cores=2, processes=2, images=20, seconds=(2.0,)),
        ),
        memory=(Memory(images=1000, before=2**20, peak=2**21, seconds=0.5),),
        rows=Rows(count=100, sizes={"jsonl": 40_000}, merge={"jsonl": 0.01}),
        listing=Listing(paths=1000, first_s=0.25, read_s=0.002, bytes_per_path=16.0),
    )


def test_overheads_and_rates(receipt: ScaleReceipt) -> None:
    shown = markdown(parts(receipt))
    assert "| tar | 8.33 | 1.10 (1.04-1.16) |" in shown
    assert "| 2 | 2 | 10 | 2.00 |" in shown
    assert "| 1,000 | 1 | 2 | 2000 |" in shown


def test_costs_are_rates_times_images(receipt: ScaleReceipt) -> None:
    shown = markdown(capacity(receipt))
    assert "| core-hours (1 processes on 1 cores) | 55.6 | 55556 |" in shown
    assert "| images read, GB | 200 | 200000 |" in shown
    assert "| results as .jsonl, GB | 0.4 | 400 |" in shown
    assert "| merge on one core, hours | 0.0278 | 27.8 |" in shown
    assert "| engine, all cores | 5 |" in shown
    assert "| decoding, one at a time | 50 |" in shown
    assert "| listing | 500000 |" in shown


@pytest.mark.slow
def test_a_bundle_is_measured(toy_bundle: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench_scale, "ROUNDS", 1)
    monkeypatch.setattr(bench_scale, "WORKER_ROUNDS", 1)
    out = tmp_path / "receipt.json"
    sizes = ["--images", "2", "--tiny", "200"]
    bench_scale.main([str(toy_bundle), *sizes, "--receipt", str(out)])
    receipt = read_json(out, ScaleReceipt)
    assert [each.images for each in receipt.memory] == [2, 20, 200]
    assert receipt.listing.paths == 2000
    assert set(receipt.rows.sizes) == {"jsonl", "csv", "parquet"}
