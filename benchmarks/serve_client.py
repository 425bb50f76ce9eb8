"""Ask a server over HTTP, from a process of its own that needs little CPU.

Each line on standard input is a JSON object that says what to ask; the answer is a line of JSON.
Only the standard library is imported, so that it starts fast and leaves the CPU to the server.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to ask.

    file: its bytes are the body of each request
    count: of requests
    connections: each sends its next request once it has the answer to the last one
    rate: requests per second, at random times, whatever was answered so far; 0 is as above
    """

    host: str
    port: int
    path: str
    kind: str
    file: str
    count: int
    connections: int = 1
    rate: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What came back.

    statuses, latencies: of each request; seconds from when it was due to the end of its answer, and
        status 0 where the connection broke
    seconds: of all
    cpu: seconds of processor time that this process took
    """

    statuses: tuple[int, ...]
    latencies: tuple[float, ...]
    seconds: float
    cpu: float


class Connections:
    """Connections that are used again, as many as are needed at once."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        body = Path(asked.file).read_bytes()
        head = (
            f"POST {asked.path} HTTP/1.1\r\nHost: {asked.host}\r\nContent-Type: {asked.kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def open(self, count: int) -> None:
        """Have so many connections."""
        for _ in range(count):
            self._idle.append(await asyncio.open_connection(self._asked.host, self._asked.port))

    async def post(self) -> int:
        """The status of an answer that was read to its end; 0 for a connection that broke."""
        try:
            return await self._post(*await self._one())
        except (ConnectionError, asyncio.IncompleteReadError):
            return 0

    async def _post(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        await reader.readexactly(length)
        if "connection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head.split()[1])

    async def _one(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # servers close connections that are idle for some seconds
                return reader, writer
        await self.open(1)
        return self._idle.pop()

    def close(self) -> None:
        """Close what is idle."""
        for _, writer in self._idle:
            writer.close()


async def answers(asked: Asked) -> Answered:
    """Ask, and wait for every answer."""
    connections = Connections(asked)
    statuses, latencies = [0] * asked.count, [0.0] * asked.count
    await connections.open(asked.connections)
    cpu, start = time.process_time(), time.monotonic()

    async def one(number: int, due: float) -> None:
        statuses[number] = await connections.post()
        latencies[number] = time.monotonic() - due

    if asked.rate:
        await _at_random_times(asked, one)
    else:
        numbers = iter(range(asked.count))

        async def in_turn() -> None:
            for number in numbers:
                await one(number, time.monotonic())

        await asyncio.gather(*(in_turn() for _ in range(asked.connections)))
    seconds, used = time.monotonic() - start, time.process_time() - cpu
    connections.close()
    return Answered(statuses=tuple(statuses), latencies=tuple(latencies), seconds=seconds, cpu=used)


async def _at_random_times(
    asked: Asked, one: Callable[[int, float], Coroutine[None, None, None]]
) -> None:
    """A Poisson process: the gaps are exponential, the same in every run."""
    draw, due, tasks = random.Random(0), time.monotonic(), []
    for number in range(asked.count):
        due += draw.expovariate(asked.rate)
        await asyncio.sleep(due - time.monotonic())
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)


def main() -> None:
    for line in sys.stdin:
        found = asyncio.run(answers(Asked(**json.loads(line))))
        print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    main()
