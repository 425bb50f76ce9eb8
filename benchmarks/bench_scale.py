"""Measure what scoring a collection takes beside the engine: inputs, workers, memory, and listing.

    python benchmarks/bench_scale.py BUNDLE [--weights random] [--ray] [--receipt FILE]

The images are copies of one, which cost the same as different ones. Nothing else should run on the
machine.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import this_machine, this_source
from drexperts.bench.timing import alternately, photograph, seconds
from drexperts.benchmarks import scale_worker
from drexperts.benchmarks.receipt_types.receipt import Samples, add_receipt_option, markdown
from drexperts.benchmarks.receipt_types.scale_receipt import (
    PLAIN,
    RAY,
    Cores,
    Listing,
    Memory,
    Rows,
    ScaleReceipt,
    Stages,
    parts,
)
from drexperts.benchmarks.scale_inputs import (
    FOLDER,
    LIST,
    PARQUET,
    TAR,
    tiny_image,
    write_all,
    write_list,
    write_tar,
)
from drexperts.runtime import load, merge_shards, score_files
from drexperts.runtime.file_scorer import FileScorer
from drexperts.runtime.progress import Progress
from drexperts.runtime.scorer import Scorer
from drexperts.ui.screen import Screen

PACKAGES = ("drexperts.runtime", "drexperts.scale")
ROUNDS, WORKER_ROUNDS, CALLS = 4, 3, 20


def by_input(
    scorer: Scorer, on_ray: FileScorer | None, paths: dict[str, Path], out: Path, tell: Progress
) -> dict[str, Samples]:
    """Seconds of the same images by each way, in the same rounds."""
    images = sorted(paths[FOLDER].iterdir())

    def scored(by: FileScorer, name: str) -> None:
        listed = paths[LIST].read_text().split() if name == LIST else ()
        named = () if name == LIST else paths[name]
        done = score_files(by, named, out / "rows.jsonl", listed=listed, overwrite=True)
        assert done.scored == len(images), done

    calls: dict[str, Callable[[], object]] = {PLAIN: partial(_plain, scorer, images)}
    calls |= {name: partial(scored, scorer, name) for name in (FOLDER, LIST, TAR, PARQUET)}
    if on_ray is not None:
        calls[RAY] = partial(scored, on_ray, FOLDER)
    return alternately(calls, ROUNDS, tell)


def _plain(scorer: Scorer, images: Sequence[Path]) -> None:
    for score in scorer.score_stream(images):
        assert score.error is None, score.error


def by_cores(bundle: Path, folder: Path, tell: Progress) -> tuple[Cores, ...]:
    """Seconds of so many processes on so many cores; each scores the whole folder."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    images = len(list(folder.iterdir()))
    ways = {
        (1, 1): [cores[:1]],
        (2, 1): [cores],
        (2, 2): [[core] for core in cores],
    }
    times: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
    for turn, (way, processes) in itertools.product(range(WORKER_ROUNDS), ways.items()):
        if len(cores) >= way[0]:
            tell(f"{way[1]} processes on {way[0]} cores, round {turn + 1} of {WORKER_ROUNDS}")
            times[way].append(_slowest(bundle, folder, processes))
    return tuple(
        Cores(cores=way[0], processes=way[1], images=images * way[1], seconds=tuple(taken))
        for way, taken in times.items()
        if taken
    )


def _slowest(bundle: Path, folder: Path, processes: list[list[int]]) -> float:
    """Start together what is loaded already."""
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    _command("rate", bundle, folder, "--cores", ",".join(map(str, cores))),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for cores in processes
        ]
        for worker in workers:
            _line(worker)
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return max(float(_line(worker)["seconds"]) for worker in workers)


def _line(worker: "subprocess.Popen[str]") -> Any:
    assert worker.stdout is not None
    return json.loads(worker.stdout.readline())


def _told(*arguments: str | Path) -> Any:
    """What a worker prints at its end."""
    done = subprocess.run(_command(*arguments), stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, scale_worker.__file__, *map(str, arguments)]


def of_stages(scorer: Scorer, image: bytes) -> Stages:
    """Seconds of one image's decoding, and of a full batch in the engine."""
    crops = scorer.decoder.crops(image).pixels
    batch = np.resize(crops, (scorer.batch, *crops.shape[1:]))
    scorer.session.run(batch)
    return Stages(
        batch=scorer.batch,
        decode=tuple(seconds(partial(scorer.decoder.crops, image)) for _ in range(CALLS)),
        engine=tuple(seconds(partial(scorer.session.run, batch)) for _ in range(CALLS)),
    )


def of_memory(
    bundle: Path, folder: Path, counts: Sequence[int], tell: Progress
) -> tuple[Memory, ...]:
    """Peak resident memory over more and more tiny images of a tar archive, without an engine."""
    found = []
    for count in counts:
        tell(f"memory, {count} tiny images")
        write_tar(tiny_image(), count, folder / f"{count}.tar")
        told = _told("memory", bundle, folder / f"{count}.tar", folder / f"rows-{count}")
        found.append(Memory(**told))
    return tuple(found)


def of_rows(shard: Path, count: int) -> Rows:
    """What the rows of a shard take on the disk in each format, and how long the merge is."""
    sizes, times = {}, {}
    for suffix in ("jsonl", "csv", "parquet"):
        out = shard / f"merged.{suffix}"
        times[suffix] = seconds(partial(merge_shards, shard, out))
        sizes[suffix] = out.stat().st_size
    return Rows(count=count, sizes=sizes, merge=times)


def of_listing(bundle: Path, images: Path, count: int) -> Listing:
    """How soon a list begins of which only the first files exist, and how long all of it takes."""
    long = images.parent / "long.txt"
    write_list(long, images, count)
    return Listing(**_told("start", bundle, long))


def with_ray(
    scorer: Scorer, bundle: Path, paths: dict[str, Path], out: Path, tell: Progress
) -> tuple[dict[str, Samples], float]:
    """What `by_input` gives, with Ray among the ways, and the seconds that Ray took to start."""
    from drexperts.scale.ray import RayScorer

    tell("starting Ray")
    start = time.perf_counter()
    with RayScorer(bundle) as on_ray:
        started = time.perf_counter() - start
        return by_input(scorer, on_ray, paths, out, tell), started


def measured(arguments: argparse.Namespace, tell: Progress) -> ScaleReceipt:
    """Everything, of one bundle."""
    image, bundle, ray_start = photograph(), arguments.bundle.resolve(), None
    with tempfile.TemporaryDirectory() as temporary, load(bundle, isolated=True) as scorer:
        folder = Path(temporary)
        (folder / "images").mkdir()
        paths = write_all(image, arguments.images, folder / "images")
        if arguments.ray:
            inputs, ray_start = with_ray(scorer, bundle, paths, folder, tell)
        else:
            inputs = by_input(scorer, None, paths, folder, tell)
        tiny = arguments.tiny
        memory = of_memory(bundle, folder, (tiny // 100, tiny // 10, tiny), tell)
        return ScaleReceipt(
            command=command_of(arguments),
            machine=this_machine(),
            source=this_source(*PACKAGES),
            weights=arguments.weights,
            engine=scorer.session.description,
            crops=len(scorer.score(image).raw),
            image_bytes=len(image),
            images=arguments.images,
            inputs=inputs,
            ray_start=ray_start,
            stages=of_stages(scorer, image),
            cores=by_cores(bundle, paths[FOLDER], tell),
            memory=memory,
            rows=of_rows(folder / f"rows-{memory[-1].images}", memory[-1].images),
            listing=of_listing(bundle, paths[FOLDER], 10 * tiny),
        )


def command_of(arguments: argparse.Namespace) -> str:
    """What repeats the measurement."""
    ray = " --ray" if arguments.ray else ""
    return f"python benchmarks/bench_scale.py BUNDLE --weights {arguments.weights}{ray}"


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--weights", choices=("random", "demo", "trained"), default="trained")
    parser.add_argument("--ray", action="store_true", help="compare with Ray, too")
    parser.add_argument("--images", type=int, default=12, help="in a round (default: 12)")
    parser.add_argument(
        "--tiny",
        type=int,
        default=100_000,
        help="tiny images whose memory is measured; ten times as many are listed (default: 100000)",
    )
    add_receipt_option(parser)
    arguments = parser.parse_args(given)
    with Screen().progress() as tell:
        receipt = measured(arguments, tell)
    print(markdown(parts(receipt)))
    if arguments.receipt:
        write_json(receipt, arguments.receipt)


if __name__ == "__main__":
    main()
