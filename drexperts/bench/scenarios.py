"""Four MLPerf-style scenarios: how images may arrive at a Scorer, from their bytes to their Scores.

They are not MLPerf's: there are fewer queries and less time than its rules require.

The server is a queue in front of the Scorer. A free thread takes all images that wait, as one
stream: crops of several images share batches when images arrive faster than they are scored, and
none waits for a batch to fill. An endless `Scorer.score_stream` would be no server, because it
keeps a batch open until later images have filled it.
"""

import bisect
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from drexperts.bench.reports import (
    FEWEST,
    FIRST_LOAD,
    TOLERANCE,
    Offline,
    Scenarios,
    Seconds,
    Server,
    Trial,
)
from drexperts.bench.timing import seconds
from drexperts.runtime.errors import UserError
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.score import Score
from drexperts.runtime.scorer import Scorer

SCENARIOS = ("single_stream", "multi_stream", "server", "offline")
IMAGES_PER_QUERY = 8  # of the multi-stream scenario
TIME_LIMIT, SERVER_TIME_LIMIT = 20.0, 240.0  # seconds

_SEED = 0  # of every trial's arrivals
_SPIN = 2e-4  # seconds before an arrival, from which on sleeping is too coarse

Clock = Callable[[], float]
Wait = Callable[[float], None]


def measure(
    names: Iterable[str],
    scorer: Scorer,
    images: Sequence[bytes],
    *,
    single_s: float,
    bound_s: float,
    time_limit: float | None = None,
    progress: Progress = SILENT,
) -> Scenarios:
    """Those of `SCENARIOS` that are named.

    Args:
        images: files' bytes, taken in turn.
        single_s: seconds for an image alone.
        bound_s: on the server's p99 latency.
        time_limit: seconds for each scenario; None is 20, and 240 for the server.

    Raises UserError for an image that cannot be scored, and whatever the Scorer raises.
    """
    limit = {} if time_limit is None else {"time_limit": time_limit}
    runs: dict[str, Callable[..., Any]] = {
        "single_stream": single_stream,
        "multi_stream": multi_stream,
        "server": functools.partial(server, bound_s=bound_s, single_s=single_s),
        "offline": offline,
    }
    measured = {name: runs[name](scorer, images, progress=progress, **limit) for name in names}
    return Scenarios(**measured, images_per_query=IMAGES_PER_QUERY)


def single_stream(
    scorer: Scorer,
    images: Sequence[bytes],
    *,
    time_limit: float = TIME_LIMIT,
    queries: int = 200,
    progress: Progress = SILENT,
) -> Seconds:
    """One image after another, each as soon as the one before it is scored.

    Args:
        time_limit: seconds after which no query begins; there is at least one.
        queries: at most.

    Returns the latency of each query.
    """
    turns = itertools.cycle(images)
    return _timed(lambda: scorer.score(next(turns)), time_limit, queries, "single stream", progress)


def multi_stream(
    scorer: Scorer,
    images: Sequence[bytes],
    *,
    time_limit: float = TIME_LIMIT,
    queries: int = 100,
    progress: Progress = SILENT,
) -> Seconds:
    """Like `single_stream`, with `IMAGES_PER_QUERY` images in a query, which ends with the last."""
    turns = itertools.cycle(images)

    def query() -> None:
        for score in scorer.score([next(turns) for _ in range(IMAGES_PER_QUERY)]):
            _require_scored(score)

    return _timed(query, time_limit, queries, "multi stream", progress)


def offline(
    scorer: Scorer,
    images: Sequence[bytes],
    *,
    time_limit: float = TIME_LIMIT,
    count: int = 1000,
    progress: Progress = SILENT,
) -> Offline:
    """All images at once, as one stream.

    Args:
        time_limit: seconds after which no image is begun; at least one is scored.
        count: of images, at most.
    """
    scorer.score(images[0])  # warm
    start = time.perf_counter()
    offered = itertools.takewhile(
        lambda _: time.perf_counter() - start < time_limit,
        itertools.islice(itertools.cycle(images), count),
    )
    done = 0
    for score in scorer.score_stream(offered):
        _require_scored(score)
        done += 1
        progress(f"offline: {done} images")
    return Offline(done, time.perf_counter() - start)


def server(
    scorer: Scorer,
    images: Sequence[bytes],
    bound_s: float,
    single_s: float,
    *,
    time_limit: float = SERVER_TIME_LIMIT,
    queries: int = 400,
    progress: Progress = SILENT,
) -> Server:
    """The search for the highest rate of `arrivals` whose p99 latency meets a bound.

    A trial takes at most half of the time that is left.

    Args:
        bound_s: on the p99 latency.
        single_s: seconds for an image alone.
        time_limit: seconds for the search; what has arrived by then is still scored.
        queries: images in a trial, at most.
    """
    end = time.perf_counter() + time_limit
    trials: list[Trial] = []

    def meets(rate: float) -> bool | None:
        planned = arrivals(rate, queries, (end - time.perf_counter()) / 2, _SEED)
        if len(planned) < FEWEST:
            return None
        progress(f"server: trial {len(trials) + 1}, {rate:.3g} images/s")
        latency = Queue(scorer, images, planned, bound_s).run()
        trials.append(Trial(rate, len(planned), tuple(latency)))
        return trials[-1].meets(bound_s)

    if single_s <= bound_s:
        search(meets, FIRST_LOAD / single_s)
    return Server(bound_s, single_s, tuple(trials))


def arrivals(rate: float, queries: int, most: float, seed: int) -> list[float]:
    """Seconds at which images arrive: a Poisson process with a given number of events.

    The first arrives at once. The others are as many as `rate` per second makes until `most`
    seconds, at most `queries` in all. The gaps are drawn from the seed, then scaled so that their
    mean is exactly 1 / rate: a trial gets the rate that it reports, however slow the draw is.
    """
    gaps = int(min(queries - 1, rate * max(0.0, most)))
    ends = np.cumsum(np.random.default_rng(seed).exponential(1.0, gaps))
    return [0.0, *(ends / ends[-1:] * (gaps / rate)).tolist()]


def search(meets: Callable[[float], bool | None], first: float) -> None:
    """Try rates until the highest that meets the bound is known within `TOLERANCE`.

    Doubles or halves the first rate until one meets the bound and another does not, then tries
    their geometric mean.

    meets: whether a rate does; None where there is no time to tell, which ends the search
    """
    low, high, rate = 0.0, math.inf, first
    while high > TOLERANCE * low and (met := meets(rate)) is not None:
        if met:
            low = rate
        else:
            high = rate
        rate = _between(low, high)


def _between(low: float, high: float) -> float:
    if math.isinf(high):
        return 2 * low
    return math.sqrt(low * high) if low else high / 2


def precise_wait(duration: float) -> None:
    """Return after so many seconds, within some microseconds; at once if there are none."""
    end = time.perf_counter() + duration
    if duration > _SPIN:
        time.sleep(duration - _SPIN)
    while time.perf_counter() < end:
        time.sleep(0)  # lets other threads run


class Queue:
    """A server under one schedule of arrivals.

    Latency counts from when an image was to arrive until its Score: it includes waiting, and a slow
    server does not slow its clients.

    planned: seconds at which images arrive
    clock: returns the time in seconds
    wait: returns after so many seconds
    """

    def __init__(
        self,
        scorer: Scorer,
        images: Sequence[bytes],
        planned: Sequence[float],
        bound_s: float,
        clock: Clock = time.perf_counter,
        wait: Wait = precise_wait,
    ) -> None:
        self.latency: list[float] = []
        self._scorer, self._images, self._planned = scorer, images, planned
        self._bound_s = bound_s
        self._clock, self._wait = clock, wait
        self._taking = threading.Lock()
        self._next = 0
        self._start = clock()
        self._stopped = False

    def run(self) -> list[float]:
        """Latencies of what was answered: everything, unless the bound is missed before that."""
        # One more than the engine takes: it decodes while the others compute.
        workers = self._scorer.session.concurrency + 1
        with ThreadPoolExecutor(workers, "drexperts-server") as pool:
            self._start = self._clock()
            serving = [pool.submit(self.serve) for _ in range(workers)]
            try:
                for worker in serving:
                    worker.result()
            finally:
                self._stopped = True
        return self.latency

    def serve(self) -> None:
        """Score what waits until nothing more arrives, or the p99 cannot meet its bound."""
        try:
            while group := self._take():
                self._score(group)
        except BaseException:
            self._stopped = True
            raise

    def _take(self) -> range:
        """All images that wait, or the next to arrive; empty at the end."""
        with self._taking:
            if self._stopped or self._next == len(self._planned):
                return range(0)
            self._wait(self._planned[self._next] - self._now())
            arrived = bisect.bisect_right(self._planned, self._now())
            group = range(self._next, max(arrived, self._next + 1))
            self._next = group.stop
            return group

    def _score(self, group: range) -> None:
        sources = [self._images[i % len(self._images)] for i in group]
        for i, score in zip(group, self._scorer.score_stream(sources), strict=True):
            _require_scored(score)
            self.latency.append(self._now() - self._planned[i])
            if self._cannot_meet():
                self._stopped = True
            if self._stopped:
                return

    def _now(self) -> float:
        return self._clock() - self._start

    def _cannot_meet(self) -> bool:
        late = sum(taken > self._bound_s for taken in self.latency)
        return late > allowed_late(len(self._planned))


def allowed_late(queries: int) -> int:
    """How many queries may be late before their p99, linearly interpolated, must be late too."""
    return queries - 1 - int(0.99 * (queries - 1))


def _timed(
    query: Callable[[], object], time_limit: float, queries: int, name: str, progress: Progress
) -> Seconds:
    query()  # warm
    taken: list[float] = []
    end = time.perf_counter() + time_limit
    while not taken or (len(taken) < queries and time.perf_counter() < end):
        taken.append(seconds(query))
        progress(f"{name}: {len(taken)} queries")
    return tuple(taken)


def _require_scored(score: Score) -> None:
    if score.error is not None:
        raise UserError(f"an image that cannot be scored cannot be timed: {score.error}")
