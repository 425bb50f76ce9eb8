"""Timing: implementations take turns in each round, so that a disturbance falls on all of them.

On a GPU a sample is the time between two CUDA events around a call, in one of these states:

    hot     the call has just run once, so its operands are in the L2 cache as far as they fit
    cold    a buffer larger than the L2 cache has just been written
    eager   the device is idle when the call begins: what a caller waits for, with the launches
    graph   a captured CUDA graph is launched on a busy device: the time of the kernels alone
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from drexperts.benchmarks.operations.bounds import Peaks

Run = Callable[[], object]
Step = Callable[[], Sequence[Tensor | None]]
Sample = Callable[[Run], float]

WARM_UP = 3  # calls before any is timed, and before a capture
FEWEST = 5  # rounds, however slow
# Short calls are captured several times in one graph, since an event costs about a microsecond.
COPIES, LONG = 10, 500e-6


@dataclass(frozen=True)
class Mode:
    """What is timed, and the state of the device before it."""

    training: bool
    cold: bool = False
    graph: bool = False

    @property
    def direction(self) -> str:
        return "forward+backward" if self.training else "forward"

    @property
    def label(self) -> str:
        cache, launch = "cold" if self.cold else "hot", "graph" if self.graph else "eager"
        return f"{self.direction}, {cache}, {launch}"


class Cpu:
    """The clock of the CPU, without states of cache and launch."""

    modes = (Mode(training=False), Mode(training=True))

    def ceilings(self) -> None:
        """None: no bound is known for a CPU."""

    def begin(self) -> None:
        """Prepare for a row."""

    def prepared(self, run: Step, mode: Mode) -> tuple[Run, int]:
        """What to time, and how many calls it makes."""
        run()
        return run, 1

    def sample(self, run: Run, mode: Mode) -> float:
        """Seconds."""
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


class Gpu:
    """The current CUDA device's events, a buffer to flush its L2 cache, and its graphs."""

    modes = tuple(
        Mode(training, cold, graph)
        for graph in (True, False)
        for cold in (False, True)
        for training in (False, True)
    )

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties().L2_cache_size
        self.flush = torch.empty(4 * cache, dtype=torch.uint8, device="cuda")
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.stream = torch.cuda.Stream()
        self.begin()

    def begin(self) -> None:
        """Prepare for a row: a new memory pool for its graphs."""
        torch.cuda.empty_cache()
        self.pool = torch.cuda.graph_pool_handle()

    def prepared(self, run: Step, mode: Mode) -> tuple[Run, int]:
        """What to time, and how many calls it makes: the call itself, or a graph of it."""
        for _ in range(WARM_UP):
            run()
        if not mode.graph:
            return run, 1
        short = not mode.cold and self.sample(run, Mode(mode.training)) < LONG
        copies = COPIES if short else 1
        return self.captured(run, copies), copies

    def captured(self, run: Step, copies: int) -> Run:
        """A graph of `copies` calls. A first replay has shown that it writes the results.

        Graphs share one pool of memory: each reads only operands, which lie outside it, and they
        never run at the same time.
        """
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                run()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                for _ in range(copies):
                    results = run()
        torch.cuda.current_stream().wait_stream(self.stream)
        require_writes(graph.replay, [x for x in results if x is not None])
        return graph.replay

    def ceilings(self) -> Peaks:
        """A large bfloat16 product, a large copy, and the data sheet's arithmetic for float32."""
        left, right = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
        source = torch.randn(2**28, device="cuda")
        target = torch.empty_like(source)
        product = self._best(lambda: left @ right)
        copy = self._best(lambda: target.copy_(source))
        properties = torch.cuda.get_device_properties()
        lanes = 64 if (properties.major, properties.minor) == (8, 0) else 128
        vector = 2e3 * lanes * properties.multi_processor_count * properties.clock_rate
        why = "measured in this run; float32 from cores and clock"
        return Peaks(2 * 8192**3 / product, 2 * source.nbytes / copy, vector, why)

    def _best(self, run: Run) -> float:
        return min(self.sample(run, Mode(training=False)) for _ in range(10))

    def sample(self, run: Run, mode: Mode) -> float:
        """Seconds on the device."""
        if mode.cold:
            self.flush.zero_()
        else:
            run()
        if not mode.graph:
            torch.cuda.synchronize()
        self.start.record()
        run()
        self.end.record()
        self.end.synchronize()
        return 1e-3 * self.start.elapsed_time(self.end)


def require_writes(replay: Run, results: list[Tensor]) -> None:
    """Raise RuntimeError unless a replay replaces NaN by finite numbers in all its results."""
    for result in results:
        result.detach().fill_(float("nan"))
    replay()
    if not all(bool(torch.isfinite(result).all()) for result in results):
        raise RuntimeError("a replay of the captured graph left results unwritten, or not finite")


def measured(
    runs: Mapping[str, tuple[Run, int]],
    sample: Sample,
    rounds: int,
    seconds: float,
    guard: Callable[[str], AbstractContextManager[None]],
) -> dict[str, list[float]]:
    """Seconds of one call of each implementation in each round, in random order within a round.

    runs: what to time, and the number of calls it makes
    rounds: at most; they end early after `seconds`, but not before `FEWEST`
    guard: the context of a turn; an implementation whose turn ends without a sample is dropped
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    shuffle = random.Random(0).shuffle
    start = time.monotonic()
    for i in range(rounds):
        if i >= FEWEST and time.monotonic() - start > seconds:
            break
        turns = list(taken)
        shuffle(turns)
        for name in turns:
            run, calls = runs[name]
            with guard(name):
                taken[name].append(sample(run) / calls)
            if len(taken[name]) <= i:
                del taken[name]
    return taken
