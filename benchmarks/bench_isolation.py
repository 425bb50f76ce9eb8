"""Time scoring with images decoded in this process and in processes of their own, alternately.

    python benchmarks/bench_isolation.py BUNDLE photos/ [--images 10] [--rounds 5]

Each call starts its decoding processes anew, as `drx score` does once per run. Processor time, of
the decoding processes too, says more than the clock where other programs run.
"""

import argparse
import itertools
import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drexperts.bench.timing import WARM_UP, Ratio, alternately
from drexperts.runtime import load
from drexperts.runtime.decoding.decoders import Decoder, LocalDecoder
from drexperts.runtime.decoding.workers import IsolatedDecoder
from drexperts.runtime.results import find_images
from drexperts.runtime.scorer import Scorer


def score_all(scorer: Scorer, decoder: Decoder, paths: Sequence[Path], used: list[float]) -> None:
    """Score files, and append the seconds of processor time to `used`. It closes the decoder."""
    start = processor_seconds()
    one = Scorer(scorer.manifest, scorer.engine, scorer.session, decoder=decoder)
    for score in one.score_stream(paths):
        assert score.error is None, score.error
    decoder.close()
    used.append(processor_seconds() - start)


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos")
    parser.add_argument("--images", type=int, default=10, help="per call, taken in turn")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(given)
    photos = itertools.cycle(find_images([arguments.photos]).paths)
    paths = list(itertools.islice(photos, arguments.images))
    with load(arguments.bundle, "cpu", allow_unverified=True) as scorer:
        spec = scorer.manifest.preprocessing
        makers = {
            "in process": LocalDecoder,
            "in process, again": LocalDecoder,
            "isolated": IsolatedDecoder,
        }
        used: dict[str, list[float]] = {name: [] for name in makers}
        calls = {
            name: lambda name=name, make=make: score_all(scorer, make(spec), paths, used[name])
            for name, make in makers.items()
        }
        times = alternately(calls, arguments.rounds)
    for name, taken in times.items():
        clock = Ratio.of(taken, times["in process"])
        first = used["in process"][WARM_UP:]
        processor = Ratio.of(used[name][WARM_UP:], first)
        ms = 1e3 * np.median(taken) / len(paths)
        cpu = 1e3 * np.median(used[name][WARM_UP:]) / len(paths)
        print(f"{name:18} {ms:7.1f} ms per image, {clock} times in process")
        print(f"{'':18} {cpu:7.1f} ms of processor time, {processor} times in process")


if __name__ == "__main__":
    main()
