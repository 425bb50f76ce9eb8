"""What every request goes through: its id, whether it is allowed, its errors, the log."""

import logging
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from drexperts.serve.failures import GONE, ClientGoneError, answer_of
from drexperts.serve.guard import Guard
from drexperts.serve.http.exchange import Exchange
from drexperts.serve.requests import OnRequest, id_of, log_request

# Of answers with a status of failure that a route gave without an error: rows of a form, readiness.
_OF_ANSWERS = {422: "not_an_image", 503: "not_ready"}
_log = logging.getLogger("drexperts.serve")


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
            code = _OF_ANSWERS.get(status, code) if code == "ok" else code
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


def _route(scope: Scope) -> str:
    """A name of the route with few values, whatever paths clients ask for."""
    return getattr(scope.get("endpoint"), "__name__", "none")
