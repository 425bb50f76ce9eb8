"""The benchmark of ways to eight bits: what is kept of a way decides as its parity does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drexperts.bench.json_files import read_json, write_json
from drexperts.benchmarks import bench_precision
from drexperts.benchmarks.receipt_types.answers import Reference
from drexperts.benchmarks.receipt_types.precision_receipt import PrecisionReceipt, parts
from drexperts.benchmarks.receipt_types.receipt import markdown
from drexperts.export.graph.fold import inference_model
from drexperts.export.graph.precision import PrecisionTest, folded_session
from drexperts.export.proof.division import photographs_of
from drexperts.export.proof.photographs import verification_images
from drexperts.model.checkpoint import Checkpoint, default_preprocessing
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.progress import SILENT


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.slow
def test_the_answers_pass_where_their_parity_does(
    precision: str, tiny: Callable[..., Any], random_model: Callable[..., Any]
) -> None:
    model = random_model(tiny("official"), spread=0.05)
    scale = ScoreScale(-1.0, 1.0, higher_is_better=True)
    checkpoint = Checkpoint(model, scale, default_preprocessing(model.config))
    test = PrecisionTest(checkpoint, verification_images()[:4], precision, True, SILENT)
    parity = test(folded_session(inference_model(model, "fp16")))
    answers = bench_precision.answers(test, folded_session(inference_model(model, "fp16")))
    scores = tuple(test.reference.outputs.scores.tolist())
    reference = Reference(scores, scale.span, test.reference.sizes)
    found = reference.agreement(answers)
    assert (found.srcc, found.srcc_interval) == (parity.srcc, parity.srcc_interval)
    assert found.score_max == parity.score_max > 0
    assert reference.keeps_limits(answers, precision) == parity.passed == (precision == "int8")


@pytest.mark.slow
def test_every_way_is_measured(
    tmp_path: Path,
    tiny: Callable[..., Any],
    random_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_model(tiny("official"), spread=0.05)
    scale = ScoreScale(-1.0, 1.0, higher_is_better=True)
    checkpoint = Checkpoint(model, scale, Preprocessing(64, 64, 64, 1))
    few = photographs_of(None)[:12]
    monkeypatch.setattr(bench_precision, "photographs_of", lambda _: few)
    monkeypatch.setattr(bench_precision, "ROUNDS", 2)
    receipt = bench_precision.measured(checkpoint, "random", SILENT)
    assert {len(way.seconds) for way in receipt.ways.values()} == {2}
    assert receipt.searched[0].islands == 0
    write_json(receipt, tmp_path / "receipt.json")
    assert read_json(tmp_path / "receipt.json", PrecisionReceipt) == receipt
    assert "| auto |" in markdown(parts(receipt))


def test_a_receipt_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_precision, "measured", lambda *_: pytest.fail("it measured"))
    with pytest.raises(SystemExit) as ended:
        bench_precision.main(["--receipt", str(tmp_path / "none" / "receipt.json")])
    assert ended.value.code == 2
