"""A server is ready only with an engine that computes what its bundle does."""

import dataclasses

import numpy as np
import pytest
from support.held_engine import HeldEngine

from drexperts import runtime
from drexperts.runtime import Batcher, Scorer
from drexperts.runtime.errors import InternalError
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


def warmed(toy, engine, bundle, backend="onnx"):
    """The Service of an engine that was tested with a bundle."""
    record = dataclasses.replace(toy.engine, backend=backend)
    with Batcher(Scorer(toy.manifest, record, engine, batch=4)) as batcher:
        service = Service(batcher, ServeSettings())
        warm(service, bundle)
        return service


@pytest.mark.parametrize("backend", ["onnx", "onnx-cuda"])
def test_an_engine_is_ready_after_every_batch_size(toy, toy_bundle, backend) -> None:
    engine = HeldEngine(free=True)
    assert warmed(toy, engine, toy_bundle, backend).ready
    assert [len(batch) for batch in engine.batches][:4] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda score, _: score + 30, "the test image"),  # of a span of 100
        (lambda score, count: score + 30 * (count == 3), "a crop in a batch of 3"),
        (lambda score, _: score * np.nan, "nan"),
    ],
)
def test_an_engine_that_computes_something_else_is_not(toy, toy_bundle, change, what) -> None:
    with pytest.raises(InternalError, match=what):
        warmed(toy, Changed(change), toy_bundle, "onnx-cuda")


def test_without_a_reference_that_is_said(toy, tmp_path, caplog) -> None:
    warmed(toy, Changed(lambda score, _: score + 30), tmp_path, "onnx-cuda")
    assert "tested against itself" in caplog.text
