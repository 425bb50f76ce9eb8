"""What the benchmark of ways to eight bits notes of a way follows from the scores beside it."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from drexperts.benchmarks import bench_precision
from drexperts.benchmarks.receipt_scores import ways
from drexperts.export.graph.fold import inference_model
from drexperts.export.graph.precision import PrecisionTest, folded_session
from drexperts.export.proof.photographs import verification_images
from drexperts.model.checkpoint import Checkpoint, default_preprocessing
from drexperts.runtime.manifest import ScoreScale


def test_what_is_noted_of_a_way_can_be_computed_again(
    tiny: Callable[..., Any], random_model: Callable[..., Any]
) -> None:
    model = random_model(tiny("official"), spread=0.05)
    scale = ScoreScale(-1.0, 1.0, higher_is_better=True)
    checkpoint = Checkpoint(model, scale, default_preprocessing(model.config))
    test = PrecisionTest(checkpoint, verification_images()[:4], "int8", True)
    noted = bench_precision.measured_scores(test, folded_session(inference_model(model, "fp16")))
    assert noted["parity"] == asdict(test(folded_session(inference_model(model, "fp16"))))
    assert noted["parity"]["score_max"] > 0
    report = {
        "images": len(test.reference.images),
        "span": scale.span,
        "eager_scores": test.reference.outputs.scores.tolist(),
        "ways": {"auto": noted | {"batch_drift": 0.0, "invariant": True}},
    }
    for _, stated, expected in ways(json.loads(json.dumps(report))):
        figures = expected if isinstance(expected, dict) else {}
        assert figures or stated == expected
        for name in figures.keys() - {"sets"}:
            assert stated[name] == pytest.approx(figures[name], rel=1e-9)


def test_a_receipt_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = str(tmp_path / "none" / "receipt.json")
    monkeypatch.setattr(sys, "argv", ["bench_precision.py", "--receipt", receipt])
    monkeypatch.setattr(bench_precision, "measured", lambda *_: pytest.fail("it measured"))
    with pytest.raises(SystemExit) as ended:
        bench_precision.main()
    assert ended.value.code == 2
    assert "there is no folder" in capsys.readouterr().err
