"""What every request goes through: its id, whether it is allowed, its errors, the log."""

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import TypeAlias

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from drexperts.serve.exchange import Exchange
from drexperts.serve.failures import GONE, ClientGoneError, answer_of
from drexperts.serve.guard import Guard
from drexperts.serve.logs import log_request

_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_log = logging.getLogger("drexperts.serve")

# Called at the end of each request with its route, its outcome and its seconds.
OnRequest: TypeAlias = Callable[[str, str, float], object]


class Envelope:
    """An ASGI application around another, which may raise any error."""

    def __init__(self, app: ASGIApp, guard: Guard, on_request: OnRequest) -> None:
        self._app, self._guard, self._on_request = app, guard, on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.monotonic()
        given = (value for name, value in scope["headers"] if name == b"x-request-id")
        request_id = id_of(given)
        scope["app"] = self  # then Starlette raises errors of routing
        exchange = Exchange(scope, receive, send, request_id)
        code = "ok"
        try:
            self._guard.check(scope)
            await self._app(scope, exchange.receive, exchange.send)
        except (ClientGoneError, ClientDisconnect):
            exchange.gone, code = True, "client_gone"
        except Exception as error:
            answer = answer_of(error)
            code = answer.code
            if answer.status == 500:
                _log.exception("a request failed", extra={"fields": {"request_id": request_id}})
            await exchange.fail(answer)
        finally:
            seconds = time.monotonic() - start
            status = exchange.status or (GONE if exchange.gone else 500)
            self._on_request(_route(scope), code, seconds)
            log_request(
                request_id,
                method=scope["method"],
                path=scope["path"],
                status=status,
                outcome=code,
                received=exchange.received,
                seconds=seconds,
                client=scope["client"][0] if scope.get("client") else None,
            )


def id_of(given: Iterable[bytes]) -> str:
    """The id that the client gave, if it is one that can be logged; a new one otherwise."""
    values = list(given)
    if len(values) == 1 and _ID.fullmatch(values[0]):
        return values[0].decode("ascii")
    return uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """A name of the route with few values, whatever paths clients ask for."""
    return getattr(scope.get("endpoint"), "__name__", "none")
