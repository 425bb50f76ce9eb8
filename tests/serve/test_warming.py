"""A server is ready only with an engine that computes what its bundle does."""

import dataclasses

import numpy as np
import pytest
from support.held_engine import HeldEngine

from drexperts import runtime
from drexperts.runtime import Batcher, Scorer
from drexperts.runtime.errors import InternalError
from drexperts.runtime.reference_crop import reference_crop
from drexperts.serve.service import Service
from drexperts.serve.settings import ServeSettings
from drexperts.serve.warming import warm


class Changed(HeldEngine):
    """Scores are `change(brightness, crops of the call)`."""

    def __init__(self, change) -> None:
        super().__init__(free=True)
        self._change = change

    def run(self, pixels):
        outputs = super().run(pixels)
        return outputs | {"score": self._change(outputs["score"], len(pixels)).astype(np.float32)}


@pytest.fixture(scope="module")
def toy(toy_bundle):
    return runtime.load(toy_bundle, threads=1)


def warmed(toy, engine, states: float | None, precision: str = "fp32"):
    """The Service of an engine, tested against a bundle that states this score."""
    record = dataclasses.replace(toy.engine, precision=precision)
    manifest = dataclasses.replace(toy.manifest, reference_score=states)
    with Batcher(Scorer(manifest, record, engine, batch=4)) as batcher:
        service = Service(batcher, ServeSettings())
        warm(service)
        return service


@pytest.fixture(scope="module")
def brightness(toy) -> float:
    """What HeldEngine scores the reference crop, of a span of 255."""
    return float(reference_crop(toy.preprocessing.crop).mean())


def test_an_engine_is_ready_after_every_batch_size(toy, brightness) -> None:
    engine = HeldEngine(free=True)
    assert warmed(toy, engine, brightness).ready
    assert [len(batch) for batch in engine.batches][:4] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda score, _: score + 5, "a crop in a batch of 1"),
        (lambda score, count: score + 5 * (count == 3), "a crop in a batch of 3"),
        (lambda score, _: score * np.nan, "nan"),
    ],
)
def test_an_engine_that_computes_something_else_is_not(toy, brightness, change, what) -> None:
    with pytest.raises(InternalError, match=what):
        warmed(toy, Changed(change), brightness)


def test_a_precision_may_be_off_by_as_much_as_its_proof(toy, brightness) -> None:
    assert warmed(toy, Changed(lambda score, _: score + 5), brightness, "int8").ready
    with pytest.raises(InternalError):
        warmed(toy, Changed(lambda score, _: score + 30), brightness, "int8")


def test_a_bundle_that_states_no_score_is_named(toy, caplog) -> None:
    assert warmed(toy, HeldEngine(free=True), None).ready
    assert "drx export" in caplog.text
