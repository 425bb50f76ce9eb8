"""The benchmark of ways to eight bits: what is kept of a way decides as its parity does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drexperts.benchmarks import bench_precision
from drexperts.benchmarks.receipt_types.answers import Reference
from drexperts.export.graph.fold import inference_model
from drexperts.export.graph.precision import PrecisionTest, folded_session
from drexperts.export.proof.photographs import verification_images
from drexperts.model.checkpoint import Checkpoint, default_preprocessing
from drexperts.runtime.manifest import ScoreScale
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


def test_a_receipt_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_precision, "measured", lambda *_: pytest.fail("it measured"))
    with pytest.raises(SystemExit) as ended:
        bench_precision.main(["--receipt", str(tmp_path / "none" / "receipt.json")])
    assert ended.value.code == 2
