"""The receipt of `bench_scale.py`, its tables, and what they mean for very many images."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

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

PLAIN, RAY = "score_stream, nothing written", "folder, on Ray"
DIGEST_BYTES = 16  # of each source in memory
_MANY = {"a million": 10**6, "a billion": 10**9}


@dataclass(frozen=True, kw_only=True)
class Cores:
    """So many processes that share so many cores.

    images: that all of them scored
    seconds: until the last was done, one per round
    """

    cores: int
    processes: int
    images: int
    seconds: Samples

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / median(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Seconds of the parts of the work, alone: one image's decoding, and a batch in the engine."""

    batch: int
    decode: Samples
    engine: Samples


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak resident bytes before and after so many tiny images were scored without an engine."""

    images: int
    before: int
    peak: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Results of so many images: bytes of each format, and seconds to merge a shard into it."""

    count: int
    sizes: dict[str, int]
    merge: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A list of so many paths.

    first_s: seconds until the first image is scored
    read_s: seconds to read all of it, without a score
    bytes_per_path: that the memory grows by
    """

    paths: int
    first_s: float
    read_s: float
    bytes_per_path: float


@dataclass(frozen=True, kw_only=True)
class ScaleReceipt(Receipt):
    """What `bench_scale.py` observed.

    weights: random, demo or trained
    engine: a sentence on the engine
    crops, image_bytes: of the one image that is scored
    images: in a round
    inputs: seconds of so many images by each way, in the same rounds
    ray_start: seconds until Ray's first engine was ready; None if it was left out
    """

    weights: str
    engine: str
    crops: int
    image_bytes: int
    images: int
    inputs: dict[str, Samples]
    ray_start: float | None
    stages: Stages
    cores: tuple[Cores, ...]
    memory: tuple[Memory, ...]
    rows: Rows
    listing: Listing


def parts(receipt: ScaleReceipt) -> Iterator[Part]:
    """Inputs, cores, memory, and a long list."""
    yield from _about(receipt)
    yield f"{receipt.images} images by each way, in {len(receipt.inputs[PLAIN])} rounds:"
    yield Table(("", "images/s (median)", "times the time of score_stream"), _inputs(receipt))
    if receipt.ray_start is not None:
        yield f"Ray was started before, which took {receipt.ray_start:.0f} s with its first engine."
    yield Table(
        ("cores", "processes", "images/s", "times one core"),
        [
            (
                str(each.cores),
                str(each.processes),
                three_digits(each.rate),
                f"{each.rate / receipt.cores[0].rate:.2f}",
            )
            for each in receipt.cores
        ],
    )
    yield "Tiny images from a tar archive, with an engine that computes nothing:"
    yield Table(
        ("images", "resident MB before", "at most", "images/s"),
        [
            (
                f"{each.images:,}",
                _mega(each.before),
                _mega(each.peak),
                three_digits(each.images / each.seconds),
            )
            for each in receipt.memory
        ],
    )
    listing = receipt.listing
    yield (
        f"Of a list of {listing.paths:,} paths the first image is scored after "
        f"{listing.first_s:.2f} s. To read all of it takes {listing.read_s:.1f} s, and "
        f"{listing.bytes_per_path:.0f} bytes of memory per path."
    )


def capacity(receipt: ScaleReceipt) -> Iterator[Part]:
    """What many images cost at the rates of a receipt."""
    yield from _about(receipt)
    yield Table(("", *_MANY), list(_costs(receipt)))
    yield "What one process can do of each part, if nothing else takes its time:"
    yield Table(("", "images/s"), list(_ceilings(receipt)))


def _about(receipt: ScaleReceipt) -> Iterator[Part]:
    yield machine_line(
        receipt.machine,
        receipt.engine,
        f"an image of {receipt.image_bytes / 1000:.0f} kB and {receipt.crops} crops",
    )
    if told := WEIGHTS[receipt.weights]:
        yield told


def _inputs(receipt: ScaleReceipt) -> list[tuple[str, ...]]:
    base = receipt.inputs[PLAIN]
    return [
        (
            name,
            three_digits(receipt.images / median(taken)),
            "" if name == PLAIN else str(Ratio.of(taken, base)),
        )
        for name, taken in receipt.inputs.items()
    ]


def _costs(receipt: ScaleReceipt) -> Iterator[tuple[str, ...]]:
    best = max(receipt.cores, key=lambda each: each.rate / each.cores)
    core_hours = best.cores / best.rate / 3600
    label = f"core-hours ({best.processes} processes on {best.cores} cores)"
    yield _cost(label, core_hours)
    yield _cost("images read, GB", receipt.image_bytes / 1e9)
    rows = receipt.rows
    for suffix, size in rows.sizes.items():
        yield _cost(f"results as .{suffix}, GB", size / rows.count / 1e9)
    slowest = max(rows.merge.values())
    yield _cost("merge on one core, hours", slowest / rows.count / 3600)
    yield _cost("listing on one core, hours", _per_path(receipt) / 3600)
    yield _cost("memory of digests over all shards, GB", DIGEST_BYTES / 1e9)


def _cost(name: str, each: float) -> tuple[str, ...]:
    return (name, *(three_digits(each * count) for count in _MANY.values()))


def _ceilings(receipt: ScaleReceipt) -> Iterator[tuple[str, ...]]:
    stages, rows = receipt.stages, receipt.rows
    engine = stages.batch / median(stages.engine) / receipt.crops
    yield "engine, all cores", three_digits(engine)
    yield "decoding, one at a time", three_digits(1 / median(stages.decode))
    everything = receipt.memory[-1]
    yield "all but the engine, tiny images", three_digits(everything.images / everything.seconds)
    yield "listing", three_digits(1 / _per_path(receipt))
    yield "merging", three_digits(rows.count / max(rows.merge.values()))


def _per_path(receipt: ScaleReceipt) -> float:
    return receipt.listing.read_s / receipt.listing.paths


def _mega(size: int) -> str:
    return f"{size / 2**20:.0f}"
