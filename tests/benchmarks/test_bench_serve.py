"""What the receipt of serving derives, and the client that measures."""

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.held_engine import HeldEngine
from support.serving import Running, serving

from drexperts import runtime
from drexperts.bench.json_files import read_json
from drexperts.bench.provenance import Machine, Source
from drexperts.benchmarks import bench_serve
from drexperts.benchmarks.receipt_types.receipt import markdown
from drexperts.benchmarks.receipt_types.serve_receipt import (
    IN_PROCESS,
    SERVED,
    STREAM,
    Load,
    Saturated,
    ServeReceipt,
    parts,
)
from drexperts.benchmarks.serve_client import Answered, Asked, answers
from drexperts.runtime import Scorer


@pytest.fixture
def receipt() -> ServeReceipt:
    return ServeReceipt(
        command="c",
        machine=Machine("cpu", 2, None, "Linux", "3.11", {}, ()),
        source=Source(None, None, ()),
        weights="demo",
        engine="an engine",
        crops=6,
        batch=8,
        queue=64,
        alone={IN_PROCESS: (0.1, 0.2, 0.1), SERVED: (0.102, 0.202, 0.105)},
        saturated=Saturated(
            images=10,
            connections=6,
            seconds={STREAM: (1.0, 1.0), SERVED: (1.25, 1.25)},
            client_cpu=(0.0125, 0.0125),
        ),
        loads=(
            Load(
                share=2.0,
                rate=16.0,
                statuses=(200, 200, 503, 504),
                latencies=(0.01, 0.03, 9.0, 9.0),
                seconds=10.0,
                crops=30,
                calls=4,
                client_cpu=0.1,
            ),
        ),
    )


def test_what_is_added_and_what_is_kept(receipt: ServeReceipt) -> None:
    shown = [line for line in markdown(parts(receipt)).splitlines() if line.startswith("| drx")]
    assert shown == [
        "| drx serve | 105 | +2.00 (+2.00 to +3.80) | 1.02 (1.01-1.04) |",
        "| drx serve | 8 | 0.80 (0.80-0.80) |",
    ]
    assert receipt.saturated.throughput == 8.0


def test_a_load_counts_what_was_refused_and_what_failed(receipt: ServeReceipt) -> None:
    shown = markdown(parts(receipt))
    assert "| 2 | 16 | 4 | 2 | 1 | 1 | 20 | 29.8 | 7.5 | 1.0% |" in shown


def test_nothing_that_was_scored_is_no_number(receipt: ServeReceipt) -> None:
    load = dataclasses.replace(receipt.loads[0], statuses=(503,) * 4, calls=0, crops=0)
    shown = markdown(parts(dataclasses.replace(receipt, loads=(load,))))
    assert "| 2 | 16 | 4 | 0 | 4 | 0 |  |  |  | 1.0% |" in shown


@pytest.fixture
def running(toy_bundle: Path, tmp_path: Path):
    Image.fromarray(np.full((32, 32), 50, np.uint8)).save(tmp_path / "image.png")
    with runtime.load(toy_bundle, threads=1) as toy:
        scorer = Scorer(toy.manifest, toy.engine, HeldEngine(free=True), batch=4)
        with serving(scorer) as running:
            yield running


def asked(running: Running, file: Path, count: int, **more) -> Answered:
    where = Asked(
        host="127.0.0.1",
        port=running.port,
        path="/v1/score",
        kind="image/png",
        file=str(file),
        count=count,
    )
    return asyncio.run(answers(dataclasses.replace(where, **more)))


@pytest.mark.parametrize("how", [{"connections": 2}, {"rate": 500.0}])
def test_the_client_reads_every_answer(running: Running, tmp_path: Path, how) -> None:
    found = asked(running, tmp_path / "image.png", 7, **how)
    assert found.statuses == (200,) * 7
    assert 0 < min(found.latencies) <= max(found.latencies) <= found.seconds
    (tmp_path / "image.png").write_text("text")
    assert asked(running, tmp_path / "image.png", 3, **how).statuses == (422,) * 3


@pytest.mark.slow
def test_a_bundle_is_measured(toy_bundle: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench_serve, "FEWEST", 1)
    monkeypatch.setattr(bench_serve, "ROUNDS", 1)
    out = tmp_path / "receipt.json"
    bench_serve.main([str(toy_bundle), "--seconds", "0.05", "--receipt", str(out)])
    receipt = read_json(out, ServeReceipt)
    assert [load.share for load in receipt.loads] == list(bench_serve.SHARES)
    assert {status for load in receipt.loads for status in load.statuses} <= {200, 503}
    assert all(load.crops >= load.calls > 0 for load in receipt.loads)
