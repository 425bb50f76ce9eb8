"""Batch invariance: the sizes that are tried, and the faults that are found."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drexperts.export.proof.agreement import LARGEST_NUMBER
from drexperts.export.proof.batch_invariance import batch_sizes, measure_invariance
from drexperts.runtime.manifest import OUTPUTS, BatchProfile, Engine, read_manifest
from drexperts.runtime.proof import BatchInvariance

Arrays = dict[str, np.ndarray]


def test_batch_sizes():
    assert batch_sizes(1) == [1]
    assert batch_sizes(8) == list(range(1, 9))
    assert batch_sizes(40) == [*range(1, 9), 16, 32, 40]
    profiles = (BatchProfile(1, 1, 1), BatchProfile(2, 12, 40))
    assert batch_sizes(40, profiles) == [*range(1, 9), 12, 16, 32, 40]


class LeakySession:
    """Adds a little of the first row to every other row."""

    max_batch, concurrency, description = 4, 2, "leaky"
    image_size: int | None = None

    def __init__(self, leak: float = 0.0, into: str = "score") -> None:
        self.leak, self.into = leak, into

    def run(self, pixels: np.ndarray) -> Arrays:
        own = pixels.mean((1, 2, 3)).astype(np.float32)
        leaky = own + self.leak * own[0] * (np.arange(len(own)) > 0)
        values = {name: leaky if name == self.into else own for name in OUTPUTS}
        return {
            "score": values["score"],
            "weights": np.repeat(values["weights"][:, None], 10, 1),
            "maps": np.repeat(values["maps"][:, None, None, None] / 255, 10, 1),
        }

    def close(self) -> None:
        """There is nothing to free."""


def invariance(
    session: LeakySession, bundle: Path, engine: Engine | None = None, count: int = 6
) -> BatchInvariance:
    manifest = read_manifest(bundle)
    images = [np.full((40, 40, 3), 10 * i + 5, np.uint8) for i in range(count)]
    return measure_invariance(lambda _: session, images, manifest, engine or fp32(bundle))


def fp32(bundle: Path) -> Engine:
    return replace(read_manifest(bundle).engines[0], precision="fp32")


def test_scores_that_are_not_finite_are_not_invariant(toy_bundle):
    report = invariance(LeakySession(float("nan")), toy_bundle)
    assert not report.passed
    assert report.score_max == LARGEST_NUMBER


@pytest.mark.parametrize("into", OUTPUTS)
def test_a_leak_between_rows_is_found(into, toy_bundle):
    report = invariance(LeakySession(), toy_bundle)
    assert report.passed
    assert report.batches == (1, 2, 3, 4)
    report = invariance(LeakySession(1e-2, into), toy_bundle)
    assert not report.passed
    drifts = {name: getattr(report, f"{name}_max") for name in OUTPUTS}
    assert [name for name, drift in drifts.items() if drift > 0] == [into]


class RangeSession(LeakySession):
    """Scales by what is brightest in the batch, as an engine with ranges of whole batches does."""

    def run(self, pixels: np.ndarray) -> Arrays:
        step = np.float32(pixels.max() / 64)
        return {name: step * np.round(v / step) for name, v in super().run(pixels).items()}


def test_neighbours_that_widen_a_range_are_found(toy_bundle):
    report = invariance(RangeSession(), toy_bundle, count=1)
    assert "extremes" in report.cases
    assert not report.passed


class ForgetfulSession(LeakySession):
    """Right in the main thread, wrong when it is called from several threads at once."""

    def __init__(self) -> None:
        super().__init__()
        self.barrier = threading.Barrier(2)
        self.calls = 0

    def run(self, pixels: np.ndarray) -> Arrays:
        right = super().run(pixels)
        if threading.current_thread() is threading.main_thread():
            return right
        self.calls += 1
        self.barrier.wait(10)  # two at once, or it breaks
        return right | {"score": right["score"] + 1}


def test_an_engine_with_profiles_is_called_from_several_threads_at_once(toy_bundle, planned):
    session = ForgetfulSession()
    report = invariance(session, toy_bundle, planned(profiles=(BatchProfile(1, 2, 4),)))
    assert not report.passed
    assert report.cases[-1] == "at once"
    assert session.calls == 4
