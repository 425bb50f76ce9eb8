"""HTTP/1.1 with limits on how long clients may take, and on how many may be connected."""

import asyncio
import json
import sys
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from drexperts.serve.failures import CLOSE
from drexperts.serve.http.connections import most_connections

_HEAD_SECONDS = 10.0
# A client that takes less of its answer in such a time is taken for one that takes nothing.
_TAKE_SECONDS = 10.0
_TAKE_BYTES = 10_000
_REFUSED_SECONDS = 1.0  # for a client that is refused to read why
_CODES = {431: "headers_too_large"}


class Http(H11Protocol):
    """Closes connections whose client is too slow, which uvicorn lets wait for ever.

    A client that closes its side of the connection is taken for one that has left, as most servers
    do: nothing else tells that nobody waits for a score any more.
    """

    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Then `pause_writing` tells of every answer that its client has not taken yet. With 0, TLS
        # would pause with nothing to write.
        transport.set_write_buffer_limits(high=1)
        if len(self.connections) > most_connections() and not self._takes_an_idle_place():
            self._refuse()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_taken()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as every other mistake, unless an answer has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            cause = sys.exc_info()[1]  # uvicorn calls this where it caught what h11 raised
            status = getattr(cause, "error_status_hint", 400)
            self._answer(status, _CODES.get(status, "not_http"), msg, CLOSE)
        self.transport.close()

    def _answer(self, status: int, code: str, message: str, headers: dict[str, str]) -> None:
        """Answer without a request."""
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        about = {"Content-Type": "application/json", "Content-Length": str(len(body))} | headers
        reason = HTTPStatus(status).phrase.encode()
        start = h11.Response(status_code=status, headers=list(about.items()), reason=reason)
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _refuse(self) -> None:
        """Answer at once, and read nothing, since another connection may end meanwhile."""
        self._refused = True
        if len(self.connections) > most_connections(also_refused=True):
            self.transport.abort()
            return
        message = "the server has as many connections as it may: try again"
        self.logger.warning("a connection was refused: %s", message)
        self._answer(503, "busy", message, CLOSE | {"Retry-After": "1"})
        self.loop.call_later(_REFUSED_SECONDS, self.transport.close)

    def _takes_an_idle_place(self) -> bool:
        """Close the connection that has waited longest for its next request, if one waits."""
        waiting = {
            each: each._late.when()
            for each in self.connections
            if isinstance(each, Http) and each._late is not None
        }
        if not waiting:
            return False
        longest = min(waiting, key=waiting.__getitem__)
        longest._unwatch()
        longest.transport.abort()
        return True

    def _expect_taken(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._stuck = self.loop.call_later(_TAKE_SECONDS, self._close_stuck, left)

    def _taken(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _close_stuck(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < _TAKE_BYTES:
            self.transport.abort()  # to close it would wait for the client
        else:
            self._expect_taken()

    def _watch(self) -> None:
        if not self._is_between_requests():
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(_HEAD_SECONDS, self._close_late)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_late(self) -> None:
        self._late = None
        if self._is_between_requests():
            self.transport.close()

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete
