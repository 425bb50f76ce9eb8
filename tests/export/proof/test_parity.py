"""The measures behind the certificate."""

import threading

import numpy as np
import pytest

from drexperts.export.proof import parity as verify
from drexperts.export.proof.agreement import NO_NUMBER
from drexperts.export.proof.parity import (
    LIMITS,
    Outputs,
    compare,
    measure_invariance,
    parity_sets,
    within,
)
from drexperts.export.proof.photographs import verification_images
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import (
    MIN_IMAGES,
    OUTPUTS,
    BatchInvariance,
    Parity,
    Profile,
    ScoreScale,
    read_manifest,
)
from drexperts.runtime.preprocess import Preprocessing

SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)
RANDOM = np.random.default_rng(0)
SCORES = RANDOM.permutation(np.linspace(10, 90, 120))
WEIGHTS = RANDOM.normal(size=(120, 10))
MAPS = RANDOM.normal(size=(120, 10, 2, 2))
EXPECTED = Outputs(SCORES, WEIGHTS, MAPS, 120)


def compared(precision: str = "fp32", **changes: object) -> Parity:
    """The report of an engine that says what the model says but for the changes."""
    return compare(EXPECTED, EXPECTED._replace(**changes), SCALE, LIMITS[precision])  # type: ignore[arg-type]


def swapped(first: int, second: int) -> np.ndarray:
    """The scores with two of their ranks exchanged."""
    order, scores = np.argsort(SCORES), SCORES.copy()
    scores[order[[first, second]]] = scores[order[[second, first]]]
    return scores


def test_equal_outputs_pass() -> None:
    report = compared()
    assert report.passed
    assert (report.score_max, report.order_flips, report.pairs) == (0.0, 0, 120 * 119 // 2)
    assert report.srcc == pytest.approx(1.0)
    assert report.srcc_interval is not None
    assert report.srcc_interval.low == pytest.approx(1.0)
    assert (report.leading_flips, report.score_units) == (0, 0.0)
    assert (report.weights_srcc, report.maps_plcc) == pytest.approx((1.0, 1.0))


def test_drift_is_measured_in_spans_and_in_units() -> None:
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
def test_faults_fail(changes: dict[str, object], precision: str) -> None:
    report = compared(precision, **changes)
    assert not report.passed
    assert all(value is None or np.isfinite(value) for value in report.measured().values())


def test_what_is_no_number_keeps_no_limit() -> None:
    assert not within({"srcc": float("nan"), "score_max": 0.0}, {"srcc": 0.9})
    assert not within({"score_max": float("nan")}, {"score_max": 1.0})
    assert not within({"score_max": None}, {"score_max": 1.0})
    assert within({"maps_max": None}, {"maps_max": 1.0})


def test_the_gate_is_on_the_low_end_of_the_interval() -> None:
    got = EXPECTED._replace(scores=swapped(60, 65))
    report = compare(EXPECTED, got, SCALE, {"srcc": 0.999})
    assert report.srcc_interval is not None
    assert report.passed
    assert report.srcc_interval.low < 0.999 < report.srcc
    assert not compare(EXPECTED, got, SCALE, {"srcc_low": 0.999}).passed


def test_too_few_images_pass_nothing() -> None:
    few = Outputs(SCORES[:99], WEIGHTS[:99], MAPS[:99], 99)
    report = compare(few, few, SCALE, LIMITS["fp32"])
    assert (report.srcc_interval, report.passed) == (None, False)
    enough = Outputs(*(part[:MIN_IMAGES] for part in EXPECTED[:3]), MIN_IMAGES)
    assert compare(enough, enough, SCALE, LIMITS["fp32"]).passed


def test_each_set_of_enough_images_has_to_keep_the_limits() -> None:
    scores = np.concatenate([SCORES, SCORES / 1e4])  # the second set is hard to rank
    expected = Outputs(scores, np.tile(WEIGHTS, (2, 1)), None, 240)
    got = expected._replace(scores=scores + np.repeat([0, 1.6e-4], 120) * RANDOM.normal(size=240))
    sizes = {"easy": 120, "hard": 120}
    report = compare(expected, got, SCALE, {"srcc_low": 0.999}, sizes)
    assert report.measured()["srcc_low"] > 0.999  # type: ignore[operator]
    assert report.sets["easy"].keeps({"srcc_low": 0.999})
    assert not report.sets["hard"].keeps({"srcc_low": 0.999})
    assert not report.passed
    few = {"easy": 150, "hard": 90}
    assert compare(expected, got, SCALE, {"srcc": 0.99}, few).sets["hard"].srcc_interval is None


def test_an_engine_without_maps_is_held_to_the_rest() -> None:
    report = compared(maps=None)
    assert (report.maps_max, report.maps_plcc, report.passed) == (None, None, True)


@pytest.mark.parametrize("precision", LIMITS)
def test_one_inverted_expert_fails(precision: str) -> None:
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
def test_one_crop_with_other_maps_fails(precision: str) -> None:
    maps = MAPS.copy()
    maps[7] = MAPS[8]
    limits = {"maps_plcc": LIMITS[precision]["maps_plcc"]}
    report = compare(EXPECTED, EXPECTED._replace(maps=maps), SCALE, limits)
    assert not report.passed


def test_a_set_with_limits_whose_scores_are_all_alike_is_the_users_matter() -> None:
    scores = np.concatenate([np.full(100, 5.0), np.arange(120.0)])
    with pytest.raises(UserError, match="all 100 photographs the score 5"):
        verify._check_scores(scores, {"photographs": 100, "synthetic": 120})
    verify._check_scores(scores[1:], {"photographs": 99, "synthetic": 120})


def test_too_few_different_images_are_the_users_matter() -> None:
    flat = [np.full((80, 80, 3), 90, np.uint8)] * 60
    with pytest.raises(UserError, match="100 different images"):
        parity_sets(flat, Preprocessing(64, 64, 128, 2))


def test_every_precision_has_all_its_limits() -> None:
    for precision, limits in LIMITS.items():
        # One place of a map may tip where a softmax ties; all of them together may not.
        lacks = {"maps_max"} if precision == "int8" else set()
        assert limits.keys() == LIMITS["fp32"].keys() - lacks
    assert verify.INVARIANCE.keys() == LIMITS.keys()


def test_parity_is_measured_on_photographs_and_on_every_distortion() -> None:
    images = verification_images()
    spec = Preprocessing(96, 96, 192, 2)
    sources, sizes = parity_sets(images, spec)
    assert sizes == {"photographs": 104, "synthetic": 125}
    assert min(sizes.values()) >= MIN_IMAGES
    assert sources[:104] == images
    assert all(image.size == (96, 96) for image in sources[104:])  # type: ignore[union-attr]
    with pytest.raises(UserError, match="at least 3"):
        parity_sets(images[:2], spec)


def test_batch_sizes() -> None:
    assert verify.batch_sizes(1) == [1]
    assert verify.batch_sizes(8) == list(range(1, 9))
    assert verify.batch_sizes(40) == [*range(1, 9), 16, 32, 40]
    profiles = (Profile(1, 1, 1), Profile(2, 12, 40))
    assert verify.batch_sizes(40, profiles) == [*range(1, 9), 12, 16, 32, 40]


class LeakySession:
    """Adds a little of the first row to every other: what batch invariance is there to find."""

    max_batch, concurrency, description, image_size = 4, 2, "leaky", None

    def __init__(self, leak: float, into: str = "score") -> None:
        self.leak, self.into = leak, into

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        own = pixels.mean((1, 2, 3)).astype(np.float32)
        leaky = own + self.leak * own[0] * (np.arange(len(own)) > 0)
        values = {name: leaky if name == self.into else own for name in OUTPUTS}
        return {
            "score": values["score"],
            "weights": np.repeat(values["weights"][:, None], 10, 1),
            "maps": np.repeat(values["maps"][:, None, None, None] / 255, 10, 1),
        }


def invariance(session: object, toy_bundle: object, count: int = 6) -> BatchInvariance:
    manifest = read_manifest(toy_bundle)  # type: ignore[arg-type]
    images = [np.full((40, 40, 3), 10 * i + 5, np.uint8) for i in range(count)]
    return measure_invariance(lambda threads: session, images, manifest, "fp32", lambda _: None)  # type: ignore[arg-type,return-value]


def test_scores_that_are_no_numbers_are_not_invariant(toy_bundle: object) -> None:
    report = invariance(LeakySession(float("nan")), toy_bundle)
    assert not report.passed
    assert report.score_max == NO_NUMBER


@pytest.mark.parametrize("into", OUTPUTS)
def test_invariance_finds_a_leak_between_rows(into: str, toy_bundle: object) -> None:
    report = invariance(LeakySession(0.0), toy_bundle)
    assert report.passed
    assert report.batches == (1, 2, 3, 4)
    report = invariance(LeakySession(1e-2, into), toy_bundle)
    assert not report.passed
    drifts = {name: getattr(report, f"{name}_max") for name in OUTPUTS}
    assert [name for name, drift in drifts.items() if drift > 0] == [into]


def test_an_engine_that_scores_nothing_is_refuted() -> None:
    report = compare(EXPECTED, verify._no_numbers(120, 10), SCALE, LIMITS["fp32"])
    assert not report.passed
    assert (report.score_max, report.leading_flips) == (NO_NUMBER, 120)
    assert report.order_flips == report.pairs


class RangeSession(LeakySession):
    """Scales by what is brightest in the batch, as an engine with ranges of whole batches does."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        step = np.float32(pixels.max() / 64)
        return {name: step * np.round(v / step) for name, v in super().run(pixels).items()}


def test_neighbours_that_widen_a_range_are_found_out(toy_bundle: object) -> None:
    report = invariance(RangeSession(), toy_bundle, count=1)
    assert "extremes" in report.cases
    assert not report.passed


class ForgetfulSession(LeakySession):
    """Right as long as nobody else calls: what scoring from several threads is there to find."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.barrier = threading.Barrier(2)
        self.calls = 0

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        if threading.current_thread() is threading.main_thread():
            return super().run(pixels)
        self.calls += 1
        self.barrier.wait(10)  # two at once, or it breaks
        right = super().run(pixels)
        return right | {"score": right["score"] + 1}


def test_an_engine_with_profiles_is_called_from_several_threads_at_once(toy_bundle: object) -> None:
    manifest = read_manifest(toy_bundle)  # type: ignore[arg-type]
    images = [np.full((40, 40, 3), 10 * i + 5, np.uint8) for i in range(6)]
    session = ForgetfulSession()
    report = measure_invariance(
        lambda threads: session, images, manifest, "fp16", lambda _: None, (Profile(1, 2, 4),)
    )
    assert not report.passed
    assert report.cases[-1] == "at once"
    assert session.calls == 4
