"""Messages of calls over gRPC: received in bounded memory and time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from drexperts.serve.body_memory import BodyMemory
from drexperts.serve.failures import RequestError

_LEAST = 1.0  # seconds for a message to arrive, whoever waits


class Receiver:
    """Receives the one message of a call.

    gRPC keeps what has arrived of a message to itself until all of it is there. So the memory of
    messages that are arriving is bounded by their number: as many as would fill the memory of
    bodies. While others wait for one of these places, those that have one longest must be quick.

    memory: which a message takes once it is there, until its call has ended
    most: bytes of a message
    seconds: in which it must arrive
    """

    def __init__(self, memory: BodyMemory, most: int, seconds: float) -> None:
        self._memory, self._most, self._seconds = memory, most, seconds
        self._places = asyncio.Semaphore(max(1, memory.most // most))
        self._arriving: dict[asyncio.Timeout, None] = {}

    @asynccontextmanager
    async def message(self, read: Callable[[], Awaitable[Any]]) -> AsyncIterator[bytes]:
        """The message that `read` gives, in memory that is free at the end of the `with`.

        Raises RequestError for a message that is too slow or missing, and if no memory is free.
        """
        message = await self._arrived(read)
        self._memory.take(len(message))
        try:
            yield message
        finally:
            self._memory.give(len(message))

    async def _arrived(self, read: Callable[[], Awaitable[Any]]) -> bytes:
        if self._places.locked():
            self._hurry()
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit, self._places:
                self._arriving[limit] = None
                message = await read()
        except TimeoutError as cause:
            late = "the message did not arrive in time: send it faster"
            raise RequestError(408, "slow", late) from cause
        finally:
            self._arriving.pop(limit, None)
        if message is grpc.aio.EOF:
            # If it is too large, gRPC has told the client so already.
            none = f"the call has no message of at most {self._most} bytes: send one"
            raise RequestError(400, "no_message", none)
        return bytes(message)

    def _hurry(self) -> None:
        """Give the message that has been arriving longest, and was not hurried yet, less time."""
        soon = asyncio.get_running_loop().time() + _LEAST
        for limit in self._arriving:
            if (limit.when() or 0.0) > soon:
                limit.reschedule(soon)
                return
