"""Parity: which differences between two models' outputs it reports, and which it refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drexperts.export.proof import parity as proofs
from drexperts.export.proof.agreement import LARGEST_NUMBER
from drexperts.export.proof.parity import Outputs, Reference, check_scores, compare, parity_sets
from drexperts.export.proof.photographs import verification_images
from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import PrecisionTrial, ScoreScale
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.proof import LIMITS, MIN_IMAGES, TOLERANCES, Parity, within

SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)
RANDOM = np.random.default_rng(0)
SCORES = RANDOM.permutation(np.linspace(10, 90, 120))
WEIGHTS = RANDOM.normal(size=(120, 10))
MAPS = RANDOM.normal(size=(120, 10, 2, 2))
EXPECTED = Outputs(SCORES, WEIGHTS, MAPS, 120)


def compared(precision: str = "fp32", **changes: Any) -> Parity:
    """The report of an engine whose outputs are the model's but for the changes."""
    return compare(EXPECTED, EXPECTED._replace(**changes), SCALE, LIMITS[precision])


def swapped(first: int, second: int) -> np.ndarray:
    """The scores with two of their ranks exchanged."""
    order, scores = np.argsort(SCORES), SCORES.copy()
    scores[order[[first, second]]] = scores[order[[second, first]]]
    return scores


def test_equal_outputs_pass():
    report = compared()
    assert report.passed
    assert (report.score_max, report.order_flips, report.pairs) == (0.0, 0, 120 * 119 // 2)
    assert report.srcc == pytest.approx(1.0)
    assert report.srcc_interval is not None
    assert report.srcc_interval.low == pytest.approx(1.0)
    assert (report.leading_flips, report.score_units) == (0, 0.0)
    assert (report.weights_srcc, report.maps_plcc) == pytest.approx((1.0, 1.0))


def test_drift_is_measured_in_spans_and_in_units():
    report = compared(scores=SCORES + 0.5)
    assert (report.score_max, report.score_units) == pytest.approx((0.005, 0.5))
    assert not report.passed


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize(
    "changes",
    [
        {"scores": swapped(0, 60)},
        {"scores": 100 - SCORES},
        {"scores": np.full(120, 50.0)},
        {"scores": np.where(SCORES > 80, np.nan, SCORES)},
        {"scores": np.where(SCORES > 80, np.inf, SCORES)},
        {"weights": 1.5 * WEIGHTS},
        {"weights": np.roll(WEIGHTS, 1, axis=1)},
        {"weights": np.where(WEIGHTS > 2, np.nan, WEIGHTS)},
        {"maps": MAPS + RANDOM.normal(size=MAPS.shape)},
        {"maps": -MAPS},
        {"maps": np.where(MAPS > 2, np.nan, MAPS)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_faults_fail(changes, precision):
    report = compared(precision, **changes)
    assert not report.passed
    assert all(value is None or np.isfinite(value) for value in report.measured().values())


def test_values_that_are_not_finite_keep_no_limit():
    assert not within({"srcc": float("nan"), "score_max": 0.0}, {"srcc": 0.9})
    assert not within({"score_max": float("nan")}, {"score_max": 1.0})
    assert not within({"score_max": None}, {"score_max": 1.0})
    assert within({"maps_max": None}, {"maps_max": 1.0})


def test_the_gate_is_on_the_low_end_of_the_interval():
    got = EXPECTED._replace(scores=swapped(60, 65))
    report = compare(EXPECTED, got, SCALE, {"srcc": 0.999})
    assert report.srcc_interval is not None
    assert report.passed
    assert report.srcc_interval.low < 0.999 < report.srcc
    assert not compare(EXPECTED, got, SCALE, {"srcc_low": 0.999}).passed


def test_too_few_images_pass_nothing():
    few = Outputs(SCORES[:99], WEIGHTS[:99], MAPS[:99], 99)
    report = compare(few, few, SCALE, LIMITS["fp32"])
    assert (report.srcc_interval, report.passed) == (None, False)
    n = MIN_IMAGES
    enough = Outputs(SCORES[:n], WEIGHTS[:n], MAPS[:n], n)
    assert compare(enough, enough, SCALE, LIMITS["fp32"]).passed


def test_each_set_of_enough_images_has_to_keep_the_limits():
    scores = np.concatenate([SCORES, SCORES / 1e4])  # the second set is hard to rank
    expected = Outputs(scores, np.tile(WEIGHTS, (2, 1)), None, 240)
    got = expected._replace(scores=scores + np.repeat([0, 1.6e-4], 120) * RANDOM.normal(size=240))
    sizes = {"easy": 120, "hard": 120}
    report = compare(expected, got, SCALE, {"srcc_low": 0.999}, sizes)
    low = report.measured()["srcc_low"]
    assert low is not None
    assert low > 0.999
    assert report.sets["easy"].keeps({"srcc_low": 0.999})
    assert not report.sets["hard"].keeps({"srcc_low": 0.999})
    assert not report.passed
    few = {"easy": 150, "hard": 90}
    assert compare(expected, got, SCALE, {"srcc": 0.99}, few).sets["hard"].srcc_interval is None


def test_an_engine_without_maps_has_the_other_limits():
    report = compared(maps=None)
    assert (report.maps_max, report.maps_plcc, report.passed) == (None, None, True)


@pytest.mark.parametrize("precision", LIMITS)
def test_one_inverted_expert_fails(precision):
    weights = np.linspace(-1, 1, 10) + 0.05 * WEIGHTS
    inverted = weights.copy()
    inverted[:, 5] = 2 * weights[:, 5].mean() - weights[:, 5]
    expected = EXPECTED._replace(weights=weights)
    limits = {name: LIMITS[precision][name] for name in ("weights_srcc", "weights_plcc")}
    assert compare(expected, expected, SCALE, limits).passed
    report = compare(expected, expected._replace(weights=inverted), SCALE, limits)
    assert (report.weights_srcc, report.weights_plcc) == pytest.approx((-1.0, -1.0))
    assert report.weights_srcc_interval is not None
    assert not report.passed


@pytest.mark.parametrize("precision", LIMITS)
def test_one_crop_with_other_maps_fails(precision):
    maps = MAPS.copy()
    maps[7] = MAPS[8]
    limits = {"maps_plcc": LIMITS[precision]["maps_plcc"]}
    report = compare(EXPECTED, EXPECTED._replace(maps=maps), SCALE, limits)
    assert not report.passed


def test_a_set_with_limits_whose_scores_are_all_equal_is_refused():
    scores = np.concatenate([np.full(100, 5.0), np.arange(120.0)])
    with pytest.raises(UserError, match=r"100 photographs .* 5"):
        check_scores(scores, {"photographs": 100, "synthetic": 120})
    check_scores(scores[1:], {"photographs": 99, "synthetic": 120})


def test_too_few_different_images_are_refused():
    flat = [np.full((80, 80, 3), 90, np.uint8)] * 60
    with pytest.raises(UserError, match="100 different"):
        parity_sets(flat, Preprocessing(64, 64, 128, 2))


def test_every_precision_has_all_its_limits():
    for precision, limits in LIMITS.items():
        if precision == "fp32":
            continue
        # One place of a map may tip where a softmax ties; all of them together may not.
        of_most = {"score_p99", "weights_p99", "maps_plcc_p01", "maps_p99"}
        of_most -= {"maps_p99"} if precision == "int8" else set()
        assert limits.keys() == LIMITS["fp32"].keys() - {"maps_max"} | of_most
    assert TOLERANCES.keys() == LIMITS.keys()


def test_parity_is_measured_on_photographs_and_on_every_distortion():
    images = verification_images()
    spec = Preprocessing(96, 96, 192, 2)
    sources, sizes = parity_sets(images, spec)
    assert sizes == {"photographs": 144, "synthetic": 125}
    assert min(sizes.values()) >= MIN_IMAGES
    assert sources[:144] == images
    assert {decode(image).size for image in sources[144:]} == {(96, 96)}
    with pytest.raises(UserError, match="at least 3"):
        parity_sets(images[:2], spec)


def test_one_image_on_a_tie_moves_no_percentile():
    weights, scores = WEIGHTS.copy(), SCORES.copy()
    weights[5] += 0.3 * np.abs(WEIGHTS).max()
    scores[5] += 5
    report = compared("int8", scores=scores, weights=weights, maps=None)
    assert (report.score_max, report.weights_max) == pytest.approx((0.05, 0.3))
    assert (report.score_p99, report.weights_p99) == pytest.approx((0.0, 0.0))
    weights[:3] += 0.2 * np.abs(WEIGHTS).max()
    assert (compared("int8", weights=weights).weights_p99 or 0) > LIMITS["int8"]["weights_p99"]


@pytest.fixture
def reference(checkpoint, pictures):
    """Of 130 images or so, each with one crop."""
    return Reference(checkpoint.model, pictures, Preprocessing(64, 64, 128, 1))


@pytest.mark.parametrize(
    ("factors", "left_out"),
    [
        ((1.01,) * 9, [7]),  # float32 is off from float64, whose draws agree
        ((1.0,) * 8 + (1.01,), [7]),  # one draw is off
        ((1.0,) * 9, []),
    ],
)
def test_only_what_float32_does_not_determine_is_left_out(
    reference, monkeypatch, factors, left_out
):
    expected, limits = reference.outputs, LIMITS["fp32"]
    off = np.zeros(len(expected.scores))
    off[7] = 1.0
    got = expected._replace(scores=expected.scores + off)
    again = expected.without([i for i in range(len(off)) if i != 7])
    draws = iter([again._replace(weights=again.weights * factor) for factor in factors])
    monkeypatch.setattr(proofs, "session_outputs", lambda *_: next(draws))
    assert reference._undetermined(got, limits, SCALE.span) == left_out
    off[[1, 2]] = 1.0  # which are more than 1 %
    many = got._replace(scores=expected.scores + off)
    assert reference._undetermined(many, limits, SCALE.span) == []


def test_float64_determines_an_ordinary_image(reference):
    got = reference.outputs._replace(maps=reference.outputs.maps + 0.0)
    got.maps[9] += 1.0
    assert reference._undetermined(got, LIMITS["fp32"], SCALE.span) == []


def test_an_older_engine_does_not_say_what_it_was_made_on(planned):
    plain = planned()
    trial = PrecisionTrial(islands=1, weight_bytes=1, score_max=0.0, srcc=1.0, passed=True)
    old = (
        replace(plain, precision="int8"),
        replace(plain, frontier=(trial,)),
        replace(plain, islands=("a",)),
    )
    assert [proofs._seen(engine, ["a" * 12]) for engine in (plain, *old)] == [0, None, None, None]
    made = replace(old[1], searched_on=("a" * 12, "b" * 12))
    assert proofs._seen(made, ["a" * 12]) == 1


def test_outputs_without_an_image_lack_its_crops():
    counted = Outputs(SCORES[:3], WEIGHTS[:3], MAPS[:6], 6, (2, 3, 1))
    left = counted.without([1])
    assert left.scores.tolist() == SCORES[[0, 2]].tolist()
    assert left.maps is not None
    assert np.array_equal(left.maps, MAPS[[0, 1, 5]])
    assert (left.rows, left.counts) == (3, (2, 1))


def test_an_engine_that_scores_nothing_fails():
    nothing = np.full((120, 10), np.nan)
    report = compared(scores=nothing[:, 0], weights=nothing, maps=None)
    assert not report.passed
    assert (report.score_max, report.leading_flips) == (LARGEST_NUMBER, 120)
    assert report.order_flips == report.pairs
