"""The scenarios: on a toy bundle, and the server's logic on a clock that the test controls."""

import functools
import itertools
import math
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.reporting import Recorder

from drexperts import runtime
from drexperts.bench.reports import ENOUGH, FEWEST, FIRST_LOAD, TOLERANCE, Server, Trial
from drexperts.bench.scenarios import (
    IMAGES_PER_QUERY,
    SCENARIOS,
    Queue,
    allowed_late,
    arrivals,
    measure,
    multi_stream,
    offline,
    precise_wait,
    search,
    server,
    single_stream,
)
from drexperts.bench.timing import Summary, seconds
from drexperts.runtime.errors import ImageError, UserError
from drexperts.runtime.scorer import Scorer


@pytest.fixture(scope="module")
def scorer(toy_bundle: Path) -> Scorer:
    return runtime.load(toy_bundle, threads=1)


@pytest.fixture(scope="module")
def images(photo: Callable[..., Any], encode: Callable[..., bytes]) -> list[bytes]:
    return [encode(photo(40, 40, seed), "PNG") for seed in range(3)]


class FakeTime:
    """A clock that advances only where something waits or works."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    def wait(self, duration: float) -> None:
        self.now += max(0.0, duration)


class FakeScorer:
    """Takes `service` seconds per image of a fake time, and keeps the streams that it was given."""

    def __init__(self, time: FakeTime, service: float) -> None:
        self.time, self.service = time, service
        self.streams: list[list[bytes]] = []

    def score_stream(self, sources: Sequence[bytes]) -> Iterator[Any]:
        self.streams.append(list(sources))
        for _ in self.streams[-1]:
            self.time.now += self.service
            yield SimpleNamespace(error=None)


def served(
    planned: Sequence[float],
    service: float,
    bound_s: float = math.inf,
    images: Sequence[bytes] = (b"",),
) -> tuple[list[float], list[list[bytes]]]:
    """Latencies, and the streams that were scored."""
    time = FakeTime()
    scorer: Any = FakeScorer(time, service)
    queue = Queue(scorer, images, planned, bound_s, time.clock, time.wait)
    queue.serve()
    return queue.latency, scorer.streams


def test_latency_counts_from_the_planned_arrival() -> None:
    """First come, first served: it ends one service after it arrives, or after the one before."""
    planned = arrivals(rate=8.0, queries=300, most=math.inf, seed=1)
    latency, streams = served(planned, service=0.1)
    end, expected = 0.0, []
    for arrival in planned:
        end = max(end, arrival) + 0.1
        expected.append(end - arrival)
    assert latency == pytest.approx(expected)
    assert max(latency) > 0.2, "nothing ever waited"
    assert sum(map(len, streams)) == 300


def test_images_that_wait_are_one_stream_and_taken_in_turn() -> None:
    latency, streams = served([0.0, 0.1, 0.2, 0.3, 5.0], 1.0, images=(b"a", b"b"))
    assert streams == [[b"a"], [b"b", b"a", b"b"], [b"a"]]
    assert latency == pytest.approx([1.0, 1.9, 2.8, 3.7, 1.0])


def test_a_trial_ends_once_its_p99_cannot_meet_the_bound() -> None:
    planned = arrivals(10.0, 400, math.inf, 0)
    latency, _ = served(planned, service=1.0, bound_s=2.0)
    assert len(latency) < 20
    assert sum(taken > 2.0 for taken in latency) == allowed_late(400) + 1
    assert not Trial(10.0, 400, tuple(latency)).meets(2.0)


@pytest.mark.parametrize("queries", [1, 2, 20, 99, 100, 101, 200, 201, 400, 1000])
def test_as_many_may_be_late_as_leave_the_p99_open(queries: int) -> None:
    def p99(late: int) -> float:
        return Summary.of([2.0] * late + [1.0] * (queries - late)).p99

    allowed = allowed_late(queries)
    assert p99(allowed + 1) == pytest.approx(2.0)
    assert p99(allowed) < 1.995, "with less of a delay the bound is met"


def test_arrivals_are_poisson_and_the_same_for_a_seed() -> None:
    times = arrivals(50.0, 20_000, math.inf, 3)
    assert times[0] == 0
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    counts = np.histogram(times, bins=np.arange(0, 399))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.25)
    assert arrivals(50.0, 20_000, math.inf, 3) == times
    assert arrivals(50.0, 20_000, math.inf, 4) != times


@pytest.mark.parametrize("queries", [2, FEWEST, 400])
@pytest.mark.parametrize("most", [7.0, math.inf])
def test_the_rate_of_arrivals_is_the_one_asked_for(queries: int, most: float) -> None:
    """Whatever the seed draws: unscaled, seed 0 makes 0.72 of it with 20 queries."""
    for seed in range(5):
        times = arrivals(3.0, queries, most, seed)
        assert len(times) == min(queries, 22 if most == 7.0 else queries)
        assert (len(times) - 1) / times[-1] == pytest.approx(3.0, rel=1e-12)


def test_arrivals_without_time() -> None:
    assert arrivals(1e-9, 100, 2.0, 0) == arrivals(10.0, 100, -1.0, 0) == [0.0]


@pytest.mark.parametrize("capacity", [0.013, 0.4, 1.0, 3.7, 4.0, 5123.0])
def test_the_search_finds_the_highest_rate(capacity: float) -> None:
    tried: list[float] = []

    def meets(rate: float) -> bool:
        tried.append(rate)
        return rate <= capacity

    search(meets, 1.0)
    found = max(rate for rate in tried if rate <= capacity)
    assert capacity <= TOLERANCE * found
    assert len(tried) <= 6 + abs(math.log2(capacity)) + 1
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize(
    "answers", [[None], [False, False, None], [True, None], [True, False, False, None]]
)
def test_the_search_ends_when_time_runs_out(answers: list[bool | None]) -> None:
    asked = iter(answers)
    search(lambda _: next(asked), 8.0)
    assert next(asked, "all asked") == "all asked"


def test_streams_take_the_images_in_turn(scorer: Scorer, images: list[bytes]) -> None:
    seen: list[Any] = []

    def score(source: Any) -> Any:
        seen.append(source)
        return scorer.score(source)

    spy: Any = SimpleNamespace(score=score)
    assert len(single_stream(spy, images, queries=4)) == 4
    assert seen == [*images, *images[:2]], "the first of them to warm up"
    seen.clear()
    assert len(multi_stream(spy, images, queries=2)) == 2
    turns = itertools.cycle(images)
    assert seen == [[next(turns) for _ in range(IMAGES_PER_QUERY)] for _ in range(3)]


def test_time_limits_every_scenario(
    scorer: Scorer, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reading the clock takes 10 ms, and nothing else does.
    monkeypatch.setattr("time.perf_counter", itertools.count(step=0.01).__next__)
    assert len(single_stream(scorer, images, time_limit=0)) == 1
    assert len(multi_stream(scorer, images, time_limit=0)) == 1
    assert len(single_stream(scorer, images, time_limit=0.2, queries=10**9)) > 1
    assert offline(scorer, images, time_limit=0.2, count=10**9).images > 1


def test_offline_scores_all_of_them(scorer: Scorer, images: list[bytes]) -> None:
    progress = Recorder()
    assert offline(scorer, images, count=10, progress=progress).images == 10
    assert progress.messages[-1] == "offline: 10 images"


def test_those_that_are_named_are_measured(scorer: Scorer, images: list[bytes]) -> None:
    options: dict[str, Any] = {"single_s": 0.01, "bound_s": 1.0, "time_limit": 0.1}
    for name in SCENARIOS:
        found = vars(measure([name], scorer, images, **options))
        assert {each for each in SCENARIOS if found[each] is not None} == {name}


@pytest.mark.slow
def test_the_server_on_a_real_engine(scorer: Scorer, images: list[bytes]) -> None:
    progress = Recorder()
    single_s = Summary.of(single_stream(scorer, images, queries=20)).p50
    limit = 2.0 + 400 * single_s
    found = server(
        scorer, images, 60.0, single_s, time_limit=limit, queries=ENOUGH, progress=progress
    )
    assert (found.bound_s, found.single_s) == (60.0, single_s)
    assert found.trials[0].rate == FIRST_LOAD / single_s
    assert found.best
    for trial in found.trials:
        assert len(trial.seconds) <= trial.planned <= ENOUGH
        assert min(trial.seconds) > 0
    assert len(progress.messages) == len(found.trials)


class Slow:
    """An engine that takes 20 ms per call, whatever is in it."""

    max_batch, concurrency, description, image_size = 1, 1, "slow", None

    def __init__(self, session: Any) -> None:
        self.session = session

    def run(self, pixels: Any) -> Any:
        precise_wait(0.02)
        return self.session.run(pixels)


def with_session(scorer: Scorer, session: Any) -> Scorer:
    return Scorer(scorer.manifest, scorer.engine, session)


@pytest.fixture
def slow(scorer: Scorer) -> Scorer:
    return with_session(scorer, Slow(scorer.session))


@pytest.mark.slow
def test_a_rate_beyond_the_engine_is_not_met(slow: Scorer, images: list[bytes]) -> None:
    found = server(slow, images, 1.0, FIRST_LOAD / 1000, time_limit=2.0, queries=200)
    first = found.trials[0]
    assert first.rate == 1000, "twenty times what the engine can do"
    assert not first.meets(1.0)
    assert Summary.of(first.seconds).p99 > 1.0
    assert len(first.seconds) < first.planned == 200
    assert all(trial.rate < 100 for trial in found.trials if trial.meets(1.0))


def test_no_trial_where_an_image_alone_misses_the_bound(slow: Scorer, images: list[bytes]) -> None:
    assert server(slow, images, 0.019, 0.02).trials == ()


def test_too_little_time_for_a_trial(slow: Scorer, images: list[bytes]) -> None:
    assert server(slow, images, 1.0, 0.02, time_limit=0.5).trials == ()


def trials(*rates: tuple[float, int, float]) -> tuple[Trial, ...]:
    """Of (rate, images planned, latency of all of them)."""
    return tuple(Trial(rate, planned, (latency,) * planned) for rate, planned, latency in rates)


@pytest.mark.parametrize(
    ("found", "best", "note"),
    [
        (Server(0.019, 0.02, ()), None, "0.019 s.*0.02 s"),
        (Server(1.0, 0.02, ()), None, "12.5/s"),
        (Server(1.0, 0.1, trials((5.0, 100, 2.0), (2.5, 100, 2.0))), None, "2.5/s"),
        (Server(1.0, 0.1, trials((5.0, 100, 0.5), (10.0, 100, 2.0))), 5.0, "time"),
        (Server(1.0, 0.1, trials((5.0, 60, 0.5), (5.2, 100, 2.0))), 5.0, "60 queries"),
        (Server(1.0, 0.1, trials((5.0, 100, 0.5), (5.2, 100, 2.0))), 5.0, None),
    ],
)
def test_the_verdict_and_what_weakens_it(
    found: Server, best: float | None, note: str | None
) -> None:
    assert (None if found.best is None else found.best.rate) == best
    assert found.note is None if note is None else re.search(note, found.note or "")


def test_a_trial_that_was_stopped_early_meets_no_bound() -> None:
    assert not Trial(5.0, 100, (0.1,) * 99).meets(1.0)


class Failing(Slow):
    """Fails at one of its calls."""

    def __init__(self, session: Any, call: int, error: BaseException) -> None:
        super().__init__(session)
        self.calls, self.call, self.error = itertools.count(1), call, error

    def run(self, pixels: Any) -> Any:
        if next(self.calls) == self.call:
            raise self.error
        return self.session.run(pixels)


def serving_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "drexperts-server" in thread.name]


@pytest.mark.parametrize(
    "error", [UserError("the GPU is lost"), KeyboardInterrupt(), MemoryError()]
)
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_engine_that_fails_gives_no_numbers(
    name: str, error: BaseException, scorer: Scorer, images: list[bytes]
) -> None:
    failing = with_session(scorer, Failing(scorer.session, 30, error))
    with pytest.raises(type(error)):
        measure([name], failing, images, single_s=0.001, bound_s=1.0)
    assert serving_threads() == []


class Interrupted(Slow):
    """Ctrl-C is pressed during the tenth call from a thread of the server."""

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self.served = itertools.count(1)

    def run(self, pixels: Any) -> Any:
        main = threading.main_thread()
        if threading.current_thread() is not main and next(self.served) == 10:
            assert main.ident
            signal.pthread_kill(main.ident, signal.SIGINT)
        return super().run(pixels)


def test_interrupted_while_it_serves(scorer: Scorer, images: list[bytes]) -> None:
    """Ctrl-C reaches the main thread, which only waits: the others finish what they do."""
    interrupted = with_session(scorer, Interrupted(scorer.session))
    with pytest.raises(KeyboardInterrupt):
        server(interrupted, images, 100.0, 0.02, time_limit=1000.0)
    assert serving_threads() == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_image_that_cannot_be_scored_gives_no_numbers(
    name: str, scorer: Scorer, images: list[bytes]
) -> None:
    error = ImageError if name == "single_stream" else UserError
    with pytest.raises(error):
        measure([name], scorer, [images[0], b"no image"], single_s=0.001, bound_s=1.0)


def test_scores_that_are_not_finite_give_no_numbers(scorer: Scorer, images: list[bytes]) -> None:
    class Broken(Slow):
        def run(self, pixels: Any) -> Any:
            outputs = self.session.run(pixels)
            return outputs | {"score": np.full_like(outputs["score"], np.nan)}

    with pytest.raises(UserError):
        server(with_session(scorer, Broken(scorer.session)), images, 1.0, 0.001)


def test_waiting_is_never_too_short() -> None:
    for duration in (-1.0, 0.0, 1e-5, 3e-4, 5e-3):
        assert seconds(functools.partial(precise_wait, duration)) >= duration
