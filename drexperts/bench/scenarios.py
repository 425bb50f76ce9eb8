"""Four MLPerf-style scenarios: how images may come to a Scorer, each from its bytes to its Score.

Not MLPerf: their queries are fewer and their time is shorter than its rules ask.

The server is a queue in front of the Scorer. Whoever is free takes every image that waits, as one
stream: crops of several images share batches when images come faster than they are scored, and
none waits for a batch to fill. An endless `Scorer.score_stream` would be no server: it keeps a
batch open until later images have filled it.
"""

import bisect
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from drexperts.bench.timing import seconds, statistics
from drexperts.runtime.errors import UserError
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.scorer import Score, Scorer

ENOUGH = 100  # queries below which a p99 is little more than the slowest
FEWEST = 20  # queries below which a trial says nothing
IMAGES_PER_QUERY = 8  # of the multi-stream scenario
TOLERANCE = 1.05  # between a rate that meets the bound and one that does not
FIRST_LOAD = 0.25  # of the single-stream rate, where the search begins: nearly all meet it there

_SEED = 0  # of every trial's arrivals
_SPIN = 2e-4  # seconds before an arrival from which on sleeping is too coarse

Clock = Callable[[], float]
Wait = Callable[[float], None]


def single_stream(
    scorer: Scorer,
    images: Sequence[bytes],
    *,
    time_limit: float = 20.0,
    queries: int = 200,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """One image after another, each as soon as the one before it is scored.

    Args:
        images: files' bytes, taken in turn.
        time_limit: seconds after which no query begins; one is made at least.
        queries: at most.

    Returns:
        `timing.statistics` of a query's latency.

    Raises whatever the Scorer raises.
    """
    turns = itertools.cycle(images)
    taken = _timed(
        lambda: scorer.score(next(turns)), time_limit, queries, "single stream", progress
    )
    return statistics(taken)


def multi_stream(
    scorer: Scorer,
    images: Sequence[bytes],
    *,
    time_limit: float = 20.0,
    queries: int = 100,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Like `single_stream`, `IMAGES_PER_QUERY` images in a query, which ends with the last."""
    turns = itertools.cycle(images)

    def query() -> None:
        for score in scorer.score([next(turns) for _ in range(IMAGES_PER_QUERY)]):
            _require_scored(score)

    taken = _timed(query, time_limit, queries, "multi stream", progress)
    return {"images_per_query": IMAGES_PER_QUERY} | statistics(taken)


def offline(
    scorer: Scorer,
    images: Sequence[bytes],
    *,
    time_limit: float = 20.0,
    count: int = 1000,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """All images at once, as one stream.

    Args:
        images: files' bytes, taken in turn.
        time_limit: seconds after which no image is begun; one is scored at least.
        count: of images, at most.

    Returns:
        images, seconds until the last is scored, images_per_s.

    Raises UserError for an image that cannot be scored, and whatever the Scorer raises.
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
    taken = time.perf_counter() - start
    return {"images": done, "seconds": taken, "images_per_s": done / taken}


def server(
    scorer: Scorer,
    images: Sequence[bytes],
    bound_s: float,
    single_s: float,
    *,
    time_limit: float = 240.0,
    queries: int = 400,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """The highest rate of `arrivals` whose p99 latency meets a bound.

    A trial takes half of the time left at most. Raises as `offline` does.

    Args:
        bound_s: on the p99 latency.
        single_s: seconds for an image alone, the median of `single_stream`.
        time_limit: seconds for the search; what has arrived by then is still scored.
        queries: images in a trial, at most.

    Returns:
        bound_s; images_per_s, None where no rate met the bound; trials, see `_verdict`; note,
        None or what weakens the verdict.
    """
    end = time.perf_counter() + time_limit
    trials: list[dict[str, Any]] = []

    def meets(rate: float) -> bool | None:
        planned = arrivals(rate, queries, (end - time.perf_counter()) / 2, _SEED)
        if len(planned) < FEWEST:
            return None
        progress(f"server: trial {len(trials) + 1}, {rate:.3g} images/s")
        latency = Trial(scorer, images, planned, bound_s).run()
        trials.append(_verdict(rate, len(planned), latency, bound_s))
        return bool(trials[-1]["met"])

    best = highest_rate(meets, FIRST_LOAD / single_s) if single_s <= bound_s else None
    note = _note(best, trials, bound_s, single_s)
    return {"bound_s": bound_s, "images_per_s": best, "trials": trials, "note": note}


def arrivals(rate: float, queries: int, most: float, seed: int) -> list[float]:
    """Seconds at which images arrive: a Poisson process given its count, from its seed.

    The first comes at once, and as many as `rate` a second admits until `most` seconds, at most
    `queries` in all. The gaps are drawn, then scaled so that their mean is 1 / rate exactly: what
    a trial is said to bear is what it was given, however slow the draw.
    """
    gaps = int(min(queries - 1, rate * max(0.0, most)))
    ends = np.cumsum(np.random.default_rng(seed).exponential(1.0, gaps))
    return [0.0, *(ends / ends[-1:] * (gaps / rate)).tolist()]


def highest_rate(meets: Callable[[float], bool | None], first: float) -> float | None:
    """The highest rate that met the bound, None if none did.

    Doubles or halves the first rate until one meets the bound and another does not, then tries
    their geometric mean until they are within `TOLERANCE`.

    meets: whether a rate does; None where there is no time to tell, which ends the search
    """
    low, high, rate = 0.0, math.inf, first
    while high > TOLERANCE * low and (met := meets(rate)) is not None:
        if met:
            low = rate
        else:
            high = rate
        rate = _between(low, high)
    return low or None


def _between(low: float, high: float) -> float:
    if math.isinf(high):
        return 2 * low
    return math.sqrt(low * high) if low else high / 2


def precise_wait(duration: float) -> None:
    """Return after so many seconds, to some microseconds; at once if there are none."""
    end = time.perf_counter() + duration
    if duration > _SPIN:
        time.sleep(duration - _SPIN)
    while time.perf_counter() < end:
        time.sleep(0)  # whoever else has work may have the interpreter


class Trial:
    """A server under one schedule of arrivals.

    Latency counts from when an image was to arrive until its Score: waiting is part of it, and a
    slow server does not slow its clients.

    clock, wait: seconds now, and until then
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
        """Latencies of what was answered: everything, unless the bound is missed before."""
        # One more than the engine admits: it decodes while the others compute.
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
        """Score what waits until nothing more arrives, or the p99 must miss its bound."""
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
            if self._must_miss():
                self._stopped = True
            if self._stopped:
                return

    def _now(self) -> float:
        return self._clock() - self._start

    def _must_miss(self) -> bool:
        late = sum(taken > self._bound_s for taken in self.latency)
        return late > allowed_late(len(self._planned))


def allowed_late(queries: int) -> int:
    """How many of the queries may be late before their p99, linearly interpolated, must be."""
    return queries - 1 - int(0.99 * (queries - 1))


def _timed(
    query: Callable[[], object], time_limit: float, queries: int, name: str, progress: Progress
) -> list[float]:
    query()  # warm
    taken: list[float] = []
    end = time.perf_counter() + time_limit
    while not taken or (len(taken) < queries and time.perf_counter() < end):
        taken.append(seconds(query))
        progress(f"{name}: {len(taken)} queries")
    return taken


def _require_scored(score: Score) -> None:
    if score.error is not None:
        raise UserError(f"nothing can be timed on what cannot be scored: {score.error}")


def _verdict(rate: float, planned: int, latency: list[float], bound_s: float) -> dict[str, Any]:
    """A trial: its rate; images planned, and queries answered, fewer where it was stopped early;
    whether it met the bound; the latency's statistics, of those answered, and their p99."""
    times = statistics(latency)
    met = len(latency) == planned and times["p99"] <= bound_s
    counted = {"planned": planned, "queries": len(latency)}
    return {"rate": rate, "p99": times["p99"], **counted, "met": met, "latency": times}


def _note(
    best: float | None, trials: list[dict[str, Any]], bound_s: float, single_s: float
) -> str | None:
    """What weakens the verdict, if anything."""
    if single_s > bound_s:
        return f"no rate can meet {bound_s:.3g} s: an image alone takes {single_s:.3g} s"
    if not trials:
        first = FIRST_LOAD / single_s
        return f"no verdict: at {first:.3g}/s fewer than {FEWEST} images come in half of the time"
    rates = [trial["rate"] for trial in trials]
    if best is None:
        return f"none met the bound of the rates that time allowed, down to {min(rates):.3g}/s"
    missed = [trial["rate"] for trial in trials if not trial["met"]]
    queries = trials[rates.index(best)]["queries"]
    notes = []
    if min(missed, default=math.inf) > TOLERANCE * best:
        notes.append("time was up before the search was narrow: higher rates may meet the bound")
    if queries < ENOUGH:
        notes.append(f"time allowed {queries} queries, fewer than the {ENOUGH} a p99 needs")
    return "; ".join(notes) or None
