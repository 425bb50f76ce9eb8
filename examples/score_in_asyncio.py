"""Score images from asyncio: the engine runs in threads, and the event loop does not wait for it.

python examples/score_in_asyncio.py BUNDLE photo.jpg more.jpg
"""

import argparse
import asyncio
from collections.abc import Iterable

from drexperts import runtime

AT_ONCE = 4  # images that are decoded or scored; more would only take more memory


async def scores_of(
    scorer: runtime.Scorer, paths: Iterable[str]
) -> list[runtime.Score | BaseException]:
    """The score of each image, or the error that it raised."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def score(path: str) -> runtime.Score:
        async with turns:
            # A Scorer is safe to share between threads. Cancelling does not stop an image that
            # has begun: its thread ends with it.
            return await asyncio.to_thread(scorer.score, path)

    return await asyncio.gather(*map(score, paths), return_exceptions=True)


def main(given: list[str] | None = None) -> None:
    """Print one line per image."""
    parser = argparse.ArgumentParser(description="Score images from asyncio.")
    parser.add_argument("bundle")
    parser.add_argument("paths", nargs="+")
    arguments = parser.parse_args(given)
    with runtime.load(arguments.bundle, isolated=True) as scorer:
        found = asyncio.run(scores_of(scorer, arguments.paths))
    for path, score in zip(arguments.paths, found, strict=True):
        print(path, score if isinstance(score, BaseException) else f"{score.value:.2f}")


if __name__ == "__main__":
    main()
