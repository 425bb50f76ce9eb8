"""Requests of several parts: what they take of the queue, and what is left when nobody waits."""

import asyncio
from concurrent.futures import Future

import numpy as np
import pytest
from support.held_engine import HeldEngine
from support.waiting import until

from drexperts import runtime
from drexperts.runtime import Batcher, Score, Scorer
from drexperts.runtime.errors import QueueFullError, UserError
from drexperts.runtime.preprocess import most_crops
from drexperts.serve.oip import InferRequest, Tensor
from drexperts.serve.service import Service
from drexperts.serve.settings import ServeSettings


@pytest.fixture
def engine():
    return HeldEngine()


@pytest.fixture
def scorer(toy_bundle, engine):
    toy = runtime.load(toy_bundle, threads=1)
    return Scorer(toy.manifest, toy.engine, engine, batch=4)


def crops_request(scorer, count):
    side = scorer.preprocessing.crop
    pixels = np.arange(count, dtype=np.uint8).repeat(3 * side * side)
    shape = (count, 3, side, side)
    return InferRequest("", (Tensor("pixels", "UINT8", shape, pixels.reshape(shape)),))


def test_crops_that_nobody_waits_for_are_not_computed(scorer, engine) -> None:
    with Batcher(scorer) as batcher:
        service = Service(batcher, ServeSettings())

        async def leave():
            model = service.models["drexperts_crops"]
            asking = asyncio.ensure_future(service.infer(model, crops_request(scorer, 100)))
            await asyncio.to_thread(engine.wait_entered)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        asyncio.run(leave())
        engine.go_on()
        until(lambda: not batcher.pending_crops)
        assert sum(map(len, engine.batches)) <= 8


def test_crops_of_parts_are_in_their_order(scorer, engine) -> None:
    engine.go_on()
    with Batcher(scorer) as batcher:
        service = Service(batcher, ServeSettings())
        model = service.models["drexperts_crops"]
        response = asyncio.run(service.infer(model, crops_request(scorer, 30)))
        (score, *_) = response.outputs
        np.testing.assert_array_equal(np.asarray(score.data)[:, 0], np.arange(30))


class Crowded:
    """In place of a Batcher: the submissions of some numbers, from 0, find no room."""

    def __init__(self, scorer, full):
        self.scorer, self.full, self.asked = scorer, full, 0

    def submit(self, image, **_):
        self.asked += 1
        if self.asked - 1 in self.full:
            raise QueueFullError("full")
        future: Future[Score] = Future()
        future.set_result(self.scorer.score(image))
        return future


@pytest.fixture
def image(photo, encode):
    return encode(photo(32, 32), "PNG")


def test_a_form_that_was_begun_waits_for_room(scorer, engine, image) -> None:
    engine.go_on()
    crowded = Crowded(scorer, {1, 2, 5})
    service = Service(crowded, ServeSettings())  # type: ignore[arg-type]
    scores = asyncio.run(service.score_all([("a", image)] * 4))
    assert scores == [scorer.score(image)] * 4
    assert crowded.asked == 4 + 3


def test_a_form_that_finds_no_room_is_told_at_once(scorer, image) -> None:
    crowded = Crowded(scorer, {0})
    least = ServeSettings(queue=most_crops(scorer.preprocessing))
    service = Service(crowded, least)  # type: ignore[arg-type]
    with pytest.raises(QueueFullError):
        asyncio.run(service.score_all([("a", image)] * 3))


@pytest.mark.parametrize("wrong", [{"queue": -1}, {"max_images": 0}, {"max_pixels": 0}])
def test_settings_that_cannot_be(wrong) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        ServeSettings(**wrong)
