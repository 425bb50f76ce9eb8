"""Time ONNX files with the same input against the first of them, alternately in one run.

    python benchmarks/compare_onnx.py A.onnx B.onnx ... [--batch 1]

For trying a change to the graph: export before and after it, and compare.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import onnxruntime

ROUNDS, WARM_UP = 14, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    sessions = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for path in arguments.files
    ]
    _, channels, height, width = sessions[0].get_inputs()[0].shape
    shape = (arguments.batch, channels, height, width)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    taken = np.zeros((ROUNDS, len(sessions)))
    turns = list(range(len(sessions)))
    for i in range(-WARM_UP, ROUNDS):
        random.shuffle(turns)
        for turn in turns:
            start = time.perf_counter()
            sessions[turn].run(["score", "weights"], {"pixels": pixels})
            taken[i, turn] = time.perf_counter() - start
    for path, times in zip(arguments.files, taken.T, strict=True):
        ratio = np.median(times / taken[:, 0])
        print(f"{1e3 * np.median(times):8.1f} ms  {ratio:.3f} times the first  {path}")


if __name__ == "__main__":
    main()
