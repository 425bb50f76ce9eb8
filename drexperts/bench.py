"""Latency of a bundle's engine, alone or alternately with baselines in one run."""

import io
import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from drexperts import runtime
from drexperts.runtime.errors import UserError
from drexperts.runtime.preprocess import crops_from_image, decode
from drexperts.runtime.scorer import Scorer

Progress = Callable[[str], None]
Contender = Callable[[NDArray[np.uint8]], object]

ENGINE = "engine"
NAMES = ("eager-dense", "eager-reduced", "backbones")
WARM_UP = 2  # calls of each contender before any is timed
ROUNDS = 15
BATCHES = (1, 4)
# Worker threads of PyTorch and ONNX Runtime spin for a while after a call, at the cost of whoever
# runs next on the same cores.
SETTLE = 0.1  # seconds between two calls
PHOTO = (1024, 768)

# Run in a process of its own, where nothing but the runtime is resident.
_COLD_START = """
import json, sys, time
start = time.perf_counter()
from drexperts import runtime
imported = time.perf_counter()
scorer = runtime.load(sys.argv[1], threads=int(sys.argv[2]) or None)
loaded = time.perf_counter()
import numpy as np
size = scorer.manifest.preprocessing.crop
scorer.session.run(np.zeros((1, 3, size, size), np.uint8))
first = time.perf_counter()
with open("/proc/self/status") as status:
    memory = dict(line.split(":", 1) for line in status)
resident, peak = (1024 * int(memory[name].split()[0]) for name in ("VmRSS", "VmHWM"))
print(json.dumps({"import_s": imported - start, "load_s": loaded - imported,
    "first_inference_s": first - loaded, "resident_bytes": resident, "peak_bytes": peak}))
"""


def bench_bundle(
    bundle: Path,
    *,
    baselines: tuple[str, ...] = (),
    batches: tuple[int, ...] | None = None,
    repeats: int | None = None,
    threads: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure a bundle's engine on this machine.

    Engine and baselines see the same pixels and run once each in every round, in random order, so
    that whatever else the machine does falls on all of them. Ratios are taken within a round.

    Args:
        baselines: of `NAMES`; they need the `export` extra.
        batches: crops in a call; None is 1 and 4, as far as the bundle admits them.
        repeats: rounds for each batch; None is 15.
        threads: of the engine and of PyTorch; None leaves their defaults.
        checkpoint: weights of the baselines; None makes random ones, which cost the same.

    Returns:
        A JSON-ready report; times in seconds.
    """
    if repeats is not None and repeats < 1:
        raise UserError(f"a measurement needs one repeat at least, got {repeats}")
    progress("cold start in a process of its own")
    cold = cold_start(bundle, threads)
    scorer = runtime.load(bundle, threads=threads)
    most = scorer.session.max_batch
    batches = tuple(size for size in BATCHES if size <= most) if batches is None else batches
    if any(not 1 <= batch <= most for batch in batches):
        raise UserError(f"this bundle admits batches of 1 to {most}, asked for {list(batches)}")
    contenders: dict[str, Contender] = {ENGINE: scorer.session.run}
    contenders |= _baselines(scorer, baselines, threads, checkpoint, progress)
    return {
        "machine": machine_card(threads),
        "bundle": {"preset": scorer.manifest.preset, "session": scorer.session.description},
        "weights": "random" if checkpoint is None else str(checkpoint),
        "cold_start": cold,
        "image": image_times(scorer, repeats or ROUNDS),
        "batches": [
            _batch_times(contenders, scorer, batch, repeats or ROUNDS, progress)
            for batch in batches
        ],
    }


def cold_start(bundle: Path, threads: int | None) -> dict[str, float]:
    """Import, load and first inference, and memory after it, in a fresh process."""
    command = [sys.executable, "-P", "-c", _COLD_START, str(bundle), str(threads or 0)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # The last line of a traceback: the class of the error, then what to do.
        raise UserError(done.stderr.strip().splitlines()[-1].partition(": ")[2])
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def image_times(scorer: Scorer, repeats: int) -> dict[str, Any]:
    """A 1024x768 JPEG: decoding and cropping on one core, and bytes to Score."""
    content = _photo()
    spec = scorer.manifest.preprocessing
    prepare = [_seconds(lambda: crops_from_image(decode(content), spec)) for _ in range(repeats)]
    whole = [_seconds(lambda: scorer.score(content)) for _ in range(repeats)]
    crops = len(crops_from_image(decode(content), spec).pixels)
    return {"crops": crops, "preprocess": statistics(prepare), "image_e2e": statistics(whole)}


def statistics(samples: Sequence[float]) -> dict[str, Any]:
    """Percentiles, mean and coefficient of variation of times, with the samples."""
    values = np.asarray(samples)
    quantiles = {f"p{q}": float(np.percentile(values, q)) for q in (20, 50, 80, 90, 99)}
    mean = float(values.mean())
    return quantiles | {"mean": mean, "cv": float(values.std() / mean), "samples": values.tolist()}


def machine_card(threads: int | None) -> dict[str, Any]:
    """What the numbers were measured on."""
    names = ("drexperts", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "torch", "timm")
    return {
        "cpu": _cpu_name(),
        "cores": _cores(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in names if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _baselines(
    scorer: Scorer,
    names: tuple[str, ...],
    threads: int | None,
    checkpoint: Path | None,
    progress: Progress,
) -> dict[str, Contender]:
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise UserError(f"unknown baseline {', '.join(unknown)}: choose of {', '.join(NAMES)}")
    if not names:
        return {}
    import torch

    from drexperts.baselines import BASELINES, baseline_model
    from drexperts.config import DRExpertsConfig

    if threads is not None:
        torch.set_num_threads(threads)
    progress("building the baselines")
    config = DRExpertsConfig.from_dict(scorer.manifest.config)
    model = baseline_model(config, checkpoint)
    return {name: BASELINES[name](model, threads) for name in names}


def _batch_times(
    contenders: dict[str, Contender], scorer: Scorer, batch: int, rounds: int, progress: Progress
) -> dict[str, Any]:
    size = scorer.manifest.preprocessing.crop
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    shuffle = random.Random(0).shuffle
    for i in range(-WARM_UP, rounds):
        progress(f"batch {batch}: round {max(0, i + 1)} of {rounds}")
        turns = list(names)
        shuffle(turns)
        for name in turns:
            time.sleep(SETTLE)
            seconds = _seconds(lambda run=contenders[name]: run(pixels))  # type: ignore[misc]
            if i >= 0:
                times[name].append(seconds)
    return {
        "batch": batch,
        "latency": {name: statistics(taken) for name, taken in times.items()},
        "ratio": {name: _ratio(times[name], times[ENGINE]) for name in names[1:]},
    }


def _ratio(baseline: list[float], engine: list[float]) -> dict[str, float]:
    """Baseline over engine, round by round: the median and the middle 60 %."""
    ratios = np.divide(baseline, engine)
    return {f"p{q}": float(np.percentile(ratios, q)) for q in (20, 50, 80)}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _photo() -> bytes:
    """A JPEG with a photograph's mix of smooth and fine detail; made here, so nothing is needed."""
    width, height = PHOTO
    rng = np.random.default_rng(0)
    layers = [
        np.asarray(
            Image.fromarray(
                rng.integers(0, 256, (height // s, width // s, 3), dtype=np.uint8)
            ).resize(PHOTO, Image.Resampling.BICUBIC),
            float,
        )
        for s in (96, 24, 6, 2)
    ]
    mixed = sum(w * layer for w, layer in zip((0.5, 0.3, 0.15, 0.05), layers, strict=True))
    stream = io.BytesIO()
    Image.fromarray(np.asarray(mixed).round().astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def print_report(report: dict[str, Any], console: Console) -> None:
    """The report as tables."""
    machine, cold, image = report["machine"], report["cold_start"], report["image"]
    console.print(f"{machine['cpu']}, {machine['cores']} cores; {report['bundle']['session']}")
    headings = ("batch", "", "p50 ms", "p90 ms", "p99 ms", "cv", "crops/s", "times the engine")
    table = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for entry in report["batches"]:
        for name, times in entry["latency"].items():
            milliseconds = [f"{1e3 * times[q]:.1f}" for q in ("p50", "p90", "p99")]
            rate = f"{entry['batch'] / times['p50']:.1f}"
            ratio = _ratio_text(entry["ratio"].get(name))
            row = [str(entry["batch"]), name, *milliseconds, f"{times['cv']:.0%}", rate, ratio]
            table.add_row(*row)
    console.print(table)
    console.print(
        f"cold start: import {cold['import_s']:.2f} s, load {cold['load_s']:.2f} s, "
        f"first inference {cold['first_inference_s']:.2f} s; "
        f"resident {cold['resident_bytes'] / 1e6:.0f} MB, peak {cold['peak_bytes'] / 1e6:.0f} MB"
    )
    console.print(
        f"a 1024x768 JPEG ({image['crops']} crops): decode and crop "
        f"{1e3 * image['preprocess']['p50']:.1f} ms, bytes to Score "
        f"{1e3 * image['image_e2e']['p50']:.0f} ms"
    )


def _ratio_text(ratio: dict[str, float] | None) -> str:
    return "" if ratio is None else f"{ratio['p50']:.2f} ({ratio['p20']:.2f}-{ratio['p80']:.2f})"
