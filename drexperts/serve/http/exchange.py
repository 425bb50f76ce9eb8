"""One request and its answer: what was received and sent, and an end that the client can read."""

import asyncio
import contextlib
import json
from collections.abc import MutableMapping
from typing import Any

from starlette.types import Receive, Scope, Send

from drexperts.serve.failures import Answer

_DISCARD_SECONDS = 2.0  # for the rest of a body that nobody wants
_DISCARD_BYTES = 64 * 2**20
_CLOSE = (b"connection", b"close")


class Exchange:
    """The channels of a request, which are counted and completed.

    An answer that is sent before the whole body was received is lost if the connection is closed
    then: the rest of the body is a reason for the client's machine to drop what it received. So
    the rest is read and discarded, for some seconds, before the connection ends.

    status: of the answer; None while there is none
    received: bytes of the body so far
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._receive, self._send, self._id = receive, send, request_id
        self._protocol_error = scope["path"].startswith("/v2")  # the protocol's form of errors
        names = {name for name, _ in scope["headers"]}
        self._waits = b"expect" in names
        self._head = scope["method"] == "HEAD"
        self._all_received = not names & {b"content-length", b"transfer-encoding"}  # has no body
        self.gone = False
        self.status: int | None = None
        self.received = 0

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        else:
            self.received += len(message.get("body", b""))
            self._all_received = not message.get("more_body", False)
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self._id.encode())]
            if not self._ended and _CLOSE not in headers:
                headers.append(_CLOSE)
            await self._send({**message, "headers": headers})
        elif self._ended or message.get("more_body", False):
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            await self._discard()
            await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, answer: Answer) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.status is not None or self.gone:
            return
        error: Any = {"code": answer.code, "message": answer.message, "request_id": self._id}
        body = json.dumps({"error": answer.message if self._protocol_error else error}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        given = [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in (headers | dict(answer.headers)).items()
        ]
        start = {"type": "http.response.start", "status": answer.status, "headers": given}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": b"" if self._head else body})

    @property
    def _ended(self) -> bool:
        """Whether nothing of the body is left. A client that waits for 100 has sent nothing."""
        return self._all_received or self.gone or (self._waits and not self.received)

    async def _discard(self) -> None:
        most = self.received + _DISCARD_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while not self._ended and self.received < most:
                    await self.receive()
