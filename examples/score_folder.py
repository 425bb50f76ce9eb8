"""Score every image below a folder, and name the worst.

    python examples/score_folder.py BUNDLE FOLDER [--worst 10]

With `out="scores.jsonl"`, `score_files` writes a file that survives a kill, as `drx score` does.
"""

import argparse
import sys

from drexperts import runtime


def main(given: list[str] | None = None) -> None:
    """Print one line per image, the worst first; images that cannot be read go to stderr."""
    parser = argparse.ArgumentParser(description="Score every image below a folder.")
    parser.add_argument("bundle")
    parser.add_argument("folder")
    parser.add_argument("--worst", type=int, default=10, help="how many to print (default: 10)")
    arguments = parser.parse_args(given)

    with runtime.load(arguments.bundle) as scorer:
        better = 1 if scorer.manifest.scale.higher_is_better else -1
        scores = runtime.score_files(scorer, arguments.folder).scores or ()
    for score in scores:
        if score.error is not None:
            print(f"left out: {score.error}", file=sys.stderr)
    scored = [score for score in scores if score.error is None]
    scored.sort(key=lambda score: better * score.value)
    for score in scored[: arguments.worst]:
        leading = max(score.distortions, key=lambda name: abs(score.distortions[name]))
        print(f"{score.value:8.2f} ± {score.std:.2f}  {leading:16}  {score.source}")


if __name__ == "__main__":
    main()
