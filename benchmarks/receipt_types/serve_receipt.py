"""The receipt of `bench_serve.py`, and its tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from drexperts.bench.timing import Ratio
from drexperts.benchmarks.receipt_types.receipt import (
    WEIGHTS,
    Part,
    Receipt,
    Samples,
    machine_line,
    three_digits,
)
from drexperts.ui.markdown import Table

IN_PROCESS, AGAIN = "scorer.score", "scorer.score, again"
LOCAL = "scorer.score, decoding in the same process"
STREAM, SERVED, OTHER = "score_stream", "drx serve", "LitServe"


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests that arrived at random times, at one rate.

    share: of the capacity
    rate: requests per second
    statuses, latencies: of each request; seconds from when it was due to the end of its answer
    seconds: from the first request to the last answer
    crops, calls: of the engine meanwhile
    client_cpu: seconds of processor time
    """

    share: float
    rate: float
    statuses: tuple[int, ...]
    latencies: tuple[float, ...]
    seconds: float
    crops: int
    calls: int
    client_cpu: float

    @property
    def scored(self) -> list[float]:
        """The latencies of requests that got a score."""
        pairs = zip(self.latencies, self.statuses, strict=True)
        return [latency for latency, status in pairs if status == 200]


@dataclass(frozen=True, kw_only=True)
class Saturated:
    """As many images as can be, by each way in the same rounds.

    images: in a round
    connections: that the client had
    seconds: of so many images
    client_cpu: seconds of processor time that the client of `drx serve` took
    """

    images: int
    connections: int
    seconds: dict[str, Samples]
    client_cpu: Samples

    @property
    def throughput(self) -> float:
        """Images per second of `drx serve`."""
        return self.images / median(self.seconds[SERVED])


@dataclass(frozen=True, kw_only=True)
class ServeReceipt(Receipt):
    """What `bench_serve.py` observed.

    weights: random, demo or trained
    engine: a sentence on the engine
    crops: of the one image that is scored
    batch, queue: most crops per call of the engine, and that may wait
    alone: seconds of one image by each way, one after another, in the same rounds
    """

    weights: str
    engine: str
    crops: int
    batch: int
    queue: int
    alone: dict[str, Samples]
    saturated: Saturated
    loads: tuple[Load, ...]


def parts(receipt: ServeReceipt) -> Iterator[Part]:
    """One image at a time, as many as can be, and at random times."""
    yield machine_line(
        receipt.machine,
        receipt.engine,
        f"an image of {receipt.crops} crops, at most {receipt.batch} per call, a queue of "
        f"{receipt.queue}",
    )
    if told := WEIGHTS[receipt.weights]:
        yield told
    yield from _alone(receipt.alone)
    yield from _saturated(receipt.saturated)
    headings = ("offered load", "images/s", "requests", "scored", "refused", "failed")
    yield Table(
        (*headings, "p50 ms", "p99 ms", "crops per call", "client's CPU"),
        [_load_cells(load) for load in receipt.loads],
    )
    yield (
        "Requests arrive at random times (a Poisson process), whatever was answered so far. "
        "Offered load is a share of the throughput of drx serve above. Refused is 503. Latencies "
        "are of scored requests, from when each was due. The client's CPU is a share of one core."
    )


def _alone(times: dict[str, Samples]) -> Iterator[Part]:
    base = times[IN_PROCESS]
    rows = []
    for name, taken in times.items():
        low, middle, high = np.percentile(1e3 * np.subtract(taken, base), (20, 50, 80))
        compared = (f"{middle:+.2f} ({low:+.2f} to {high:+.2f})", str(Ratio.of(taken, base)))
        first = name == IN_PROCESS
        rows.append((name, three_digits(1e3 * median(taken)), *(("", "") if first else compared)))
    yield f"One image at a time, in {len(base)} rounds:"
    yield Table(("", "ms (median)", f"ms more than {IN_PROCESS}", "times its time"), rows)


def _saturated(found: Saturated) -> Iterator[Part]:
    base = found.seconds[STREAM]
    share = median(np.divide(found.client_cpu, found.seconds[SERVED]).tolist())
    rows = [
        (
            name,
            three_digits(found.images / median(taken)),
            "" if name == STREAM else str(Ratio.of(base, taken)),
        )
        for name, taken in found.seconds.items()
    ]
    yield (
        f"As many as can be, {found.images} images in each of {len(base)} rounds, over "
        f"{found.connections} connections; the client of {SERVED} took {share:.1%} of one core:"
    )
    yield Table(("", "images/s (median)", f"times {STREAM}"), rows)


def _load_cells(load: Load) -> tuple[str, ...]:
    scored, refused = load.scored, load.statuses.count(503)
    quantiles = [three_digits(1e3 * float(np.percentile(scored, q))) for q in (50, 99) if scored]
    return (
        f"{load.share:g}",
        three_digits(load.rate),
        str(len(load.statuses)),
        str(len(scored)),
        str(refused),
        str(len(load.statuses) - len(scored) - refused),
        *(quantiles or ("", "")),
        f"{load.crops / load.calls:.1f}" if load.calls else "",
        f"{load.client_cpu / load.seconds:.1%}",
    )
