"""Tables of proofs and of metrics."""

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from drexperts.evaluation.metrics import compute_metrics
from drexperts.export.proof.parity import Outputs, compare
from drexperts.runtime.manifest import Engine, ScoreScale, read_manifest
from drexperts.runtime.proof import LIMITS
from drexperts.runtime.score import Score
from drexperts.ui.bundles import proof_text
from drexperts.ui.tables import Tally, metrics_table, proof_table, reservations, score_table

SCALE = ScoreScale(0.0, 50.0, higher_is_better=True)
RANDOM = np.random.default_rng(0)
SCORES = RANDOM.permutation(np.linspace(5, 45, 150))
WEIGHTS, MAPS = RANDOM.normal(size=(150, 10)), RANDOM.normal(size=(150, 10, 2, 2))
EXPECTED = Outputs(SCORES, WEIGHTS, MAPS, 150)
SIZES = {"photographs": 30, "synthetic": 120}


@pytest.fixture
def engine(toy_bundle: Path) -> Engine:
    (found,) = read_manifest(toy_bundle).engines
    return found


def lines(table: Table) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=200).print(table)
    return stream.getvalue().splitlines()


def proof(engine: Engine, got: Outputs) -> list[str]:
    parity = compare(EXPECTED, got, SCALE, LIMITS["fp32"], SIZES)
    return lines(proof_table(dataclasses.replace(engine, parity=parity)))


def test_every_gate_is_in_the_table(engine: Engine) -> None:
    shown = proof(engine, EXPECTED)
    of_a_set = 7  # largest difference, two correlations and their intervals, two kinds of flips
    batch_invariance = 1
    kept = len(LIMITS["fp32"]) + of_a_set + batch_invariance
    assert sum("holds" in line for line in shown) == kept
    assert not any("FAILS" in line for line in shown)
    assert any("photographs: 30 images, too few" in line for line in shown)
    assert any("synthetic: 120 images " in line for line in shown)


def test_scores_are_in_their_units_and_correlations_have_intervals(engine: Engine) -> None:
    shown = proof(engine, EXPECTED._replace(scores=SCORES + 0.5))
    (units,) = [line for line in shown if "in its units" in line]
    assert "5.00e-01" in units
    (largest, *_) = [line for line in shown if "largest difference / span" in line]
    assert "1.00e-02" in largest
    assert "FAILS" in largest
    assert any("95 % over images" in line and "1.0000000 to 1.0000000" in line for line in shown)


def test_nan_fails(engine: Engine) -> None:
    shown = proof(engine, EXPECTED._replace(scores=np.full(150, np.nan)))
    assert any("NaN" in line and "FAILS" in line for line in shown)
    assert sum("FAILS" in line for line in shown) >= 10


def test_a_proof_without_intervals_and_sets_is_shown(engine: Engine) -> None:
    assert engine.parity is not None
    old = dataclasses.replace(
        engine.parity, limits={"score_max": 1e-4}, srcc_interval=None, plcc_interval=None
    )
    shown = "\n".join(lines(proof_table(dataclasses.replace(engine, parity=old))))
    assert "rank correlation (SRCC)" in shown
    assert "95 %" not in shown


def test_pictures_that_were_seen_or_left_out_are_said(engine: Engine) -> None:
    assert engine.parity is not None
    assert reservations(engine.parity) == ""
    assert reservations(dataclasses.replace(engine.parity, seen=None)) == ""
    parity = dataclasses.replace(engine.parity, seen=7, undetermined=1)
    changed = dataclasses.replace(engine, parity=parity)
    said = ", of which the engine was made on 7, 1 left out as undetermined"
    assert proof_text(changed).endswith(said)
    assert said in " ".join(lines(proof_table(changed)))


def test_a_gate_without_a_measurement_fails(engine: Engine) -> None:
    few = Outputs(SCORES[:60], WEIGHTS[:60], None, 60)
    parity = compare(few, few, SCALE, LIMITS["fp32"])
    assert not parity.passed
    shown = lines(proof_table(dataclasses.replace(engine, parity=parity)))
    failed = [line for line in shown if "FAILS" in line]
    assert len(failed) == 2  # the intervals of SRCC and PLCC; there are no maps to measure
    assert all("not measured" in line and "95 % over images" in line for line in failed)


def test_metrics_have_an_interval_or_a_range_over_splits() -> None:
    first = compute_metrics(SCORES, SCORES + RANDOM.normal(size=150), resamples=20)
    second = dataclasses.replace(first, srcc=first.srcc - 0.1, krcc=math.nan)
    low, high = first.intervals["srcc"]
    (one,) = [line for line in lines(metrics_table([first])) if "SRCC" in line]
    assert one.split()[1:] == [
        f"{first.srcc:.4f}",
        *f"95 % over images: {low:.3f} to {high:.3f}".split(),
    ]
    both = lines(metrics_table([first, second]))
    (srcc,) = [line for line in both if "SRCC" in line]
    assert f"{first.srcc - 0.05:.4f}" in srcc
    assert f"{second.srcc:.3f} to {first.srcc:.3f}" in srcc
    (krcc,) = [line for line in both if "KRCC" in line]
    assert krcc.split() == ["KRCC", "-"]


def test_scores_are_shown_as_finely_as_they_are_proven() -> None:
    tally = Tally(SCALE)
    for value in (31.4159, 31.4162):  # 6e-6 of the span apart
        tally.add(
            Score(
                source=f"{value}.png",
                value=value,
                std=0.0,
                raw=(value,),
                distortions={"blur": 1.0},
                scale=SCALE,
                fingerprint="0" * 16,
            )
        )
    shown = "\n".join(lines(score_table(tally)))
    assert "31.4159" in shown
    assert "31.4162" in shown
