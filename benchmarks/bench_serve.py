"""Compare `drx serve` with calling its Scorer in process, and load it with requests.

    python benchmarks/bench_serve.py BUNDLE [--weights demo] [--litserve] [--receipt FILE]

One image is scored again and again: one at a time, as many as can be, and at random times at
shares of that throughput, to twice of it. The clients are processes of their own. Nothing else
should run on the machine.
"""

import argparse
import contextlib
import itertools
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from drexperts.bench.json_files import write_json
from drexperts.bench.provenance import this_machine, this_source
from drexperts.bench.timing import SETTLE, WARM_UP, alternately, photograph, seconds
from drexperts.benchmarks.asked_servers import Server, drx_serve, litserve
from drexperts.benchmarks.receipt_types.receipt import Samples, add_receipt_option, markdown
from drexperts.benchmarks.receipt_types.serve_receipt import (
    AGAIN,
    IN_PROCESS,
    LOCAL,
    OTHER,
    SERVED,
    STREAM,
    Load,
    Saturated,
    ServeReceipt,
    parts,
)
from drexperts.runtime import load
from drexperts.runtime.progress import Progress
from drexperts.runtime.scorer import Scorer
from drexperts.ui.screen import Screen

PACKAGES = ("drexperts.runtime", "drexperts.serve")
SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
ROUNDS, CONNECTIONS = 5, 6  # at saturation
FEWEST, MOST = 9, 200  # rounds of one image at a time


def one_at_a_time(
    servers: Mapping[str, Server], scorer: Scorer, image: bytes, budget: float, tell: Progress
) -> dict[str, Samples]:
    """Seconds of one image by each way, in the same rounds. Over HTTP the client takes the time."""
    local = Scorer(scorer.manifest, scorer.engine, scorer.session)
    calls: dict[str, Callable[[], object]] = {
        IN_PROCESS: partial(scorer.score, image),
        AGAIN: partial(scorer.score, image),
        LOCAL: partial(local.score, image),
    }
    answers: dict[str, list[Any]] = {name: [] for name in servers}
    for name, server in servers.items():
        calls[name] = partial(_keep, answers[name], server, 1)
    calls[IN_PROCESS]()
    once = seconds(calls[IN_PROCESS]) + SETTLE
    rounds = max(FEWEST, min(MOST, int(budget / (len(calls) * once))))
    times = alternately(calls, rounds, tell)
    for name, found in answers.items():
        times[name] = tuple(each["latencies"][0] for each in found[WARM_UP:])
    return times


def at_saturation(
    servers: Mapping[str, Server], scorer: Scorer, image: bytes, images: int, connections: int
) -> Saturated:
    """Seconds of so many images by each way, in the same rounds."""
    calls: dict[str, Callable[[], object]] = {STREAM: partial(_stream, scorer, image, images)}
    answers: dict[str, list[Any]] = {name: [] for name in servers}
    for name, server in servers.items():
        calls[name] = partial(_keep, answers[name], server, images, connections)
    times = alternately(calls, ROUNDS)
    for name, found in answers.items():
        times[name] = tuple(each["seconds"] for each in found[WARM_UP:])
    cpu = tuple(each["cpu"] for each in answers[SERVED][WARM_UP:])
    return Saturated(images=images, connections=connections, seconds=times, client_cpu=cpu)


def _keep(answers: list[Any], server: Server, count: int, connections: int = 1) -> None:
    answers.append(server.scored(count, connections))


def _stream(scorer: Scorer, image: bytes, count: int) -> None:
    for score in scorer.score_stream(itertools.repeat(image, count)):
        assert score.error is None, score.error


def under_load(server: Server, share: float, capacity: float, budget: float) -> Load:
    """Requests at random times, at a share of the capacity in images per second."""
    rate = share * capacity
    before = server.engine_work()
    found = server.ask(max(1, round(rate * budget)), rate=rate)
    crops, calls = np.subtract(server.engine_work(), before).tolist()
    return Load(
        share=share,
        rate=rate,
        statuses=tuple(found["statuses"]),
        latencies=tuple(round(each, 5) for each in found["latencies"]),
        seconds=found["seconds"],
        crops=crops,
        calls=calls,
        client_cpu=found["cpu"],
    )


def measured(arguments: argparse.Namespace, tell: Progress) -> ServeReceipt:
    """Everything, of one bundle."""
    image, budget, queue = photograph(), arguments.seconds, arguments.queue
    with contextlib.ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "photo.jpg"
        file.write_bytes(image)
        scorer = stack.enter_context(load(arguments.bundle, isolated=True))
        served = stack.enter_context(drx_serve(arguments.bundle, queue, file))
        servers = {SERVED: served}
        if arguments.litserve:
            servers[OTHER] = stack.enter_context(litserve(arguments.bundle, file))
        crops = len(scorer.score(image).raw)
        alone = one_at_a_time(servers, scorer, image, 3 * budget, tell)
        connections = min(CONNECTIONS, queue // crops)
        images = max(2 * connections, int(budget / float(np.median(alone[IN_PROCESS]))))
        tell(f"as many as can be: {images} images in each of {ROUNDS} rounds")
        saturated = at_saturation(servers, scorer, image, images, connections)
        loads = []
        for share in SHARES:
            tell(f"at {share:g} of {saturated.throughput:.1f} images per second")
            loads.append(under_load(served, share, saturated.throughput, 2 * budget))
        return ServeReceipt(
            command=command_of(arguments),
            machine=this_machine(),
            source=this_source(*PACKAGES),
            weights=arguments.weights,
            engine=scorer.session.description,
            crops=crops,
            batch=scorer.batch,
            queue=queue,
            alone=alone,
            saturated=saturated,
            loads=tuple(loads),
        )


def command_of(arguments: argparse.Namespace) -> str:
    """What repeats the measurement."""
    options = f"--weights {arguments.weights} --queue {arguments.queue}"
    other = " --litserve" if arguments.litserve else ""
    return f"python benchmarks/bench_serve.py BUNDLE {options}{other}"


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--weights", choices=("random", "demo", "trained"), default="trained")
    parser.add_argument("--queue", type=int, default=64, help="crops that may wait (default: 64)")
    parser.add_argument("--litserve", action="store_true", help="compare with LitServe, too")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a part (default: 10)")
    add_receipt_option(parser)
    arguments = parser.parse_args(given)
    with Screen().progress() as tell:
        receipt = measured(arguments, tell)
    print(markdown(parts(receipt)))
    if arguments.receipt:
        write_json(receipt, arguments.receipt)


if __name__ == "__main__":
    main()
