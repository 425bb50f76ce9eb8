"""The benchmark of engines for GPUs: what was built and read back is in its receipt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drexperts.bench.json_files import read_json
from drexperts.benchmarks import bench_engines
from drexperts.benchmarks.receipt_types.engine_receipt import EngineReceipt
from drexperts.model.checkpoint import Checkpoint, default_preprocessing
from drexperts.runtime.manifest import ScoreScale


@pytest.mark.slow
def test_an_engine_is_built_and_read_back(
    tiny: Callable[..., Any],
    random_model: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    model = random_model(tiny("official"))
    scale = ScoreScale(-1.0, 1.0, higher_is_better=True)
    checkpoint = Checkpoint(model, scale, default_preprocessing(model.config))
    monkeypatch.setattr(bench_engines, "random_checkpoint", lambda _: checkpoint)
    monkeypatch.setattr(bench_engines, "BUILDS", [("fp32", ("8.9",), True)])
    out = tmp_path / "receipt.json"
    bench_engines.main(["--receipt", str(out)])
    (build,) = read_json(out, EngineReceipt).builds
    assert build.inspected
    assert set(build.products) == {"fp32"}
    assert 0 < build.found <= build.asked
