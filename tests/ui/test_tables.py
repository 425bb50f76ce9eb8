"""The table of what an engine was proven on."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from drexperts.export.proof.parity import LIMITS, Outputs, compare
from drexperts.runtime.manifest import Engine, ScoreScale, read_manifest
from drexperts.ui.tables import proof_table

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


def printed(engine: Engine, got: Outputs) -> list[str]:
    parity = compare(EXPECTED, got, SCALE, LIMITS["fp32"], SIZES)
    stream = io.StringIO()
    Console(file=stream, width=200).print(proof_table(dataclasses.replace(engine, parity=parity)))
    return stream.getvalue().splitlines()


def test_every_gate_is_in_the_table(engine: Engine) -> None:
    lines = printed(engine, EXPECTED)
    kept = [line for line in lines if "holds" in line]
    of_a_set = 7  # largest difference, two correlations and their intervals, two kinds of flips
    assert len(kept) == len(LIMITS["fp32"]) + of_a_set + 1  # and batch invariance
    assert not any("FAILS" in line for line in lines)
    assert any("photographs: 30 images, too few for a gate" in line for line in lines)
    assert any("synthetic: 120 images " in line for line in lines)


def test_scores_are_in_their_units_and_correlations_have_intervals(engine: Engine) -> None:
    lines = printed(engine, EXPECTED._replace(scores=SCORES + 0.5))
    (units,) = [line for line in lines if "in its units" in line]
    assert "5.00e-01" in units
    (largest, *_) = [line for line in lines if "largest difference / span" in line]
    assert "1.00e-02" in largest
    assert "FAILS" in largest
    assert any("95 % over images" in line and "1.0000000 to 1.0000000" in line for line in lines)


def test_what_is_no_number_fails(engine: Engine) -> None:
    lines = printed(engine, EXPECTED._replace(scores=np.full(150, np.nan)))
    assert any("no number" in line and "FAILS" in line for line in lines)
    assert sum("FAILS" in line for line in lines) >= 10


def test_a_proof_from_before_intervals_and_sets(engine: Engine) -> None:
    stream = io.StringIO()
    Console(file=stream, width=200).print(proof_table(engine))
    assert "rank correlation (SRCC)" in stream.getvalue()
    assert "95 %" not in stream.getvalue()


def test_a_gate_of_what_was_not_measured_fails(engine: Engine) -> None:
    few = Outputs(SCORES[:60], WEIGHTS[:60], None, 60)
    parity = compare(few, few, SCALE, LIMITS["fp32"])
    assert not parity.passed
    stream = io.StringIO()
    Console(file=stream, width=200).print(proof_table(dataclasses.replace(engine, parity=parity)))
    failed = [line for line in stream.getvalue().splitlines() if "FAILS" in line]
    assert len(failed) == 2  # of SRCC and PLCC, the intervals; not the maps that there are none of
    assert all("not measured" in line and "95 % over images" in line for line in failed)
