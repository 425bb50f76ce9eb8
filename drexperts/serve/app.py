"""The routes of the server as a Starlette application."""

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from drexperts.runtime.errors import (
    ClosedError,
    DeadlineError,
    DrexpertsError,
    ImageError,
    QueueFullError,
)
from drexperts.serve.service import Service

# The status and the code of each error; of everything else nothing is said.
_ANSWERS: tuple[tuple[type[DrexpertsError], int, str], ...] = (
    (ImageError, 422, "not_an_image"),
    (QueueFullError, 503, "queue_full"),
    (ClosedError, 503, "stopping"),
    (DeadlineError, 504, "timed_out"),
)


class _TooLargeError(DrexpertsError):
    """A body of more bytes than the settings allow."""


def application(service: Service) -> Starlette:
    """The routes that answer with a Service."""

    async def score(request: Request) -> Response:
        try:
            async with asyncio.timeout(service.settings.timeout):
                body = await _body(request, service.settings.max_body)
        except TimeoutError:
            late = "the body did not arrive in time: send it faster"
            return _error(408, "slow", late, {"Connection": "close"})
        if not body:
            return _error(400, "empty", "the body is empty: send an image")
        return JSONResponse((await service.score(f"<{len(body)} bytes>", body)).as_row())

    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    return Starlette(
        routes=[
            Route("/v1/score", score, methods=["POST"]),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
        ],
        exception_handlers={_TooLargeError: _too_large, DrexpertsError: _failed},
    )


async def _body(request: Request, most: int) -> bytes:
    """The whole body, whether or not its length was announced."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise _TooLargeError(f"the body is larger than {most} bytes: send a smaller image")
    return bytes(body)


async def _too_large(_: Request, error: Exception) -> Response:
    return _error(413, "too_large", str(error), {"Connection": "close"})


async def _failed(_: Request, error: Exception) -> Response:
    for kind, status, code in _ANSWERS:
        if isinstance(error, kind):
            again = {"Retry-After": "1"} if status == 503 else {}
            return _error(status, code, str(error), again)
    return _error(500, "internal", "the server failed: its log says why")


def _error(status: int, code: str, message: str, headers: dict[str, Any] | None = None) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)
