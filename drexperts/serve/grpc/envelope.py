"""What every call over gRPC goes through: its id, its token, its message, its errors, the log."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc

from drexperts.runtime.quoting import printable, shortened
from drexperts.serve.failures import Answer, RequestError, answer_of
from drexperts.serve.grpc.receiving import Receiver
from drexperts.serve.guard import Guard
from drexperts.serve.requests import OnRequest, id_of, log_request

_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# Characters of a message. Clients refuse more than 8 KiB of metadata, and a character may take 12.
_LONGEST = 500
_AT_ONCE = 0.01  # seconds; a deadline that is so near has passed
_log = logging.getLogger("drexperts.serve")


class Method(NamedTuple):
    """A method of a service.

    answer: gives the messages of the answer, for the message of the request
    open: whether it needs no token
    """

    answer: Callable[[bytes], AsyncGenerator[bytes, None]]
    open: bool = False


class GrpcEnvelope(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers the calls of methods, which may raise any error.

    Browsers, which pages of other sites could use, do not speak gRPC: the name under which a
    client asks is not looked at.

    methods: by their paths
    receiver: of the messages of those that need a token, where there are tokens
    health: of the others, so that nobody without a token is in the way of the first
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        guard: Guard,
        receiver: Receiver,
        health: Receiver,
        on_request: OnRequest,
    ) -> None:
        self._methods, self._guard = methods, guard
        self._receiver, self._health, self._on_request = receiver, health, on_request

    def service(self, handler_call_details: Any) -> Any:
        """What handles a call.

        For gRPC every method is one of streams, each of which has one message, so that this
        package says when a message is received, and parses it.
        """

        async def handle(_: object, context: Any) -> None:
            await self._handle(handler_call_details.method, context)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _handle(self, path: str, context: Any) -> None:
        start = time.monotonic()
        metadata = _metadata(context)
        request_id = id_of(value.encode() for value in metadata.get("x-request-id", ()))
        context.set_trailing_metadata((("x-request-id", request_id),))
        status, outcome, received = grpc.StatusCode.OK, "ok", 0
        try:
            method = self._allowed(path, metadata)
            receiver = self._health if method.open else self._receiver
            async with receiver.message(context.read) as message:
                received = len(message)
                async with contextlib.aclosing(method.answer(message)) as replies:
                    async for reply in replies:
                        await context.write(reply)
        except (asyncio.CancelledError, grpc.aio.InternalError):
            status, outcome = _cancelled(context)
            raise
        except Exception as error:
            answer = answer_of(error)
            status, outcome = _STATUS.get(answer.status, grpc.StatusCode.INTERNAL), answer.code
            if answer.status == 500:
                _log.exception("a request failed", extra={"fields": {"request_id": request_id}})
            await _abort(context, status, answer, request_id)
        finally:
            seconds = time.monotonic() - start
            route = path.rpartition("/")[2] if path in self._methods else "none"
            self._on_request(route, outcome, seconds)
            log_request(
                request_id,
                method="gRPC",
                path=path,
                status=status.name,
                outcome=outcome,
                received=received,
                seconds=seconds,
                client=_client(context),
            )

    def _allowed(self, path: str, metadata: Mapping[str, list[str]]) -> Method:
        method = self._methods.get(path)
        if method is None or not method.open:
            self._guard.check_token(metadata.get("authorization", [""])[0])
        if method is None:
            raise RequestError(501, "not_implemented", "there is no such method")
        return method


def _metadata(context: Any) -> dict[str, list[str]]:
    """The values that are text, by their keys."""
    found: dict[str, list[str]] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            found.setdefault(key, []).append(value)
    return found


async def _abort(context: Any, status: grpc.StatusCode, answer: Answer, request_id: str) -> None:
    """End a call with an error: its name, and when to try again, are in the metadata."""
    metadata = [("x-request-id", request_id), ("x-error-code", answer.code)]
    if "Retry-After" in answer.headers:
        # This is what clients of gRPC obey that are configured to try again.
        milliseconds = int(answer.headers["Retry-After"]) * 1000
        metadata.append(("grpc-retry-pushback-ms", str(milliseconds)))
    details = printable(shortened(answer.message, _LONGEST))
    await context.abort(status, details, tuple(metadata))


def _cancelled(context: Any) -> tuple[grpc.StatusCode, str]:
    """The status and the outcome of a call that nobody waits for any more."""
    remaining = context.time_remaining()
    if remaining is not None and remaining < _AT_ONCE:
        return grpc.StatusCode.DEADLINE_EXCEEDED, "timed_out"
    return grpc.StatusCode.CANCELLED, "client_gone"


def _client(context: Any) -> str:
    """The address in such as `ipv4:127.0.0.1:37056` or `ipv6:%5B::1%5D:37056`."""
    _, _, address = unquote(context.peer()).partition(":")
    return address.rpartition(":")[0].strip("[]")
