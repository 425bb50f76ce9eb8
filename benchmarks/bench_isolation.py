"""Time scoring with images decoded in this process and in processes of their own, alternately.

    python benchmarks/bench_isolation.py BUNDLE photos/ [--images 10] [--rounds 5]

Each call starts its decoding processes anew, as `drx score` does once per run: the more images, the
less it costs. The last line shows the cost of an image and that of the start by themselves.
Processor time, of the decoding processes too, says more than the clock where other programs run.
"""

import argparse
import itertools
import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drexperts.bench.timing import WARM_UP, Ratio, alternately, seconds
from drexperts.runtime import load
from drexperts.runtime.decoding.decoders import Decoder, LocalDecoder
from drexperts.runtime.decoding.workers import IsolatedDecoder
from drexperts.runtime.inputs.folders import find_images
from drexperts.runtime.preprocess import Preprocessing
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
        spec = scorer.preprocessing
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
    print_whole_runs(times, used, len(paths))
    print_decoding_alone(spec, paths, arguments.rounds)


def print_whole_runs(
    times: dict[str, tuple[float, ...]], used: dict[str, list[float]], images: int
) -> None:
    """Decoding and scoring, by the clock and in processor time."""
    for name, taken in times.items():
        clock = Ratio.of(taken, times["in process"])
        first = used["in process"][WARM_UP:]
        processor = Ratio.of(used[name][WARM_UP:], first)
        ms = 1e3 * np.median(taken) / images
        cpu = 1e3 * np.median(used[name][WARM_UP:]) / images
        print(f"{name:18} {ms:7.1f} ms per image, {clock} times in process")
        print(f"{'':18} {cpu:7.1f} ms of processor time, {processor} times in process")


def print_decoding_alone(spec: Preprocessing, paths: Sequence[Path], rounds: int) -> None:
    """Decoding without scoring, one image after another."""
    local, isolated = LocalDecoder(spec), IsolatedDecoder(spec)
    start = seconds(lambda: isolated.crops(paths[0])) - seconds(lambda: isolated.crops(paths[0]))
    calls = {
        "in process": lambda: [local.crops(path) for path in paths],
        "isolated": lambda: [isolated.crops(path) for path in paths],
    }
    times = alternately(calls, rounds)
    isolated.close()
    ms = {name: 1e3 * np.median(taken) / len(paths) for name, taken in times.items()}
    print(
        f"decoding alone: {ms['in process']:.1f} ms per image in process, {ms['isolated']:.1f} "
        f"isolated, and {1e3 * start:.0f} ms once for the start of a process"
    )


if __name__ == "__main__":
    main()
