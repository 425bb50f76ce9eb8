"""What `bench_scale.py` measures in processes of their own. Each prints one JSON object.

python benchmarks/scale_worker.py rate BUNDLE FOLDER --cores 0,1
python benchmarks/scale_worker.py memory BUNDLE TAR OUT
python benchmarks/scale_worker.py start BUNDLE LIST
"""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drexperts import runtime
from drexperts.runtime.inputs.lists import paths_in
from drexperts.runtime.inputs.stream import Inputs
from drexperts.runtime.score import Score
from drexperts.runtime.scorer import Scorer


class NoEngine:
    """An engine that computes nothing, so that only what is around an engine takes time.

    Its numbers differ from crop to crop, as an engine's do, and so compress as badly.
    """

    max_batch, concurrency, description = 8, 1, "no engine"

    def __init__(self, outputs: dict[str, NDArray[np.float32]]) -> None:
        """outputs: of one crop, whose shapes it keeps"""
        self._outputs, self._random = outputs, np.random.default_rng(0)

    def run(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        shapes = {name: (len(pixels), *each.shape[1:]) for name, each in self._outputs.items()}
        return {
            name: self._random.random(shape, dtype=np.float32) for name, shape in shapes.items()
        }

    def close(self) -> None:
        pass


def without_engine(scorer: Scorer) -> Scorer:
    """The same Scorer, but for the engine."""
    side = scorer.preprocessing.crop
    outputs = scorer.session.run(np.zeros((1, 3, side, side), np.uint8))
    return Scorer(scorer.manifest, scorer.engine, NoEngine(outputs))


def rate(bundle: Path, folder: Path, cores: str) -> dict[str, Any]:
    """Seconds to score a folder on these cores, from when standard input has a line."""
    os.sched_setaffinity(0, map(int, cores.split(",")))
    images = sorted(folder.iterdir())
    with runtime.load(bundle, isolated=True) as scorer:
        _score(scorer, images[:2])
        print(json.dumps({"ready": True}), flush=True)
        sys.stdin.readline()
        start = time.perf_counter()
        _score(scorer, images)
        return {"seconds": time.perf_counter() - start}


def memory(bundle: Path, tar: Path, out: Path) -> dict[str, Any]:
    """Peak resident bytes before and after a tar archive was scored without an engine."""
    with runtime.load(bundle) as loaded:
        scorer = without_engine(loaded)
        _score(scorer, [np.zeros((64, 64, 3), np.uint8)])
        before, start = _resident("VmHWM"), time.perf_counter()
        summary = runtime.score_files(scorer, tar, out, shard=runtime.Shard(1, 1))
        taken = time.perf_counter() - start
    assert summary.failed == 0, f"{summary.failed} images failed"
    return {
        "images": summary.images,
        "before": before,
        "peak": _resident("VmHWM"),
        "seconds": taken,
    }


def start(bundle: Path, listed: Path) -> dict[str, Any]:
    """Seconds until the first image of a list is scored, and until all of it has been read."""

    def stop(_: Score) -> None:
        raise InterruptedError

    with runtime.load(bundle) as scorer:
        begin = time.perf_counter()
        with contextlib.suppress(InterruptedError):
            runtime.score_files(scorer, listed=paths_in(str(listed)), on_score=stop)
        first = time.perf_counter() - begin
    before, begin = _resident("VmRSS"), time.perf_counter()
    inputs = Inputs([], paths_in(str(listed)))
    count = sum(1 for _ in inputs)
    taken = time.perf_counter() - begin
    grown = _resident("VmRSS") - before  # while they are all remembered
    return {"paths": count, "first_s": first, "read_s": taken, "bytes_per_path": grown / count}


def _score(scorer: Scorer, images: list[Any]) -> None:
    for score in scorer.score_stream(images):
        assert score.error is None, score.error


def _resident(name: str) -> int:
    """Resident memory in bytes: now, "VmRSS", or at most so far, "VmHWM"."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (each for each in lines if each.startswith(name))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=("rate", "memory", "start"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--cores")
    given = parser.parse_args()
    if given.part == "rate":
        found = rate(given.bundle, given.images, given.cores)
    elif given.part == "memory":
        found = memory(given.bundle, given.images, given.out)
    else:
        found = start(given.bundle, given.images)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
