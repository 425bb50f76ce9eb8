"""Time scoring with images decoded in this process and in processes of their own, alternately.

    python benchmarks/bench_isolation.py BUNDLE photos/ [--images 10] [--rounds 5]

The decoding processes are started in the round that is not timed: `drx score` starts them once.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drexperts.bench.timing import Ratio, alternately
from drexperts.runtime import load
from drexperts.runtime.decoding.decoders import Decoder, LocalDecoder
from drexperts.runtime.decoding.workers import IsolatedDecoder
from drexperts.runtime.results import find_images
from drexperts.runtime.scorer import Scorer


def score_all(scorer: Scorer, decoder: Decoder, paths: Sequence[Path]) -> None:
    """Score files with this decoder."""
    one = Scorer(scorer.manifest, scorer.engine, scorer.session, decoder=decoder)
    for score in one.score_stream(paths):
        assert score.error is None, score.error


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
        local, isolated = LocalDecoder(spec), IsolatedDecoder(spec)
        calls = {
            "in process": lambda: score_all(scorer, local, paths),
            "in process, again": lambda: score_all(scorer, local, paths),
            "isolated": lambda: score_all(scorer, isolated, paths),
        }
        times = alternately(calls, arguments.rounds)
        isolated.close()
    for name, taken in times.items():
        ratio = Ratio.of(taken, times["in process"])
        ms = 1e3 * np.median(taken) / len(paths)
        print(f"{name:18} {ms:8.1f} ms per image, {ratio} times in process")
        print(f"{'':18} ratios {np.round(np.divide(taken, times['in process']), 4).tolist()}")


if __name__ == "__main__":
    main()
