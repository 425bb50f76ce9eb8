"""Overload `drx serve`, then ask it for minutes; exit with 1 if it breaks a promise.

    python benchmarks/soak_serve.py BUNDLE photos/ [--overload 60] [--soak 300] [--threads 1]

First as many clients as the queue has places for find out how much the server can answer. Then ten
times as many offer ten times as much: every request must be answered, with the score that the same
engine gives in this process or with 503 and Retry-After, soon and in bounded memory. Then a few
clients ask well and badly for minutes, while memory, descriptors and processes must stay the same.
At the end a signal comes while requests are in flight, which must be answered.

The clients take processor time from the server: what it answers here is no measure of its speed.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from drexperts.runtime import load
from drexperts.runtime.inputs.folders import find_images
from drexperts.runtime.preprocess import most_crops
from drexperts.runtime.proof import TOLERANCES

_PLACES = 8  # images that the queue takes
_TIMES = 10  # as much as can be answered is offered
_MOST_MEMORY = 512 * 2**20  # more than before the overload: bodies may hold half of it
_PATIENCE = 5  # times as long as a full queue takes, since clients share the processor
_MOST_GROWTH = 1.05  # of memory in the soak
_FORM = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n%b\r\n'


@dataclass
class Tally:
    """What clients saw.

    seconds: from each request that was scored to its answer
    broken: which promises were not kept
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Known:
    """Files, and what each of them scores; `allowed` is how much an answer may differ."""

    files: list[bytes]
    values: list[float]
    allowed: float
    crops: int  # the most crops of an image

    @classmethod
    def of(cls, bundle: Path, photos: str, threads: int) -> "Known":
        files = [Path(path).read_bytes() for path in find_images([photos]).paths[:20]]
        with load(bundle, threads=threads) as scorer:
            values = [scorer.score(file).value for file in files]
            allowed = TOLERANCES[scorer.engine.precision] * scorer.manifest.scale.span
            return cls(files, values, allowed, most_crops(scorer.preprocessing))


class Client:
    """One connection, which is made again when it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, body: bytes = b"", kind: str = "image/x"
    ) -> tuple[int, dict[str, str], bytes]:
        """The status, the headers and the body of an answer."""
        if self._streams is not None and self._streams[0].at_eof():
            await self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()[:-1]
        headers = dict(line.split(": ", 1) for line in lines)
        content = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            await self.close()
        return int(first.split()[1]), headers, content

    async def leave(self, sent: bytes) -> None:
        """Send something, and close the connection without waiting for an answer."""
        await self.close()
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(sent)
        await writer.drain()
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            with contextlib.suppress(OSError):
                await self._streams[1].wait_closed()
        self._streams = None


async def score_one(client: Client, known: Known, tally: Tally) -> None:
    """Ask for the score of any file, and look whether the answer is right."""
    index = random.randrange(len(known.files))
    start = time.perf_counter()
    status, headers, body = await client.ask("POST", "/v1/score", known.files[index])
    tally.statuses[status] += 1
    if status == 200:
        tally.seconds.append(time.perf_counter() - start)
        if not abs(json.loads(body)["value"] - known.values[index]) <= known.allowed:
            tally.broken["a score is wrong"] += 1
    elif status != 503:
        tally.broken[f"an image is answered with {status}"] += 1
    elif "retry-after" not in headers:
        tally.broken["a 503 has no Retry-After"] += 1


async def clients(
    port: int, known: Known, count: int, seconds: float, rate: float = 1e9
) -> tuple[Tally, float]:
    """Let `count` clients ask at most `rate` requests per second; what they saw, and how long."""
    tally, start = Tally(), time.perf_counter()

    async def one() -> None:
        client, due = Client(port), start + random.random() * count / rate
        while time.perf_counter() < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            due += count / rate
            try:
                await score_one(client, known, tally)
            except (OSError, EOFError) as error:
                tally.broken[f"a request is lost: {error!r}"] += 1
                await client.close()
        await client.close()

    await asyncio.gather(*(one() for _ in range(count)))
    return tally, time.perf_counter() - start


async def nuisance(port: int, known: Known, seconds: float, tally: Tally) -> None:
    """Ask badly, and leave early."""
    client, end = Client(port), time.perf_counter() + seconds
    file = known.files[0]
    form = _FORM % file + _FORM % b"text" + b"--x--\r\n"
    head = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(file)}\r\n\r\n"
    while time.perf_counter() < end:
        asked = {
            200: client.ask("POST", "/v1/score?maps=true", form, "multipart/form-data; boundary=x"),
            422: client.ask("POST", "/v1/score", b"text"),
            404: client.ask("GET", "/nowhere"),
            400: client.ask("POST", "/v2/models/drexperts/infer", b"text"),
        }
        for status, answer in asked.items():
            if (found := (await answer)[0]) not in (status, 503):
                tally.broken[f"{found} in place of {status}"] += 1
        await client.ask("GET", "/metrics")
        for sent in (
            head.encode() + file,
            head.encode() + file[:1000],
            b"POST",
            b"\x16\x03\r\n\r\n",
        ):
            await client.leave(sent)
        await asyncio.sleep(0.05)
    await client.close()


class Watch:
    """Samples of a process and its children, twice a second: bytes, descriptors, processes."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.samples: list[tuple[int, int, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> NDArray[np.int64]:
        """int64 [samples, 3], of at least one sample."""
        self._ended.set()
        self._thread.join()
        return np.array(self.samples, np.int64)

    def _run(self) -> None:
        while not self.samples or not self._ended.wait(0.5):
            with contextlib.suppress(psutil.NoSuchProcess):
                all_of_it = [self._process, *self._process.children(recursive=True)]
                memory = sum(each.memory_info().rss for each in all_of_it)
                self.samples.append((memory, self._process.num_fds(), len(all_of_it)))


@contextlib.contextmanager
def serving(
    bundle: Path, queue: int, threads: int
) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """The command with an engine that is ready, and its port."""
    words = ["serve", str(bundle), "--port", "0", "--queue", str(queue), "--threads", str(threads)]
    command = [sys.executable, "-P", "-m", "drexperts.cli.main", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if " at http" in line)
            threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
            port = int(line.rsplit(":", 1)[1])
            asyncio.run(ready(port))
            yield process, port
        finally:
            process.kill()


async def ready(port: int) -> None:
    client = Client(port)
    while (await client.ask("GET", "/v2/health/ready"))[0] != 200:
        await asyncio.sleep(0.1)
    await client.close()


def overload(process: "subprocess.Popen[str]", port: int, known: Known, seconds: float) -> Tally:
    """Offer ten times as much as the server can answer."""
    can, took = asyncio.run(clients(port, known, _PLACES, max(1.0, seconds / 10)))
    rate = can.statuses[200] / took
    count, watch = _TIMES * _PLACES, Watch(process.pid)
    tally, took = asyncio.run(clients(port, known, count, seconds, _TIMES * max(rate, 1)))
    memory = watch.end()[:, 0]
    before, peak = int(memory[0]), int(memory.max())
    p50, p99 = np.percentile(tally.seconds or [np.inf], [50, 99])
    say("overload", f"{took:.0f} s, {count} clients, {sum(tally.statuses.values()) / took:.0f}/s")
    say("  answered", f"{dict(sorted(tally.statuses.items()))}, at first {rate:.1f}/s could be")
    say("  p50, p99 of 200", f"{1e3 * p50:.0f} ms, {1e3 * p99:.0f} ms")
    say("  memory", f"{before / 2**20:.0f} MiB before, at most {peak / 2**20:.0f} MiB")
    if peak > before + _MOST_MEMORY:
        tally.broken["memory is not bounded"] += 1
    if p99 > 1 + _PATIENCE * _PLACES / max(tally.statuses[200] / took, 1e-9):
        tally.broken["what is accepted waits for longer than a full queue takes"] += 1
    return tally


def soak(process: "subprocess.Popen[str]", port: int, known: Known, seconds: float) -> Tally:
    """Ask well and badly for a while."""
    watch = Watch(process.pid)

    async def both() -> Tally:
        badly = Tally()
        (tally, _), _ = await asyncio.gather(
            clients(port, known, 4, seconds), nuisance(port, known, seconds, badly)
        )
        tally.broken += badly.broken
        return tally

    tally = asyncio.run(both())
    samples = watch.end()
    fifth = len(samples) // 5  # of which the first is for warming up
    early = np.median(samples[fifth : max(1, 2 * fifth)], 0)
    late = np.median(samples[-max(1, fifth) :], 0)
    say("soak", f"{seconds:.0f} s, answered {dict(sorted(tally.statuses.items()))}")
    for what, unit, one, other in zip(
        ("memory", "descriptors", "processes"), (2**20, 1, 1), early, late, strict=True
    ):
        say(f"  {what}", f"{one / unit:.0f}, at the end {other / unit:.0f}")
    if late[0] > _MOST_GROWTH * early[0]:
        tally.broken["memory grows"] += 1
    if late[1] > early[1] + 4 or late[2] > early[2]:  # connections come and go
        tally.broken["descriptors or processes are left"] += 1
    return tally


def end(process: "subprocess.Popen[str]", port: int, known: Known) -> Tally:
    """Send a signal while requests are in flight."""

    async def asked() -> Tally:
        tally, connected = Tally(), [Client(port) for _ in range(_PLACES // 2)]
        for client in connected:
            await client.ask("GET", "/v2/health/live")
        asking = [asyncio.create_task(score_one(client, known, tally)) for client in connected]
        await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        for result in await asyncio.gather(*asking, return_exceptions=True):
            if result is not None:
                tally.broken[f"a request is lost at the end: {result!r}"] += 1
        for client in connected:
            await client.close()
        return tally

    tally = asyncio.run(asked())
    status = process.wait(60)
    say("end", f"answered {dict(tally.statuses)}, exit status {status}")
    if status:
        tally.broken[f"the exit status is {status}"] += 1
    return tally


def say(name: str, what: str) -> None:
    print(f"{name:20}{what}", flush=True)


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos")
    parser.add_argument("--overload", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--soak", type=float, default=300, metavar="SECONDS")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the engine")
    arguments = parser.parse_args(given)
    known = Known.of(arguments.bundle, arguments.photos, arguments.threads)
    queue = _PLACES * known.crops
    broken: Counter[str] = Counter()
    with serving(arguments.bundle, queue, arguments.threads) as (process, port):
        broken += overload(process, port, known, arguments.overload).broken
        broken += soak(process, port, known, arguments.soak).broken
        broken += end(process, port, known).broken
    for what, times in broken.items():
        say("BROKEN", f"{what} ({times} times)")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
