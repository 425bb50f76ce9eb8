"""Latency of a bundle's engine, alone or alternately with baselines in one run."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from drexperts import runtime
from drexperts.provenance import machine_card
from drexperts.runtime.errors import UserError
from drexperts.runtime.preprocess import crops_from_image, decode
from drexperts.runtime.scorer import Scorer
from drexperts.timing import (
    SETTLE,
    Progress,
    photograph,
    ratio,
    ratio_text,
    seconds,
    statistics,
)

Contender = Callable[[NDArray[np.uint8]], object]

ENGINE = "engine"
NAMES = ("eager-dense", "eager-reduced", "backbones")
WARM_UP = 2  # calls of each contender before any is timed
ROUNDS = 15
BATCHES = (1, 4)

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
    content = photograph()
    spec = scorer.manifest.preprocessing
    prepare = [seconds(lambda: crops_from_image(decode(content), spec)) for _ in range(repeats)]
    whole = [seconds(lambda: scorer.score(content)) for _ in range(repeats)]
    crops = len(crops_from_image(decode(content), spec).pixels)
    return {"crops": crops, "preprocess": statistics(prepare), "image_e2e": statistics(whole)}


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
            taken = seconds(lambda run=contenders[name]: run(pixels))  # type: ignore[misc]
            if i >= 0:
                times[name].append(taken)
    return {
        "batch": batch,
        "latency": {name: statistics(taken) for name, taken in times.items()},
        "ratio": {name: ratio(times[name], times[ENGINE]) for name in names[1:]},
    }


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
            shown = ratio_text(entry["ratio"].get(name))
            row = [str(entry["batch"]), name, *milliseconds, f"{times['cv']:.0%}", rate, shown]
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
