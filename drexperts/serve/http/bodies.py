"""Bodies of requests: received in bounded memory and time, raw or as the parts of a form."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from drexperts.serve.body_memory import BodyMemory
from drexperts.serve.failures import CLOSE, RequestError


class Intake:
    """Receives the body of one request. What it holds is free at the end of its `with`.

    most: bytes of the body
    seconds: in which it must arrive
    """

    def __init__(self, request: Request, memory: BodyMemory, most: int, seconds: float) -> None:
        self._request, self._memory = request, memory
        self._most, self._seconds = most, seconds
        self._taken = 0

    async def raw(self) -> bytes:
        """The body. Raises RequestError for one that is too large, too slow or empty."""
        body = bytearray()
        async with self._in_time():
            async for part in self._stream():
                body += part
        if not body:
            raise RequestError(400, "empty", "the body is empty: send an image")
        return bytes(body)

    async def files(self, most: int) -> list[tuple[str, bytes]]:
        """The name and the content of each file of a form of at most so many.

        Raises RequestError as `raw`, and for a form that is malformed or has other fields.
        """
        try:
            async with self._in_time():
                parser = _InMemory(
                    self._request.headers, self._stream(), max_files=most, max_fields=0
                )
                form = await parser.parse()
        except (MultiPartException, UnicodeDecodeError) as error:
            message = f"the form cannot be read: {error}"
            raise RequestError(400, "bad_form", message) from error
        files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
        if not files:
            raise RequestError(400, "empty", "the form has no file: send images as files")
        try:
            return [(_named(file.filename), await file.read()) for file in files]
        finally:
            await form.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._memory.give(self._taken)
        self._taken = 0

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        encoding = self._request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":  # of bounded size, it could be of any when read
            message = "compressed bodies are not read: send it without Content-Encoding"
            raise RequestError(415, "compressed", message, CLOSE)
        announced = self._request.headers.get("content-length", "0")
        self._check(int(announced) if announced.isdecimal() else 0)
        async for part in self._request.stream():
            self._check(self._taken + len(part))
            self._memory.take(len(part))
            self._taken += len(part)
            yield part

    def _check(self, size: int) -> None:
        if size > self._most:
            message = f"the body is larger than {self._most} bytes: send less"
            raise RequestError(413, "too_large", message, CLOSE)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._seconds):
                yield
        except TimeoutError as cause:
            message = "the body did not arrive in time: send it faster"
            raise RequestError(408, "slow", message, CLOSE) from cause


class _InMemory(MultiPartParser):
    """Writes no file: the memory of bodies is bounded, and a disk may be read-only."""

    spool_max_size = 2**62


def _named(given: str | None) -> str:
    """The name of a file as text that can be sent: a charset may make what is none."""
    return (given or "image").encode("utf-8", "replace").decode()


def is_form(request: Request) -> bool:
    """Whether the body is a form with files."""
    kind, _, _ = request.headers.get("content-type", "").partition(";")
    return kind.strip().lower() == "multipart/form-data"
