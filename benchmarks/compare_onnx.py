"""Time ONNX files on the same input in the same rounds, and compare them with the first.

    python benchmarks/compare_onnx.py A.onnx B.onnx ... [--batch 1]

For a change to the graph: export before and after it, and compare.
"""

import argparse
from pathlib import Path

import numpy as np

from drexperts.bench.timing import Ratio, alternately
from drexperts.runtime.onnx_library import import_onnxruntime

ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    # By number, so that one file can be named twice, which shows the noise.
    sessions = {
        str(i): import_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
        for i, path in enumerate(arguments.files)
    }
    _, channels, height, width = sessions["0"].get_inputs()[0].shape
    shape = (arguments.batch, channels, height, width)
    feed = {"pixels": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)}
    calls = {
        name: lambda session=session: session.run(["score", "weights"], feed)
        for name, session in sessions.items()
    }
    times = alternately(calls, ROUNDS)
    for path, taken in zip(arguments.files, times.values(), strict=True):
        ratio = Ratio.of(taken, times["0"])
        print(f"{1e3 * np.median(taken):8.1f} ms  {ratio} times the first  {path}")


if __name__ == "__main__":
    main()
