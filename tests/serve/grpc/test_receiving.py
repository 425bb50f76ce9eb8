"""Messages that are arriving: how many, how long, and who makes place for whom."""

import asyncio

import grpc
import pytest

from drexperts.serve.body_memory import BodyMemory
from drexperts.serve.failures import RequestError
from drexperts.serve.grpc import receiving
from drexperts.serve.grpc.receiving import Receiver


async def never():
    await asyncio.sleep(60)


def giving(message):
    async def read():
        return message

    return read


async def received(receiver, read):
    async with receiver.message(read) as message:
        return message


def code_of(error):
    return error.value.answer.code


def test_a_message_has_memory_until_its_call_ends() -> None:
    async def run() -> None:
        memory = BodyMemory(10)
        receiver = Receiver(memory, most=10, seconds=5)
        async with receiver.message(giving(b"x" * 6)) as message:
            assert (message, memory.held) == (b"x" * 6, 6)
            with pytest.raises(RequestError) as error:
                await received(receiver, giving(b"x" * 6))
            assert code_of(error) == "busy"
        assert memory.held == 0

    asyncio.run(run())


def test_a_message_must_come_in_time() -> None:
    async def run() -> None:
        receiver = Receiver(BodyMemory(10), most=10, seconds=0.01)
        for read, code in ((never, "slow"), (giving(grpc.aio.EOF), "no_message")):
            with pytest.raises(RequestError) as error:
                await received(receiver, read)
            assert code_of(error) == code

    asyncio.run(run())


def test_who_is_slow_makes_place_for_who_waits(monkeypatch) -> None:
    monkeypatch.setattr(receiving, "_LEAST", 0.01)

    async def run() -> None:
        receiver = Receiver(BodyMemory(20), most=10, seconds=50)
        slow = [asyncio.create_task(received(receiver, never)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await received(receiver, giving(b"x")) == b"x"
        with pytest.raises(RequestError, match="in time"):
            await slow[0]
        assert not slow[1].done()
        slow[1].cancel()

    asyncio.run(run())
