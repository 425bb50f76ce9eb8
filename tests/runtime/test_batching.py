import asyncio
import concurrent.futures
import dataclasses
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.held_engine import HeldEngine
from support.make_bundle import main as make_bundle
from support.waiting import until

from drexperts import runtime
from drexperts.runtime import Batcher, Scorer
from drexperts.runtime.decoding.decoders import LocalDecoder
from drexperts.runtime.errors import (
    ArgumentError,
    ClosedError,
    DeadlineError,
    DeviceError,
    ImageError,
    InternalError,
    OutOfMemoryError,
    QueueFullError,
    UserError,
)
from drexperts.runtime.preprocess import most_crops

WAIT = 60  # seconds, after which a test hangs


def grey(level, width=32, height=32):
    """One crop of this brightness, or more for a larger image."""
    return np.full((height, width), level, np.uint8)


@pytest.fixture(scope="module")
def toy(toy_bundle):
    return runtime.load(toy_bundle, threads=1)


@pytest.fixture(scope="module")
def encoded_photo(photo, encode):
    return encode(photo(40, 40), "PNG")


@pytest.fixture(scope="module")
def encoded_grey(encode):
    return encode(Image.fromarray(grey(50)), "PNG")


@pytest.fixture
def engine():
    return HeldEngine()


@pytest.fixture
def scorer(toy, engine):
    return Scorer(toy.manifest, toy.engine, engine, batch=4)


@pytest.fixture
def batcher(scorer, engine):
    with Batcher(scorer) as batcher:
        yield batcher
        engine.go_on()


def held(batcher, engine):
    """Begin a call of the engine that the test has to let go; the future of its image."""
    future = batcher.submit(grey(0))
    engine.wait_entered()
    return future


def values(futures):
    return [round(future.result(WAIT).value) for future in futures]


@pytest.fixture
def ours():
    """Lists the threads that this test has started and that live."""
    before = set(threading.enumerate())

    def started():
        return [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith("drexperts-") and thread not in before
        ]

    return started


def test_scores_are_those_of_the_scorer(toy, encoded_photo, photo, tmp_path):
    (tmp_path / "photo.png").write_bytes(encoded_photo)
    sources = [encoded_photo, photo(90, 40), np.asarray(photo(33, 70)), tmp_path / "photo.png"]
    with Batcher(toy) as batcher:
        futures = [batcher.submit(source) for source in sources]
        assert [future.result(WAIT) for future in futures] == [toy.score(each) for each in sources]


def test_key_and_maps(toy, photo):
    with Batcher(toy) as batcher:
        score = batcher.submit(photo(90, 40), key="mine", maps=True).result(WAIT)
    assert score.source == "mine"
    wanted = toy.score(photo(90, 40), maps=True)
    assert score.maps is not None
    np.testing.assert_array_equal(score.maps.values, wanted.maps.values)


def test_an_unreadable_image_fails_alone(toy, photo, tmp_path):
    with Batcher(toy) as batcher:
        sources: list[Any] = [b"", b"junk", tmp_path / "none.png", 7]
        bad = [batcher.submit(source) for source in sources]
        bad.append(batcher.submit(photo(40, 40), key=""))
        good = batcher.submit(photo(40, 40))
        for future in bad:
            with pytest.raises(ImageError):
                future.result(WAIT)
        assert good.result(WAIT) == toy.score(photo(40, 40))
        assert batcher.pending_crops == 0


def test_crops_get_the_rows_of_every_output(toy):
    pixels = np.random.default_rng(0).integers(0, 256, (11, 3, 32, 32), np.uint8)
    with Batcher(toy) as batcher:
        future = batcher.submit_crops(pixels)
        calls = toy.session.run(pixels[:8]), toy.session.run(pixels[8:])
        pixels[:] = 0  # the caller's own again
        rows = future.result(WAIT)
    assert set(rows) == {"score", "weights", "maps"}
    for name, found in rows.items():
        wanted = np.concatenate([call[name] for call in calls])
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 3, 32, 32), np.float32),
        np.zeros((0, 3, 32, 32), np.uint8),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((1, 3, 31, 32), np.uint8),
        np.zeros((513, 3, 32, 32), np.uint8),
    ],
)
def test_other_crops_are_refused(batcher, pixels):
    with pytest.raises(ArgumentError, match="pixels"):
        batcher.submit_crops(pixels)


def test_an_idle_engine_runs_what_there_is(batcher, engine):
    held(batcher, engine)
    assert engine.batches == [[0]]


def test_a_busy_engine_fills_its_batches_across_callers(batcher, engine):
    held(batcher, engine)
    futures = [batcher.submit(grey(level)) for level in range(1, 7)]
    engine.go_on()
    assert values(futures) == [1, 2, 3, 4, 5, 6]
    assert engine.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_an_image_of_several_crops_shares_batches(batcher, engine):
    held(batcher, engine)
    large, small = batcher.submit(grey(9, 64, 64)), batcher.submit(grey(7))
    engine.go_on()
    assert large.result(WAIT).raw == (9.0,) * 4
    assert small.result(WAIT).raw == (7.0,)


def test_one_image_does_not_wait_for_a_group_of_sixty(batcher, engine):
    held(batcher, engine)
    many = [batcher.submit(grey(1), group="request") for _ in range(60)]
    engine.go()
    engine.wait_entered()
    one = batcher.submit(grey(2))
    engine.go()
    engine.wait_entered()
    engine.go()
    assert one.result(WAIT).value == 2
    assert sum(future.done() for future in many) <= 8
    engine.go_on()
    assert values(many) == [1] * 60


def test_decoding_takes_turns_too(scorer, engine, monkeypatch, encoded_grey):
    order, gate = [], threading.Event()

    def crops(source):
        gate.wait(WAIT)
        order.append(len(source))
        return LocalDecoder.crops(scorer.decoder, source)

    monkeypatch.setattr(scorer.decoder, "crops", crops)
    engine.go_on()
    with Batcher(scorer, decoders=1) as batcher:
        many = [batcher.submit(encoded_grey, group="request") for _ in range(20)]
        one = batcher.submit(encoded_grey + b"\0")
        gate.set()
        one.result(WAIT)
        for future in many:
            future.result(WAIT)
    assert order.index(len(encoded_grey) + 1) <= 2


def test_no_more_images_are_decoded_at_once_than_there_are_decoders(
    scorer, engine, monkeypatch, encoded_grey
):
    inside, most, meeting = [0], [0], threading.Barrier(3)
    lock = threading.Lock()

    def crops(source):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        meeting.wait(WAIT)  # three are in here together
        with lock:
            inside[0] -= 1
        return LocalDecoder.crops(scorer.decoder, source)

    monkeypatch.setattr(scorer.decoder, "crops", crops)
    engine.go_on()
    with Batcher(scorer, decoders=3) as batcher:
        futures = [batcher.submit(encoded_grey) for _ in range(30)]
        assert values(futures) == [50] * 30
    assert most[0] == 3


def test_a_full_queue_refuses_at_once(scorer, engine):
    with Batcher(scorer, max_pending_crops=6) as batcher:
        first = held(batcher, engine)
        large = batcher.submit(grey(1, 64, 64))
        assert batcher.pending_crops == 5
        with pytest.raises(QueueFullError, match=r"5 of 6 crops .* max_pending_crops"):
            batcher.submit(grey(2))  # 4 crops are reserved until it is decoded
        batcher.submit_crops(np.zeros((1, 3, 32, 32), np.uint8))
        with pytest.raises(QueueFullError):
            batcher.submit_crops(np.zeros((1, 3, 32, 32), np.uint8))
        engine.go_on()
        first.result(WAIT), large.result(WAIT)
        until(lambda: batcher.pending_crops == 0)
        assert batcher.submit(grey(2)).result(WAIT).value == 2


def test_the_bound_holds_with_many_threads(toy, encoded_photo):
    most, seen, stop = 12, [], threading.Event()
    refused = 0

    def watch():
        while not stop.is_set():
            seen.append(shared.pending_crops)

    def client(seed):
        nonlocal refused
        futures = []
        for step in range(40):
            try:
                source = encoded_photo if (step + seed) % 3 else b"junk"
                futures.append(shared.submit(source, timeout=60 if step % 2 else None))
                if step % 5 == 0:
                    futures[-1].cancel()
            except QueueFullError:
                refused += 1
        return futures

    with Batcher(toy, max_pending_crops=most) as shared, ThreadPoolExecutor(9) as pool:
        watching = pool.submit(watch)
        futures = [each for made in pool.map(client, range(8)) for each in made]
        concurrent.futures.wait(futures, WAIT)
        stop.set()
        watching.result(WAIT)
        wanted = toy.score(encoded_photo)
        for future in futures:
            if not future.cancelled() and future.exception(WAIT) is None:
                assert future.result() == wanted
            elif not future.cancelled():
                assert isinstance(future.exception(), ImageError)
        until(lambda: shared.pending_crops == 0)
    assert refused
    assert min(seen) >= 0
    assert max(seen) <= most


def test_a_cancelled_image_is_dropped(batcher, engine):
    first = held(batcher, engine)
    dropped, kept = batcher.submit(grey(1)), batcher.submit(grey(2))
    assert batcher.pending_crops == 3
    assert dropped.cancel()
    assert batcher.pending_crops == 2
    assert not first.cancel()  # the engine has it
    engine.go_on()
    assert values([first, kept]) == [0, 2]
    assert engine.batches == [[0], [2]]
    assert concurrent.futures.wait([dropped], WAIT).done == {dropped}


def test_an_image_is_cancelled_while_it_is_decoded(scorer, engine, monkeypatch, encoded_grey):
    entered, gate = threading.Event(), threading.Event()

    def crops(source):
        entered.set()
        gate.wait(WAIT)
        return LocalDecoder.crops(scorer.decoder, source)

    monkeypatch.setattr(scorer.decoder, "crops", crops)
    with Batcher(scorer, decoders=1) as batcher:
        decoding, waiting = batcher.submit(encoded_grey), batcher.submit(encoded_grey)
        assert entered.wait(WAIT)
        assert batcher.pending_crops == 8
        assert decoding.cancel()
        assert waiting.cancel()
        assert batcher.pending_crops == 4  # what is being decoded takes memory still
        gate.set()
        until(lambda: batcher.pending_crops == 0)
    assert engine.batches == []


def test_what_is_not_begun_in_time_is_dropped(batcher, engine):
    first = held(batcher, engine)
    late = [batcher.submit(grey(1), timeout=0.01), batcher.submit(grey(1), timeout=0)]
    late.append(batcher.submit_crops(np.zeros((2, 3, 32, 32), np.uint8), timeout=0.001))
    patient = batcher.submit(grey(2), timeout=600)
    for future in late:
        with pytest.raises(DeadlineError, match="in time"):
            future.result(WAIT)  # although the engine is still busy
    assert batcher.pending_crops == 2
    engine.go_on()
    assert values([first, patient]) == [0, 2]
    assert engine.batches == [[0], [2]]


def test_what_has_begun_is_not_late(batcher, engine):
    begun = batcher.submit(grey(3), timeout=600)
    engine.wait_entered()
    batcher._pending._jobs[begun].deadline = 0.0  # as if the time had passed meanwhile
    with pytest.raises(DeadlineError):
        batcher.submit(grey(1), timeout=0).result(WAIT)
    engine.go()
    assert begun.result(WAIT).value == 3


def test_a_timeout_is_a_number(batcher):
    with pytest.raises(UserError, match="timeout"):
        batcher.submit(grey(1), timeout=float("nan"))


def test_close_finishes_what_was_accepted(scorer, engine, encoded_grey, ours):
    batcher = Batcher(scorer)
    futures = [held(batcher, engine), *(batcher.submit(encoded_grey) for _ in range(9))]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(batcher.close)
        until(lambda: batcher._pending.closed)
        with pytest.raises(ClosedError):
            batcher.submit(grey(1))
        with pytest.raises(ClosedError):
            batcher.submit_crops(np.zeros((1, 3, 32, 32), np.uint8))
        engine.go_on()
        closing.result(WAIT)
    assert all(future.done() for future in futures)
    assert values(futures) == [0] + [50] * 9
    assert ours() == []
    batcher.close()


def test_close_fails_what_is_left_after_its_time(scorer, engine, ours):
    batcher = Batcher(scorer)
    running = held(batcher, engine)
    waiting = [batcher.submit(grey(1)) for _ in range(3)]
    batcher.close(timeout=0.01)
    for future in (running, *waiting):
        with pytest.raises(ClosedError, match="before"):
            future.result(0)
    engine.go_on()
    until(lambda: not ours())
    assert engine.batches == [[0]]
    assert batcher.pending_crops == 0


def test_an_unused_batcher_has_no_threads(scorer, ours):
    with Batcher(scorer):
        assert ours() == []


def test_an_error_of_one_call_fails_its_images_only(batcher, engine):
    first = held(batcher, engine)
    engine.fail_next(InternalError("a bad day"))
    engine.go()
    with pytest.raises(InternalError, match="a bad day"):
        first.result(WAIT)
    assert batcher.failure is None
    engine.go_on()
    assert batcher.submit(grey(5)).result(WAIT).value == 5


def test_who_hears_of_a_failure_may_submit_again(scorer, engine):
    """The place of what failed is free by then, also in the smallest queue."""
    with Batcher(scorer, max_pending_crops=most_crops(scorer.preprocessing)) as batcher:
        again = []
        engine.fail_next(InternalError("a bad day"))
        failing = batcher.submit(grey(1))
        failing.add_done_callback(lambda _: again.append(batcher.submit(grey(2))))
        engine.go_on()
        with pytest.raises(InternalError, match="a bad day"):
            failing.result(WAIT)
        until(lambda: again)
        assert again[0].result(WAIT).value == 2


def test_an_image_with_crops_in_two_calls_fails_once(batcher, engine):
    first = held(batcher, engine)
    small, large = batcher.submit(grey(1)), batcher.submit(grey(2, 64, 64))
    engine.go()
    engine.wait_entered()
    engine.fail_next(InternalError("a bad day"))
    engine.go()
    for future in (small, large):
        with pytest.raises(InternalError, match="a bad day"):
            future.result(WAIT)
    engine.go_on()
    assert values([first, batcher.submit(grey(3))]) == [0, 3]
    assert engine.batches == [[0], [1, 2, 2, 2], [3]]  # its last crop is not run for nothing
    until(lambda: batcher.pending_crops == 0)


@pytest.mark.parametrize("error", [DeviceError("the GPU fell off"), UserError("closed")])
def test_a_failure_for_good_fails_everything(batcher, engine, error, caplog):
    futures = [held(batcher, engine), *(batcher.submit(grey(1)) for _ in range(9))]
    engine.fail_next(error)
    engine.go()
    for future in futures:
        assert future.exception(WAIT) is error
    assert batcher.failure is error
    for _ in range(3):
        with pytest.raises(type(error)) as caught:
            batcher.submit(grey(1))
        frames = len(caught.traceback)
    assert frames < 8  # a traceback that grew with each would be a leak
    with pytest.raises(type(error)):
        batcher.submit_crops(np.zeros((1, 3, 32, 32), np.uint8))
    assert sum("nothing more is scored" in line for line in caplog.messages) == 1
    assert batcher.pending_crops == 0


def test_errors_in_a_row_are_a_failure_for_good(batcher, engine):
    engine.go_on()
    for errors in (2, 3):
        engine.fail_next(OutOfMemoryError("full"), errors)
        for _ in range(errors):
            assert isinstance(batcher.submit(grey(1)).exception(WAIT), OutOfMemoryError)
        if errors == 2:
            assert batcher.submit(grey(1)).result(WAIT).value == 1
    until(lambda: batcher.failure is not None)


def test_a_neighbour_without_finite_scores_fails_alone(batcher, engine):
    first = held(batcher, engine)
    futures = [batcher.submit(grey(level)) for level in (1, 255, 2)]
    engine.go_on()
    assert values([first, futures[0], futures[2]]) == [0, 1, 2]
    with pytest.raises(InternalError, match="finite"):
        futures[1].result(WAIT)


def test_as_many_calls_run_at_once_as_the_engine_allows(toy):
    engine = HeldEngine(concurrency=2)
    with Batcher(Scorer(toy.manifest, toy.engine, engine, batch=4)) as batcher:
        large = batcher.submit(grey(1, 64, 64))
        engine.wait_entered()
        other = batcher.submit(grey(2, 64, 64))
        engine.wait_entered()  # the first is still inside
        engine.go_on()
        assert large.result(WAIT).raw == (1.0,) * 4
        assert other.result(WAIT).raw == (2.0,) * 4


def test_crops_of_an_image_in_two_streams(toy):
    engine = HeldEngine(concurrency=2)
    with Batcher(Scorer(toy.manifest, toy.engine, engine, batch=2)) as batcher:
        future = batcher.submit(grey(7, 64, 64), maps=True)
        engine.wait_entered()
        engine.wait_entered()
        engine.go_on()
        assert future.result(WAIT).raw == (7.0,) * 4


def test_max_delay_waits_for_a_full_batch_only(scorer, engine):
    engine.go_on()
    with Batcher(scorer, max_delay=600) as batcher:
        futures = [batcher.submit(grey(level)) for level in (1, 2, 3)]
        assert engine.batches == []
        futures.append(batcher.submit(grey(4)))
        assert values(futures) == [1, 2, 3, 4]
        assert engine.batches == [[1, 2, 3, 4]]
        last = batcher.submit(grey(5))
        batcher.close()
        assert last.result(0).value == 5
    with Batcher(scorer, max_delay=0.01) as batcher:
        assert batcher.submit(grey(6)).result(WAIT).value == 6


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_pending_crops": 3},
        {"max_pending_crops": 8.0},
        {"decoders": 0},
        {"max_delay": -1},
        {"max_delay": float("nan")},
    ],
)
def test_invalid_arguments(scorer, arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        Batcher(scorer, **arguments)


def test_maps_that_a_bundle_lacks(toy, engine):
    manifest = dataclasses.replace(toy.manifest, outputs=("score", "weights"))
    with Batcher(Scorer(manifest, toy.engine, engine)) as batcher, pytest.raises(UserError):
        batcher.submit(grey(1), maps=True)


def test_an_observer_is_told(scorer, engine, encoded_grey, caplog):
    class Observer:
        def __init__(self):
            self.calls = []

        def decoded(self, seconds):
            self.calls.append("decoded")
            assert seconds >= 0

        def queued(self, seconds):
            self.calls.append("queued")
            assert seconds >= 0

        def ran(self, seconds, crops):
            self.calls.append(crops)
            raise ValueError("an observer's own failure")

    observer = Observer()
    engine.go_on()
    with Batcher(scorer, observer=observer) as batcher:
        batcher.submit(encoded_grey).result(WAIT)
        batcher.submit_crops(np.zeros((3, 3, 32, 32), np.uint8)).result(WAIT)
    assert observer.calls == ["decoded", 1, "queued", 3, "queued"]
    assert "an observer of batches failed" in caplog.text


def test_callbacks_may_raise_submit_and_close(batcher, engine, caplog):
    again: Future[Future[runtime.Score]] = Future()

    def submit(_):
        again.set_result(batcher.submit(grey(2)))

    def fail(_):
        raise SystemExit("a caller's bug")

    first = held(batcher, engine)
    second = batcher.submit(grey(1))
    for future in (first, second):
        future.add_done_callback(fail)
    third = batcher.submit(grey(3))
    third.add_done_callback(submit)
    third.add_done_callback(lambda _: batcher.close())
    engine.go_on()
    assert values([second, third, again.result(WAIT)]) == [1, 3, 2]
    assert "a callback of a future failed" in caplog.text


def test_asyncio_waits_and_cancels(batcher, engine):
    async def client():
        loop = asyncio.get_running_loop()
        first = asyncio.wrap_future(batcher.submit(grey(1)))
        await loop.run_in_executor(None, engine.wait_entered)
        dropped = batcher.submit(grey(2))
        task = asyncio.ensure_future(asyncio.wrap_future(dropped))
        last = asyncio.wrap_future(batcher.submit(grey(3)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not dropped.cancelled():  # asyncio tells it in a turn of its own
            await asyncio.sleep(0)
        engine.go_on()
        return [(await each).value for each in (first, last)]

    assert asyncio.run(client()) == [1, 3]
    assert engine.batches == [[1], [3]]


def test_nothing_is_kept_of_what_has_ended(batcher, engine):
    engine.go_on()
    gc.collect()
    gc.disable()
    try:
        futures = [batcher.submit(grey(level), maps=True, timeout=600) for level in range(9)]
        results = [weakref.ref(future.result(WAIT)) for future in futures]
        futures = [weakref.ref(future) for future in futures]
        batcher.submit(grey(1)).result(WAIT)
        until(lambda: not any(each() for each in futures + results))
    finally:
        gc.enable()
    assert not batcher._pending._jobs


def test_a_dropped_batcher_finishes_and_ends_its_threads(scorer, engine, ours):
    future = held(Batcher(scorer), engine)
    gc.collect()
    engine.go()
    assert future.result(WAIT).value == 0
    until(lambda: not ours())


def _score_in_child(batcher, queue):
    queue.put((batcher.pending_crops, batcher.submit(grey(100)).result(WAIT).value))
    batcher.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_has_an_empty_one_of_its_own(toy_bundle):
    context = multiprocessing.get_context("fork")
    with runtime.load(toy_bundle, threads=1) as scorer, Batcher(scorer) as batcher:
        batcher.submit(grey(10)).result(WAIT)
        with batcher._pending._lock:  # as if another thread were busy with it
            queue = context.SimpleQueue()
            child = context.Process(target=_score_in_child, args=(batcher, queue))
            child.start()
        assert queue.get() == (0, 100.0)
        child.join(WAIT)
        assert child.exitcode == 0
        assert batcher.submit(grey(20)).result(WAIT).value == 20


@pytest.mark.slow
def test_a_program_may_end_without_closing_it(toy_bundle):
    code = (
        "import sys, numpy as np; from drexperts import runtime\n"
        "batcher = runtime.Batcher(runtime.load(sys.argv[1], threads=1))\n"
        "batcher.submit(np.zeros((32, 32), np.uint8)).result(60)\n"
        "futures = [batcher.submit(np.zeros((32, 32), np.uint8)) for _ in range(100)]\n"
        "print('end')"
    )
    command = [sys.executable, "-P", "-c", code, str(toy_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.slow
def test_hostile_neighbours_change_no_score(tmp_path, photo, encode):
    make_bundle(tmp_path)
    with runtime.load(tmp_path / "bundle", threads=1) as scorer:
        (proof,) = [engine.invariance for engine in scorer.manifest.engines]
        assert proof is not None
        span = scorer.manifest.scale.span
        images = [encode(photo(60 + 9 * i, 90, i), "PNG") for i in range(6)]
        hostile: list[Any] = [
            encode(Image.new("RGB", (3000, 2000), "white"), "PNG"),
            np.random.default_rng(0).integers(0, 256, (64, 4000, 3), np.uint8),
            np.zeros((1, 1), np.uint8),
            images[0][: len(images[0]) // 2],
            b"junk",
        ]
        wanted = [scorer.score(image).value for image in images]
        with Batcher(scorer, decoders=3) as batcher:
            for turn in range(4):
                beside = [batcher.submit(source) for source in hostile]
                futures = [batcher.submit(image) for image in images[turn:] + images[:turn]]
                beside += [batcher.submit(source) for source in hostile]
                found = [future.result(WAIT).value for future in futures]
                expected = wanted[turn:] + wanted[:turn]
                np.testing.assert_allclose(found, expected, rtol=0, atol=proof.tolerance * span)
                failed = [isinstance(each.exception(WAIT), ImageError) for each in beside]
                assert failed == [False, False, False, True, True] * 2
