"""Crossings: which engines count as passing, and what a receipt shows of them."""

from dataclasses import replace

import numpy as np
import pytest

from drexperts.bench.provenance import Machine, Source
from drexperts.benchmarks.crossings import Remembering, halves, worst
from drexperts.benchmarks.openvino_crossings import OFF, in_bits, scaled
from drexperts.benchmarks.receipt_types import crossings_receipt
from drexperts.benchmarks.receipt_types.crossings_receipt import Crossing, CrossingsReceipt
from drexperts.benchmarks.receipt_types.receipt import markdown
from drexperts.export.proof.parity import Outputs, compare
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.proof import EXPORT_LIMITS, LIMITS, within

MACHINE = Machine("AMD", 2, None, "linux", "3.11", {}, gpus=())
RANDOM = np.random.default_rng(0)


def crossing(half: int, made: float, other: float) -> Crossing:
    """An engine whose 99 of 100 images are within these shares of the limit."""
    perfect: dict[str, float | None] = {
        name: 1.0 if "cc" in name else 0.0 for name in LIMITS["int8"]
    }
    limit = LIMITS["int8"]["score_p99"]
    return Crossing(
        model="demo",
        division=0,
        half=half,
        precision="auto",
        islands=3 + half,
        weight_bytes=2_000_000,
        made=perfect | {"score_p99": made * limit},
        other=perfect | {"score_p99": other * limit},
    )


@pytest.fixture
def receipt() -> CrossingsReceipt:
    made = (crossing(0, 0.4, 0.9), crossing(1, 0.4, 1.1), crossing(2, 0.6, 0.6))
    return CrossingsReceipt(
        command="python benchmarks/crossings.py",
        machine=MACHINE,
        source=Source(None, dirty=None, packages=()),
        photographs=5,
        images=7,
        parts=24,
        crossings=made,
    )


def test_an_engine_is_made_with_the_margin_and_holds_without(receipt: CrossingsReceipt) -> None:
    assert [receipt.passed(each) for each in receipt.crossings] == [True, True, False]
    assert [receipt.holds(each) for each in receipt.crossings] == [True, False, True]


def test_broken_engines_are_held_to_the_limits_of_bfloat16(receipt: CrossingsReceipt) -> None:
    limit = LIMITS["bf16"]["score_p99"]
    (first, *_) = receipt.crossings
    made = {
        "openvino-bf16": 0.1,
        "openvino-auto-int8": 0.1,
        "broken: 4 bits": 3.0,
        "broken: one layer 2 % off": 0.2,
    }
    engines = tuple(
        replace(
            first,
            precision=precision,
            made=first.made | {"score_p99": share * limit},
            other=first.other | {"score_p99": share * limit},
        )
        for precision, share in made.items()
    )
    assert [each.limits for each in engines] == ["bf16", "int8", "bf16", "bf16"]
    shown = markdown(crossings_receipt.parts(replace(receipt, crossings=engines)))
    assert "| demo, broken: 4 bits | 1 | 0 |" in shown
    assert "| demo, openvino-auto-int8 | 1 | 1 | 1 (100 %) | 3-3 of 24 |" in shown
    assert "| broken: 4 bits | 0 of 1 | 3.00 | 0.00 |" in shown
    assert "| broken: one layer 2 % off | 1 of 1 | 0.20 | 0.00 |" in shown


def test_changed_weights() -> None:
    pytest.importorskip("openvino")
    weight = RANDOM.standard_normal((8, 3)).astype(np.float32)
    rounded = in_bits(4)("any", weight)
    steps = np.abs(weight).max(0) / 7
    np.testing.assert_allclose(rounded / steps, np.round(rounded / steps), atol=1e-4)
    assert np.abs(rounded - weight).max() <= 0.501 * steps.max()
    np.testing.assert_array_equal(scaled(1.5)(f"model.{OFF}.transposed", weight), 1.5 * weight)
    assert scaled(1.5)("model.encoder.blocks.0.fc1.weight", weight) is weight


def test_a_row_counts_what_passed_and_names_what_failed(receipt: CrossingsReceipt) -> None:
    shown = markdown(crossings_receipt.parts(receipt))
    assert "| demo, auto | 3 | 2 | 1 (50 %) | 3-5 of 24 | 2.00 | score_p99 1 |" in shown


def test_the_worst_of_all_images_and_sets_decides_as_the_proof_does() -> None:
    scores, weights = RANDOM.normal(size=240), RANDOM.normal(size=(240, 10))
    expected = Outputs(scores, weights, None, 240)
    sizes, scale = {"photographs": 120, "synthetic": 120}, ScoreScale(-3.0, 3.0, True)
    decided = set()
    for noise in (1e-4, 1e-2, 3e-2, 1e-1):
        got = expected._replace(scores=scores + noise * RANDOM.normal(size=240))
        parity = compare(expected, got, scale, EXPORT_LIMITS["int8"], sizes)
        assert within(worst(parity), parity.limits) == parity.passed
        decided.add(parity.passed)
    assert decided == {True, False}


def test_halves_are_of_whole_photographs() -> None:
    photographs: list[list[object]] = [[i, i + 100] for i in range(9)]
    first, second = halves(photographs, seed=1)  # type: ignore[arg-type]
    assert sorted([*first, *second]) == photographs
    assert (len(first), len(second)) == (5, 4)
    assert halves(photographs, seed=1) == (first, second)  # type: ignore[arg-type]
    assert halves(photographs, seed=2) != (first, second)  # type: ignore[arg-type]


class Counting:
    """A session that counts its crops and returns their sums."""

    max_batch, concurrency, description, count = 8, 1, "counting", 0

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.count += len(pixels)
        return {"score": pixels.sum((1, 2, 3)).astype(np.float32)}

    def close(self) -> None: ...


def test_a_crop_is_computed_once() -> None:
    pixels = RANDOM.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    counting = Counting()
    session = Remembering(counting)
    for chosen in ([0, 1, 2], [2, 4, 1, 2]):
        np.testing.assert_array_equal(
            session.run(pixels[chosen])["score"], pixels[chosen].sum((1, 2, 3))
        )
    assert counting.count == 4
