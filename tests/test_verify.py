"""The measures behind the certificate."""

import threading

import numpy as np
import pytest

from drexperts.export import verify
from drexperts.export.verify import (
    LIMITS,
    Outputs,
    compare,
    measure_invariance,
    order_flips,
    within,
)
from drexperts.runtime.manifest import (
    OUTPUTS,
    BatchInvariance,
    Profile,
    ScoreScale,
    read_manifest,
)

SCALE = ScoreScale(0.0, 100.0, higher_is_better=True)


def outputs(scores: list[float], weight: float = 1.0) -> Outputs:
    weights = np.full((len(scores), 10), weight)
    return Outputs(np.array(scores), weights, np.zeros((len(scores), 10, 2, 2)), len(scores))


def test_equal_outputs_pass() -> None:
    report = compare(outputs([1.0, 5.0, 9.0]), outputs([1.0, 5.0, 9.0]), SCALE, LIMITS["fp32"])
    assert report.passed
    assert (report.score_max, report.order_flips, report.pairs) == (0.0, 0, 3)
    assert report.srcc == pytest.approx(1.0)


def test_drift_is_measured_in_spans() -> None:
    report = compare(outputs([1.0, 5.0, 9.0]), outputs([1.0, 5.0, 9.5]), SCALE, LIMITS["fp32"])
    assert report.score_max == pytest.approx(0.005)
    assert not report.passed


@pytest.mark.parametrize(
    "got",
    [
        outputs([5.0, 1.0, 9.0]),  # another order
        outputs([1.0, 5.0, 9.0], weight=1.1),  # other weights
        outputs([1.0, 5.0, float("nan")]),
    ],
)
def test_faults_fail(got: Outputs) -> None:
    expected = outputs([1.0, 5.0, 9.0])
    measured = {"srcc": float("nan"), "score_max": 0.0}
    assert not within(measured, {"srcc": 0.9})  # NaN keeps no limit
    if np.isfinite(got.scores).all():
        assert not compare(expected, got, SCALE, LIMITS["fp32"]).passed


def test_an_engine_of_one_score_fails() -> None:
    report = compare(outputs([1.0, 5.0, 9.0]), outputs([5.0] * 3), SCALE, LIMITS["fp16"])
    assert (report.srcc, report.plcc, report.passed) == (0.0, 0.0, False)


def test_maps_are_compared() -> None:
    got = outputs([1.0, 5.0, 9.0])._replace(maps=np.full((3, 10, 2, 2), 0.1))
    report = compare(outputs([1.0, 5.0, 9.0]), got, SCALE, LIMITS["fp32"])
    assert report.maps_max == pytest.approx(0.1)
    assert not report.passed


def test_order_flips_counts_pairs() -> None:
    assert order_flips(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])) == (1, 3)


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
    assert report.score_max == verify.NO_NUMBER


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
    nothing = verify._no_numbers(3, 10)
    report = compare(outputs([1.0, 5.0, 9.0]), nothing, SCALE, LIMITS["fp32"])
    assert not report.passed
    assert report.score_max == verify.NO_NUMBER


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
